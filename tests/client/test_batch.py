# SPDX-License-Identifier: Apache-2.0
"""Batch files: what is read, what is refused, and that one failure stops nothing else."""

import json
import re
from pathlib import Path

import pytest

from predict2_client import batch
from predict2_client.settings import setting_defaults
from predict2_client.wire import Result
from predict2_spec.errors import (
    BlockedError,
    BusyError,
    InvalidRequestError,
    RequestCancelledError,
    ServerError,
    ServerUnavailableError,
)


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def made(respond):
    """A `generate` that succeeds, and the requests it was given."""
    requests = []

    def generate(request, item):
        requests.append(request)
        return Result(b"media", respond.metadata)

    generate.requests = requests
    return generate


def load(entries, task="text2image", settings=None, name="batch.json"):
    Path(name).write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return batch.load_batch(name, task, settings or setting_defaults(task))


def run(items, generate, task="text2image", **options):
    return list(batch.run_batch(items, task, generate, **options))


def statuses(outcomes):
    return [outcome.status for outcome in outcomes]


def prompts(*texts):
    return [{"prompt": text} for text in texts]


def failing(generate, failures):
    """`generate`, but requests whose prompt is in `failures` raise what stands there."""

    def maybe(request, item):
        if request.prompt in failures:
            raise failures[request.prompt]
        return generate(request, item)

    return maybe


@pytest.mark.parametrize(
    ("task", "entry", "names"),
    [
        ("text2image", {"prompt": "a"}, ["output_0.jpg", "output_1.jpg"]),
        ("text2world", {"prompt": "a"}, ["output_0.mp4", "output_1.mp4"]),
        ("video2world", {"prompt": "a", "input_video": "in.png"}, ["output_0.mp4", "output_1.mp4"]),
    ],
)
def test_files_of_the_original_run_unchanged_with_its_default_names(task, entry, names, made):
    Path("in.png").write_bytes(b"png")
    items = load([entry, entry], task)
    assert statuses(run(items, made, task)) == ["done", "done"]
    assert [str(item.output) for item in items] == names
    assert all(Path(name).read_bytes() == b"media" for name in names)


@pytest.mark.parametrize(
    ("task", "key", "name"),
    [("text2image", "output_image", "out/a.png"), ("text2world", "output_video", "out/a.mp4")],
)
def test_named_outputs_are_used(task, key, name, made):
    run(load([{"prompt": "a", key: name}], task), made, task)
    assert Path(name).exists()


def test_output_format_follows_the_outputs_name(made):
    run(load([{"prompt": "a", "output_image": n} for n in ("a.png", "b.JPEG")]), made)
    assert [request.output_format for request in made.requests] == ["png", "jpg"]


def test_picture_or_clip_is_read_as_its_extension_says(made):
    Path("in.PNG").write_bytes(b"png")
    Path("in.mp4").write_bytes(b"mp4")
    entries = [{"prompt": "a", "input_video": name} for name in ("in.PNG", "in.mp4")]
    run(load(entries, "video2world"), made, "video2world")
    assert [(r.image, r.video) for r in made.requests] == [(b"png", b""), (b"", b"mp4")]


def test_settings_hold_for_items_that_do_not_say_otherwise(made):
    entries = [
        {"prompt": "a"},
        {"prompt": "b", "seed": 9, "guidance": 2, "num_steps": 5, "aspect_ratio": "1:1"},
    ]
    run(load(entries, settings={"seed": 4, "guidance": 3.0}), made)
    first, second = made.requests
    assert (first.seed, first.guidance, first.num_steps) == (4, 3.0, 35)
    assert (second.seed, second.guidance, second.num_steps, second.aspect_ratio) == (
        9,
        2.0,
        5,
        "1:1",
    )


def test_resolution_may_be_a_number(made):
    run(load([{"prompt": "a", "resolution": 720}]), made)
    assert made.requests[0].resolution == "720"


