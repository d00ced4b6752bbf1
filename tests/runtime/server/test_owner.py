# SPDX-License-Identifier: Apache-2.0
import argparse
import json
from dataclasses import replace

import pytest

from predict2_runtime.guardrails.blocklist import SHIPPED_LISTS
from predict2_runtime.policy import REASONER_KEY_VARIABLE, LanguageModel, Policy
from predict2_runtime.server import owner
from predict2_spec.errors import EngineMismatchError, ServerUnavailableError
from predict2_spec.limits import Limits
from predict2_spec.presets import TOY, find_preset

BIG = find_preset("2b-480p-16fps")


@pytest.fixture
def repository(tmp_path):
    manifest = tmp_path / "served" / "guardrail_video" / "1" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    return tmp_path / "served"


@pytest.fixture
def checkpoints(tmp_path):
    for path in (BIG.text_guard_path, BIG.reasoner_path):
        config = tmp_path / "checkpoints" / path / "config.json"
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps({"model_type": "llama"}))
    return tmp_path / "checkpoints"


def policy(preset, repository, *flags):
    parser = argparse.ArgumentParser()
    owner.add_flags(parser)
    return owner.policy_from(parser.parse_args(list(map(str, flags))), preset, repository)


def test_a_preset_without_guard_models_of_its_own_starts_with_the_safe_defaults(repository):
    assert policy(TOY, repository) == Policy()


def test_limits_and_time_are_the_owners(repository):
    flags = ["--limit", "num_steps=7", "--limit=media_bytes=1MB", "--request-timeout", 60]
    assert policy(TOY, repository, *flags) == Policy(
        limits=Limits(num_steps=7, media_bytes=1_000_000), request_timeout_s=60.0
    )


def test_how_models_start_and_write_their_log_is_the_owners(repository):
    flags = ["--no-warm-up", "--log-format", "json", "--log-level", "debug"]
    assert policy(TOY, repository, *flags) == Policy(
        warm_up=False, log_format="json", log_level="debug"
    )


def test_where_and_how_long_results_are_kept_is_the_owners(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--state", "kept", "--kept-bytes", "64MiB", "--kept-seconds", 90]
    assert policy(TOY, repository, *flags) == Policy(
        state=str(tmp_path / "kept"), kept_bytes=2**26, kept_seconds=90
    )


@pytest.mark.parametrize("text", ["-1", "many", "0.5", "1e9", ""])
def test_no_amount_of_results_to_keep_is_refused(repository, capsys, text):
    with pytest.raises(SystemExit):
        policy(TOY, repository, f"--kept-bytes={text}")
    assert f"--kept-bytes: {text} must be a whole number" in capsys.readouterr().err


def test_a_preset_of_pictures_needs_no_frame_guard_and_no_reasoner(checkpoints, tmp_path):
    found = policy(find_preset("0.6b"), tmp_path, "--checkpoints", checkpoints)
    assert found.text_guard
    assert found.reasoner is None
    with pytest.raises(EngineMismatchError, match="no engine of guardrail_video"):
        policy(find_preset("0.6b"), tmp_path, "--checkpoints", checkpoints, "--guard-pictures")


def test_pictures_cannot_be_guarded_by_an_engine_that_is_missing(tmp_path):
    with pytest.raises(EngineMismatchError, match="--guard-pictures needs the engine"):
        policy(TOY, tmp_path, "--run-unguarded", "--guard-pictures")


def test_fetched_models_are_found(repository, checkpoints):
    found = policy(BIG, repository, "--checkpoints", checkpoints, "--language-device", "cuda")
    assert found.text_guard == LanguageModel(str(checkpoints / BIG.text_guard_path), device="cuda")
    assert found.reasoner == LanguageModel(str(checkpoints / BIG.reasoner_path), device="cuda")


def test_a_missing_text_guard_is_refused_until_the_owner_says_so(repository, tmp_path):
    with pytest.raises(EngineMismatchError, match=r"Llama-Guard-3-8B .*say --run-unguarded"):
        policy(BIG, repository, "--checkpoints", tmp_path)
    found = policy(BIG, repository, "--checkpoints", tmp_path, "--run-unguarded")
    assert found.text_guard is None
    assert found.guard_frames


def test_a_missing_frame_guard_is_refused_until_the_owner_says_so(tmp_path):
    with pytest.raises(
        EngineMismatchError, match=r"no engine of guardrail_video .*--run-unguarded"
    ):
        policy(TOY, tmp_path)
    assert not policy(TOY, tmp_path, "--run-unguarded").guard_frames


def test_an_endpoint_is_named_by_url_and_model(repository):
    url = "https://host:9000/v1#nvidia/Cosmos-Reason1-7B"
    found = policy(TOY, repository, "--reasoner", url, "--language-timeout", 7)
    assert found.reasoner == LanguageModel(
        "nvidia/Cosmos-Reason1-7B",
        url="https://host:9000/v1",
        timeout_s=7.0,
        key_variable=REASONER_KEY_VARIABLE,
    )


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "0.5", "-1", "3601", "soon"])
def test_a_time_that_is_none_to_answer_in_is_refused(repository, capsys, seconds):
    with pytest.raises(SystemExit):
        policy(TOY, repository, "--language-timeout", seconds)
    assert "--language-timeout" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://host:9000/v1", "https://#model"])
