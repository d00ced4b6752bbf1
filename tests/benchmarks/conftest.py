# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

# Benchmarks are run from the checkout's root and installed nowhere.
sys.path.insert(0, str(Path(__file__).parents[2]))