@pytest.mark.parametrize("value", [True, False])
def test_switches_of_an_item_are_true_or_false(made, value):
    switches = {"disable_guardrail": value, "disable_prompt_refiner": value}
    settings = {**setting_defaults("text2world"), **dict.fromkeys(switches, not value)}
    run(load([{"prompt": "a", **switches}], "text2world", settings), made, "text2world")
    assert made.requests[0].disable_guardrail is value
    assert made.requests[0].disable_prompt_refiner is value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ('{"prompt": "a"}', "list of objects"),
        ("[]", "list of objects"),
        ("3", "list of objects"),
    ],
)
def test_file_that_is_no_list_is_refused_before_anything_runs(text, reason):
    with pytest.raises(InvalidRequestError, match=reason):
        load(text)


def test_missing_batch_file_is_named():
    with pytest.raises(InvalidRequestError, match=r"none\.json can't be read: No such file"):
        batch.load_batch("none.json", "text2image", {})


def test_batch_file_in_another_encoding_is_refused():
    Path("b.json").write_bytes('[{"prompt": "größer"}]'.encode("latin-1"))
    with pytest.raises(InvalidRequestError, match="is not JSON"):
        batch.load_batch("b.json", "text2image", {})


@pytest.mark.parametrize(
    ("task", "entry", "reason"),
    [
        ("text2image", {}, "prompt is missing"),
        ("text2image", "a ball", "must be an object"),
        ("text2image", {"prompt": 5}, "prompt 5 must be a string"),
        ("text2image", {"prompt": "a", "seed": "1"}, "seed '1' must be a whole number"),
        ("text2image", {"prompt": "a", "seed": True}, "seed True must be a whole number"),
        ("text2image", {"prompt": "a", "guidance": None}, "guidance None must be a number"),
        ("text2image", {"prompt": "a", "disable_guardrail": 1}, "1 must be true or false"),
        ("text2image", {"prompt": "a", "disable_guardrail": "no"}, "'no' must be true or false"),
        ("text2image", {"prompt": "a", "disable_prompt_refiner": True}, "is unknown"),
        ("text2image", {"prompt": "a", "seed": -1}, "seed -1 must be between"),
        ("text2image", {"prompt": " "}, "prompt is empty"),
        ("text2image", {"prompt": "\ud800"}, "UTF-8"),
        ("text2image", {"prompt": "a", "sed": 1}, "'sed' is unknown; did you mean seed"),
        ("text2image", {"prompt": "a", "xyzzy": 1}, "'xyzzy' is unknown; known are"),
        ("text2image", {"prompt": "a", "output_video": "a.mp4"}, "did you mean output_image"),
        ("text2image", {"prompt": "a", "output_image": "a.gif"}, r"must end in \.jpg"),
        ("text2image", {"prompt": "a", "num_frames": 5}, "'num_frames' is unknown"),
        ("video2world", {"prompt": "a"}, "input_video is missing"),
        ("video2world", {"prompt": "a", "input_video": "no.png"}, "does not exist"),
        ("video2world", {"prompt": "a", "input_video": "a.gif"}, "neither a picture"),
    ],
)
def test_bad_item_fails_by_itself_with_its_reason(task, entry, reason, made):
    Path("in.png").write_bytes(b"png")
    good = {"prompt": "good", "input_video": "in.png"} if task == "video2world" else prompts("b")[0]
    outcomes = run(load([entry, good], task), made, task)
    assert statuses(outcomes) == ["failed", "done"]
    assert re.search(reason, outcomes[0].message), outcomes[0].message
    assert batch.exit_code(outcomes) == 1


@pytest.mark.parametrize(
    "entries",
    [
        [{"prompt": "a", "output_image": "x.jpg"}, {"prompt": "b", "output_image": "./x.jpg"}],
        [{"prompt": "a"}, {"prompt": "b", "output_image": "output_0.jpg"}],
        [{"prompt": "a", "output_image": "x.jpg"}, {"prompt": "b", "output_image": "x.png"}],
    ],
    ids=["same file", "default name", "same side file"],
)
def test_two_items_with_the_same_output_are_refused_up_front(entries):
    with pytest.raises(InvalidRequestError, match=r"item 1 would write .* an output of item 0"):
        load(entries)


def test_item_whose_side_file_is_the_batch_file_is_refused():
    with pytest.raises(InvalidRequestError, match="which is the batch file"):
        load([{"prompt": "a", "output_image": "batch.jpg"}])


def test_item_that_would_overwrite_an_input_is_refused():
    entries = [{"prompt": "a", "input_video": "x.mp4", "output_video": "x.mp4"}]
    with pytest.raises(InvalidRequestError, match="the input of item 0"):
        load(entries, "video2world")


