# SPDX-License-Identifier: Apache-2.0
"""A small world that the toy preset's weights are trained on, the training itself, and a judge of its results."""
