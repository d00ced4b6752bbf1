# SPDX-License-Identifier: Apache-2.0
from predict2_runtime.policy import POLICY_VARIABLE, LanguageModel, Policy, read_policy
from predict2_spec.limits import Limits


def test_a_policy_survives_the_environment():
    policy = Policy(
        allow_disable_guardrail=True,
        limits=Limits(num_steps=5, media_seconds=1.5),
        request_timeout_s=60.0,
        blocklists="/lists",
        text_guard=LanguageModel("guard", device="cuda", offload=True),
        reasoner=LanguageModel("nvidia/Cosmos-Reason1-7B", url="http://host/v1", timeout_s=5.0),
    )
    assert read_policy({POLICY_VARIABLE: policy.to_json()}) == policy


def test_without_a_policy_all_guards_are_on_and_nobody_can_switch_them_off():
    policy = read_policy({})
    assert policy.guard_frames
    assert not policy.allow_disable_guardrail
    assert not policy.run_unguarded