def test_an_endpoint_without_host_or_model_is_refused(repository, url):
    with pytest.raises(ServerUnavailableError, match="must be a URL and the name of the model"):
        policy(TOY, repository, "--text-guard", url)


def test_a_folder_without_a_checkpoint_is_refused(repository, tmp_path):
    with pytest.raises(EngineMismatchError, match="holds no checkpoint with a readable config"):
        policy(TOY, repository, "--reasoner", tmp_path)


def test_the_reasoner_can_be_left_out(repository, checkpoints):
    found = policy(BIG, repository, "--checkpoints", checkpoints, "--reasoner", "none")
    assert found.reasoner is None


def test_switches_reach_the_policy(repository, checkpoints):
    found = policy(
        BIG, repository, "--checkpoints", checkpoints, "--blocklists", SHIPPED_LISTS,
        "--allow-disable-guardrail", "--guard-pictures", "--offload-guardrail",
        "--offload-prompt-refiner", "--require-prompt-refiner",
    )  # fmt: skip
    assert found.allow_disable_guardrail
    assert found.guard_pictures
    assert found.require_refiner
    assert found.blocklists == str(SHIPPED_LISTS)
    assert found.text_guard.offload
    assert found.reasoner.offload


def test_lists_that_are_not_there_are_refused(repository, tmp_path):
    with pytest.raises(ServerUnavailableError, match="none is no folder"):
        policy(TOY, repository, "--blocklists", tmp_path / "none")


def test_the_line_at_the_start_says_what_guards_and_what_does_not():
    assert owner.describe(Policy()) == (
        "guardrails: blocklist, frames; requests can't switch them off; reasoner: none"
    )
    little = Policy(allow_disable_guardrail=True, guard_frames=False, guard_pictures=True)
    more = replace(little, text_guard=LanguageModel("guard"), reasoner=LanguageModel("sage"))
    assert owner.describe(more) == (
        "guardrails: blocklist, text guard guard; requests may switch them off; reasoner: sage"
    )


def test_what_the_models_could_not_open_is_refused_before_triton_starts(repository, tmp_path):
    with pytest.raises(EngineMismatchError, match="has no entry in custom, whitelist, exact_match"):
        policy(TOY, repository, "--blocklists", tmp_path)
    with pytest.raises(EngineMismatchError, match="text guard gpt is none of llama-guard"):
        policy(TOY, repository, "--text-guard", "http://host/v1#gpt")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(EngineMismatchError, match="holds a gpt2 model"):
        policy(TOY, repository, "--reasoner", tmp_path)


def test_a_refiner_that_is_required_has_to_be_there(repository):
    with pytest.raises(ServerUnavailableError, match="needs a refiner; name one with --reasoner"):
        policy(TOY, repository, "--require-prompt-refiner")
