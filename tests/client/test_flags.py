# SPDX-License-Identifier: Apache-2.0
"""The command line: the original's flags and defaults, both spellings, and whose flags are whose."""

from pathlib import Path

import pytest

from predict2_client import flags
from predict2_client.settings import make_request
from predict2_spec.requests import DEFAULT_NEGATIVE_PROMPT

URL = "127.0.0.1:8001"
INPUT = ["--input_path", "in.png"]
NEEDED = {"text2image": [], "text2world": [], "video2world": INPUT, "best-of-n": INPUT}

# As the original's programs have them; the sample prompts and input are its own and left out.
SHARED = {"aspect_ratio": "16:9", "seed": 0, "batch_input_json": None}
CLIP = {
    **SHARED,
    "negative_prompt": DEFAULT_NEGATIVE_PROMPT,
    "guidance": 7.0,
    "save_path": "output/generated_video.mp4",
}
ORIGINAL_DEFAULTS = {
    "text2image": {
        **SHARED,
        "negative_prompt": "",
        "guidance": 4.0,  # no flag there, a constant
        "distill_steps": 0,
        "save_path": "output/generated_image.jpg",
    },
    "video2world": {**CLIP, "prompt": "", "num_conditional_frames": 1},
    "text2world": CLIP,
    "best-of-n": {
        "prompt": "",
        "aspect_ratio": "16:9",
        "seed": 0,
        "negative_prompt": DEFAULT_NEGATIVE_PROMPT,
        "guidance": 7.0,
        "num_conditional_frames": 1,
        "save_path": Path("output/best-of-n"),
        "num_generations": 2,
        "num_critic_trials": 5,
        "skip_generation": False,
        "disable_guardrail": False,
        "disable_prompt_refiner": False,
    },
}
SERVER_FLAGS = {
    "text2image": "dit_path load_ema offload_guardrail benchmark use_cuda_graphs use_fast_tokenizer",
    "video2world": "dit_path load_ema num_gpus offload_guardrail "
    "offload_prompt_refiner offload_text_encoder downcast_text_encoder "
    "benchmark use_cuda_graphs natten use_lora lora_rank lora_alpha lora_target_modules",
    "text2world": "load_ema num_gpus offload_guardrail "
    "offload_prompt_refiner offload_text_encoder downcast_text_encoder benchmark "
    "use_cuda_graphs natten distill_steps dit_path_text2image dit_path_video2world",
    "best-of-n": "dit_path load_ema num_gpus offload_guardrail gr00t_variant checkpoint_dir",
}


def parse(*argv):
    return flags.parse(argv, URL)


@pytest.mark.parametrize("task", ORIGINAL_DEFAULTS)
def test_defaults_are_the_originals(task):
    args = vars(parse(task, *NEEDED[task]))
    assert {name: args[name] for name in ORIGINAL_DEFAULTS[task]} == ORIGINAL_DEFAULTS[task]


@pytest.mark.parametrize("task", NEEDED)
def test_server_is_not_told_what_it_should_be_unless_asked(task):
    settings = flags.settings(parse(task, *NEEDED[task]))
    assert not settings["model_size"]
    assert not settings["resolution"]
    assert not settings["fps"]


@pytest.mark.parametrize("task", ["text2image", "text2world"])
def test_sample_prompt_makes_a_request(task, tmp_path):
    path = tmp_path / ("a.jpg" if task == "text2image" else "a.mp4")
    assert make_request(task, path, flags.settings(parse(task))).prompt == flags.SAMPLE_PROMPT


@pytest.mark.parametrize(
    "argv",
    [
        ["--negative_prompt", "a-b --c d", "--num_steps", "5"],
        ["--negative-prompt", "a-b --c d", "--num-steps", "5"],
        ["--negative-prompt=a-b --c d", "--num-steps=5"],
        ["--negative_prompt=a-b --c d", "--num_steps=5"],
    ],
)
def test_dashes_and_underscores_and_equals_signs_mean_the_same(argv):
    args = parse("text2image", *argv)
    assert (args.negative_prompt, args.num_steps) == ("a-b --c d", 5)


@pytest.mark.parametrize("prompt", ["--no-flag but a prompt", "a --save-path b", "x=--save-path"])
def test_values_keep_their_dashes(prompt):
    assert parse("text2image", "--prompt", prompt).prompt == prompt


def test_what_follows_a_double_dash_is_kept():
    assert str(parse("sheet", "--", "--my-clip").clip) == "--my-clip"


