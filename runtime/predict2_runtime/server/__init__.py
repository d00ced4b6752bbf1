# SPDX-License-Identifier: Apache-2.0
"""Starting a real Triton over a served repository, and stopping it cleanly."""
