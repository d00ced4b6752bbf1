# SPDX-License-Identifier: Apache-2.0
import torch

# Tiny layers gain nothing from threads and lose much to them when the machine has other work.
torch.set_num_threads(1)
