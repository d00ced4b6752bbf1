# SPDX-License-Identifier: Apache-2.0
"""The networks for inference with torch alone: functions over frozen weights, which keep the checkpoint's names.

What they compute is what export's torch modules compute, which are the reference they are tested against.
"""
