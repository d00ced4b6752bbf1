# SPDX-License-Identifier: Apache-2.0
"""One module a command of `predict2-export`: `add_parser` says its flags, `run` does the work.

Nothing heavy is imported at the top of these modules, so that --help answers at once.
"""
