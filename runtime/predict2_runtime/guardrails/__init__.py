# SPDX-License-Identifier: Apache-2.0
"""Guardrails: what may be asked for, and what may leave the server. They refuse what they can't decide."""