def test_item_may_go_on_from_an_earlier_items_output(made):
    Path("in.png").write_bytes(b"png")
    entries = [
        {"prompt": "a", "input_video": "in.png", "output_video": "1.mp4"},
        {"prompt": "b", "input_video": "1.mp4", "output_video": "2.mp4"},
    ]
    assert statuses(run(load(entries, "video2world"), made, "video2world")) == ["done", "done"]
    assert made.requests[1].video == b"media"


@pytest.mark.parametrize(
    "error", [InvalidRequestError("no"), ServerError("no"), RequestCancelledError("no")]
)
def test_failure_of_one_item_does_not_stop_the_rest(made, error):
    outcomes = run(load(prompts("a", "b", "c")), failing(made, {"b": error}))
    assert statuses(outcomes) == ["done", "failed", "done"]
    assert outcomes[1].message == "no"
    assert not Path("output_1.jpg").exists()
    assert batch.exit_code(outcomes) == 1


def test_item_a_guardrail_refuses_is_blocked_and_the_others_go_on(made):
    error = BlockedError("blocked: guardrail blocklist refuses the prompt")
    outcomes = run(load(prompts("a", "b", "c")), failing(made, {"b": error}))
    assert statuses(outcomes) == ["done", "blocked", "done"]
    assert outcomes[1].message == str(error)
    assert batch.exit_code(outcomes) == 1


def test_output_that_can_not_be_written_fails_its_item_alone(made):
    Path("file").touch()
    entries = [{"prompt": "a", "output_image": "file/a.jpg"}, {"prompt": "b"}]
    assert statuses(run(load(entries), made)) == ["failed", "done"]
    assert [request.prompt for request in made.requests] == ["b"]


@pytest.mark.parametrize("error", [ServerUnavailableError("gone"), BusyError("gone")])
def test_server_that_stays_away_or_busy_ends_the_batch_with_the_rest_not_run(made, error):
    calls = []

    def generate(request, item):
        calls.append(request.prompt)
        raise error

    outcomes = run(load(prompts("a", "b", "c")), generate)
    assert statuses(outcomes) == ["failed", "not run", "not run"]
    assert outcomes[0].message == "gone"
    assert calls == ["a"]
    assert batch.exit_code(outcomes) == 1


def test_ctrl_c_ends_the_batch_and_leaves_what_is_done(made):
    items = load(prompts("a", "b", "c"))
    outcomes = run(items, failing(made, {"b": KeyboardInterrupt()}))
    assert statuses(outcomes) == ["done", "cancelled", "not run"]
    assert batch.exit_code(outcomes) == 130
    assert sorted(p.name for p in Path().glob("output_*")) == ["output_0.jpg", "output_0.json"]


def test_resume_runs_only_what_is_missing(made):
    items = load(prompts("a", "b", "c"))
    run(items, failing(made, {"b": ServerError("no")}))
    made.requests.clear()
    outcomes = run(items, made, resume=True)
    assert statuses(outcomes) == ["skipped", "done", "skipped"]
    assert [request.prompt for request in made.requests] == ["b"]
    assert batch.exit_code(outcomes) == 0


def test_resume_runs_an_item_whose_settings_changed(made):
    run(load(prompts("a", "b")), made)
    changed = [{"prompt": "a"}, {"prompt": "b", "seed": 5}]
    assert statuses(run(load(changed), made, resume=True)) == ["skipped", "done"]


def test_resume_runs_an_item_whose_input_changed(made):
    Path("in.png").write_bytes(b"png")
    items = load([{"prompt": "a", "input_video": "in.png"}], "video2world")
    run(items, made, "video2world")
    assert statuses(run(items, made, "video2world", resume=True)) == ["skipped"]
    Path("in.png").write_bytes(b"gnp")
    assert statuses(run(items, made, "video2world", resume=True)) == ["done"]


def test_without_resume_everything_runs_again(made):
    items = load(prompts("a"))
    run(items, made)
    assert statuses(run(items, made)) == ["done"]


def test_outcomes_are_told_as_they_become_known(made):
    runs = batch.run_batch(load(prompts("a", "b")), "text2image", made)
    assert next(runs).status == "done"
    assert len(made.requests) == 1
