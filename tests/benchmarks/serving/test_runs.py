# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from benchmarks.serving.inputs import INPUTS
from benchmarks.serving.outputs import ENOUGH
from benchmarks.serving.runs import Files, Run, arguments, plan, stages_of
from predict2_spec.presets import TOY, find_preset
from predict2_spec.tensors import MODELS, STAGES, TRACKING

ALL = {*MODELS, TRACKING.name}
FILES = Files(Path("in.json"), Path("out.csv"), Path("out.json"))


def test_every_model_is_measured_and_every_engine_also_with_shared_memory():
    runs = plan(TOY, ALL)
    assert {run.model.name for run in runs} == ALL
    assert {run.inputs for run in runs} == set(INPUTS)
    shared = {run.model for run in runs if run.shared_memory}
    assert shared == set(STAGES)
    assert len({run.name for run in runs}) == len(runs)


def test_counts_are_whole_rounds_and_enough_for_a_95th_percentile():
    for run in plan(TOY, ALL):
        assert run.count >= ENOUGH
        assert run.count % run.concurrency == 0


def test_a_preset_of_pictures_has_no_runs_for_clips():
    served = {"text2image", "generate", "text_encoder"}
    inputs = {run.inputs for run in plan(find_preset("0.6b"), served)}
    assert inputs == {"text2image", "generate-text2image", "text_encoder"}


def test_fewer_requests_stay_whole_rounds():
    for run in plan(TOY, ALL, requests=5):
        assert run.count == {1: 5, 2: 6, 4: 8}[run.concurrency]


def test_requests_are_counted_and_never_timed():
    words = arguments(Run("text2image", 4, 24), "host:1", FILES, ())
    assert words[words.index("--request-count") + 1] == "24"
    assert words[words.index("--concurrency-range") + 1] == "4"
    assert words[words.index("-m") + 1] == "text2image"
    assert not {"-p", "--measurement-interval", "--streaming", "--shared-memory"} & set(words)


def test_a_decoupled_model_is_streamed_by_its_own_name():
    words = arguments(Run("generate-video2world", 1, 20), "host:1", FILES, ("vae_decoder",))
    assert "--streaming" in words
    assert words[words.index("-m") + 1] == "generate"
    assert words[words.index("--bls-composing-models") + 1] == "vae_decoder"


def test_shared_memory_is_asked_for():
    words = arguments(Run("vae_decoder", 1, 20, shared_memory=True), "host:1", FILES, ())
    assert words[words.index("--shared-memory") + 1] == "system"


@pytest.mark.parametrize(
    ("inputs", "stages"),
    [
        ("text2image", {"guardrail_text", "text_encoder", "text2image_denoiser", "vae_decoder"}),
        ("generate-text2image", {"guardrail_text", "text_encoder", "text2image_denoiser", "vae_decoder"}),
        ("critic", {"reasoner"}),
        ("vae_decoder", set()),
    ],
)  # fmt: skip
def test_stages_are_those_that_a_model_calls_in_the_end(inputs, stages):
    assert set(stages_of(Run(inputs, 1, 20), ALL)) == stages


def test_a_stage_that_isnt_served_isnt_asked_for():
    found = stages_of(Run("video2world", 1, 20), ALL - {"guardrail_video"})
    assert "guardrail_video" not in found
    assert "vae_encoder" in found
