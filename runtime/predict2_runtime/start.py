# SPDX-License-Identifier: Apache-2.0
"""What a model's process does before all else: it reads what the server's owner decided and opens its log."""

import os
from collections.abc import Mapping

from .logs import open_log
from .policy import REASONER_KEY_VARIABLE, TEXT_GUARD_KEY_VARIABLE, Policy, read_policy


def begin(args: Mapping[str, str]) -> Policy:
    """The owner's policy; from here on this process writes its log the way that says.

    Args:
        args: what Triton gives `initialize`.
    """
    policy = read_policy(os.environ)
    keys = (os.environ.get(name, "") for name in (REASONER_KEY_VARIABLE, TEXT_GUARD_KEY_VARIABLE))
    instance = args.get("model_instance_name", "")
    open_log(policy.log_format, policy.log_level, args["model_name"], instance, keys)
    return policy