def test_every_setting_of_a_request_has_a_flag_and_arrives():
    given = {
        "prompt": "a",
        "negative_prompt": "b",
        "seed": 3,
        "num_steps": 4,
        "solver": "euler",
        "aspect_ratio": "1:1",
        "width": 32,
        "height": 16,
        "model_size": "2B",
        "resolution": "480",
        "fps": 10,
        "guidance": 1.5,
        "num_frames": 5,
        "image_guidance": 2.5,
    }
    switches = {"disable_guardrail": True, "disable_prompt_refiner": True}
    argv = [f"--{name}={value}" for name, value in given.items()]
    argv += [f"--{name}" for name in switches]
    assert flags.settings(parse("text2world", *argv)) == {**given, **switches}


@pytest.mark.parametrize("name", ["best-of-n", "best_of_n"])
def test_best_of_n_takes_video2worlds_settings_by_both_of_its_names(name):
    args = parse(name, *INPUT, "--prompt", "on", "--num-generations", "4", "--disable-guardrail")
    assert (args.command, args.num_generations) == ("best-of-n", 4)
    settings = flags.settings(args)
    assert (settings["prompt"], settings["disable_guardrail"]) == ("on", True)
    assert settings.keys() == flags.settings(parse("video2world", *INPUT)).keys()


@pytest.mark.parametrize("name", ["best-of-n", "best_of_n", "video2world"])
def test_missing_input_points_to_the_commands_own_help(name, capsys):
    with pytest.raises(SystemExit):
        parse(name)
    command = name.replace("_", "-")
    assert capsys.readouterr().err.endswith(f"(see predict2 {command} --help)\n")


def test_clips_that_are_already_there_need_no_input():
    assert parse("best-of-n", "--skip_generation").input_path is None


@pytest.mark.parametrize(
    ("task", "flag"), [(task, flag) for task in NEEDED for flag in SERVER_FLAGS[task].split()]
)
@pytest.mark.parametrize("dashes", [False, True])
@pytest.mark.parametrize("value", [(), ("4",)])
def test_servers_flags_are_refused_as_such(task, flag, dashes, value, capsys):
    spelt = f"--{flag.replace('_', '-') if dashes else flag}"
    with pytest.raises(SystemExit) as caught:
        parse(task, *NEEDED[task], spelt, *value, "--seed", "1")
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert f"--{flag} belongs to the server: " in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["text2image", "--xyzzy"], "unrecognized arguments: --xyzzy"),
        (["text2image", "--sav", "a.jpg"], "unrecognized arguments"),
        (["text2image", "--seed", "one"], "invalid int value"),
        (["text2image", "--aspect_ratio", "2:1"], "invalid choice"),
        (["text2image", "--timeout", "0"], "must be more than 0"),
        (["text2image", "--timeout", "nan"], "must be more than 0"),
        (["text2image", "--num_frames", "5"], "unrecognized arguments"),
        (["video2world", "--num_conditional_frames", "3"], "invalid choice"),
        (["video2world", "--prompt", "a"], "needs --input_path"),
        (["sheet", "a.mp4", "--columns", "0"], "1 or more"),
        (["text2image", "--disable_prompt_refiner"], "unrecognized arguments"),
        (["text2image", "--disable_guardrail", "yes"], "unrecognized arguments: yes"),
        (["best-of-n"], "needs --input_path"),
        (["best-of-n", "--num_generations", "0"], "1 or more"),
        (["best-of-n", "--num_critic_trials", "17"], "16 or less"),
        (["best-of-n", "--parallel", "0"], "1 or more"),
        (["best-of-n", "--batch_input_json", "b.json"], "unrecognized arguments"),
        (["sheet"], "required: clip"),
        (["fetch"], "required: request_id"),
        (["cancel"], "required: request_id"),
        (["text2image", "--retry-for", "-1"], "must be more than 0"),
        (["text2image", "--retry-for", "inf"], "must be more than 0"),
        (["text2image", "--lease", "2.5"], "invalid int value"),
        (
            ["text2image", "--request-id", "my-request", "--batch_input_json", "b.json"],
            "a batch file holds several",
        ),
        ([], "required: COMMAND"),
        (["fly"], "invalid choice"),
    ],
)
def test_wrong_usage_ends_with_one_line_and_code_2(argv, reason, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert reason in message
    assert message.startswith("predict2: ")
    assert message.count("\n") == 1


def test_batch_of_video2world_needs_no_input_path():
    assert parse("video2world", "--batch-input-json", "b.json").input_path is None


def test_url_comes_from_the_caller_unless_given():
    assert parse("ready").url == URL
    assert parse("ready", "--url", "host:1").url == "host:1"


def test_server_is_waited_for_only_if_asked():
    assert parse("text2image").retry_for is None
    assert parse("text2image", "--retry-for", "0").retry_for == 0
    assert parse("text2image", "--retry-for=2.5").retry_for == 2.5


@pytest.mark.parametrize(
    "command", [*NEEDED, "demo", "sheet", "ready", "fetch", "cancel", "status"]
)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(command, "--help")
    assert caught.value.code == 0
    assert "lora" not in capsys.readouterr().out  # refused flags aren't offered
