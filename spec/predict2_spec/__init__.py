# SPDX-License-Identifier: Apache-2.0
"""What every side agrees on: networks, shapes, requests, tensors, errors. Standard library only."""
