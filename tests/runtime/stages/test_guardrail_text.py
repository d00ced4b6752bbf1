# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from predict2_runtime.guardrails.blocklist import SHIPPED_LISTS, Blocklist
from predict2_runtime.guardrails.text_guard import KINDS, TextGuard
from predict2_runtime.policy import LanguageModel, Policy
from predict2_runtime.serve import serve_stage
from predict2_runtime.stages.guardrail_text import GuardrailText
from predict2_spec.errors import EngineMismatchError, InvalidRequestError
from predict2_spec.guardrails import UNDECIDED, Verdict
from predict2_spec.limits import LIMITS
from predict2_spec.presets import TOY, find_preset
from predict2_spec.tensors import GUARDRAIL_TEXT


def guarded(ask):
    return GuardrailText(Blocklist.read(SHIPPED_LISTS), TextGuard(KINDS[0], ask))


def judge(stage, text, *subject):
    inputs = {"text": [text]} | ({"subject": list(subject)} if subject else {})
    return Verdict.from_json(stage(inputs)["verdict"])


def unsafe(question, frames, fps):
    return ["unsafe\nS1" if "fight" in question.text else "safe"]


def test_a_prompt_of_the_blocklist_is_refused_with_list_and_entry():
    stage = GuardrailText.open(Policy(), TOY)
    assert judge(stage, "two pipe bombs") == Verdict(
        False, "prompt", "blocklist", "weapons", "pipe bomb"
    )
    assert judge(stage, "two pipes") == Verdict(True, "prompt", "blocklist")


def test_the_guard_model_has_the_last_word():
    stage = guarded(unsafe)
    assert judge(stage, "a cup", "refined_prompt") == Verdict(True, "refined_prompt", "llama-guard")
    assert judge(stage, "a fight", "refined_prompt") == Verdict(
        False, "refined_prompt", "llama-guard", "Violent Crimes"
    )


def test_the_guard_model_isnt_asked_what_the_blocklist_refuses():
    def ask(question, frames, fps):
        raise AssertionError

    stage = guarded(ask)
    assert judge(stage, "heroin").check == "blocklist"
    assert judge(stage, "").check == "blocklist"
    assert judge(stage, "a cup") == Verdict(False, "prompt", "llama-guard", UNDECIDED)


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_an_empty_text_isnt_safe(text):
    assert judge(GuardrailText.open(Policy(), TOY), text) == Verdict(
        False, "prompt", "blocklist", "empty"
    )


def test_a_text_in_another_script_isnt_empty():
    assert judge(guarded(unsafe), "\u6a5f\u5668\u4eba").safe


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"text": ["a" * (LIMITS.prompt_bytes + 1)]}, "the limit is"),
        ({"text": ["a\0b"]}, "zero byte"),
        ({"text": []}, "text holds 0 values"),
        ({"text": ["a", "b"]}, "text holds 2 values"),
        ({"text": ["a"], "subject": ["negative"]}, "choose one of prompt, refined_prompt"),
        ({"text": ["a"], "subject": ["prompt", "prompt"]}, "subject holds 2 values"),
    ],
)
def test_inputs_outside_the_limits_are_refused(inputs, said):
    with pytest.raises(InvalidRequestError, match=said):
        GuardrailText.open(Policy(), TOY)(inputs)


def test_the_owners_lists_count_beside_the_shipped_ones(tmp_path):
    for name, words in (("custom", "spoon\n"), ("whitelist", "heroin\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ours.txt").write_text(words)
    stage = GuardrailText.open(Policy(blocklists=str(tmp_path)), TOY)
    assert judge(stage, "a spoon").category == "ours"
    assert judge(stage, "a pipe bomb").category == "weapons"
    assert judge(stage, "heroin").safe


@pytest.mark.parametrize(
    "policy",
    [
        Policy(blocklists="/nowhere/lists"),
        Policy(text_guard=LanguageModel("/nowhere/model")),
        Policy(text_guard=LanguageModel("gpt", url="http://127.0.0.1:9/v1")),
    ],
)
def test_a_stage_with_an_unreadable_part_doesnt_open(policy):
    with pytest.raises(EngineMismatchError):
        GuardrailText.open(policy, TOY)


def test_a_verdict_goes_through_triton_and_the_text_stays_out_of_the_log(pb_utils, caplog):
    request = pb_utils.Request(text=np.array([b"a fight in a private place"], dtype=np.object_))
    with caplog.at_level(0):
        (response,) = serve_stage(pb_utils, GUARDRAIL_TEXT, [request], guarded(unsafe))
    verdict = Verdict.from_json(response.outputs["verdict"][0].decode())
    assert verdict.category == "Violent Crimes"
    assert "private" not in caplog.text


def test_a_preset_with_a_guard_model_doesnt_open_without_one_unless_its_owner_said_so():
    preset = find_preset("2b-480p-16fps")
    with pytest.raises(EngineMismatchError, match=r"Llama-Guard-3-8B.*--run-unguarded"):
        GuardrailText.open(Policy(), preset)
    assert GuardrailText.open(Policy(run_unguarded=True), preset).guard is None
