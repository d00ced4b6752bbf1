# SPDX-License-Identifier: Apache-2.0
"""The `predict2` command as people run it, against a live server."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from predict2_spec.presets import TOY

pytestmark = pytest.mark.server

BIN = Path(sys.executable).parent
PROMPT = "a red ball"
QUICK = ("--num_steps", "1", "--width", "48", "--height", "32")
QUICK_CLIP = (*QUICK, "--num_frames", "5")


class Run:
    """A `predict2` process in a folder of the test's."""

    def __init__(self, folder, url, arguments):
        self.process = subprocess.Popen(
            [BIN / "predict2", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "PREDICT2_URL": url, "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self):
        """Wait for it: its exit code, and the lines of stdout and stderr."""
        try:
            out, err = self.process.communicate(timeout=120)
        finally:
            self.process.kill()
        assert "Traceback" not in err
        return self.process.returncode, out.splitlines(), err.splitlines()

    def interrupt_after(self, word):
        """Press Ctrl-C when `word` is on stderr."""
        for line in self.process.stderr:
            if word in line:
                break
        else:
            pytest.fail(f"it ended without a word of {word}")
        self.process.send_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def no_surprise(server):
    """Nothing that a command does is unforeseen on the server."""
    log = len(server.text())
    yield
    assert "Traceback" not in server.text()[log:]


@pytest.fixture
def start(server, tmp_path):
    # Whoever starts the tests in the background may have turned Ctrl-C off, which programs inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda *arguments, url=server.url: Run(tmp_path, url, arguments)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def predict2(start):
    """Run a command to its end."""
    return lambda *arguments, **kwargs: start(*arguments, **kwargs).end()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_picture_and_how_it_came_about_are_written(predict2, client, tmp_path):
    code, out, err = predict2(
        "text2image", "--prompt", PROMPT, "--seed", 3, *QUICK, "--save_path", "new/ball.png"
    )
    assert (code, out) == (0, ["new/ball.png"])
    assert any("denoise_image 2/2" in line for line in err)
    assert files(tmp_path) == ["new/ball.json", "new/ball.png"]
    result = client.text2image(
        PROMPT, seed=3, num_steps=1, width=48, height=32, output_format="png"
    )
    assert (tmp_path / "new/ball.png").read_bytes() == result.media
    side = json.loads((tmp_path / "new/ball.json").read_text())
    assert (side["prompt"], side["seed"], side["width"], side["preset"]) == (PROMPT, 3, 48, "toy")
    assert side["seconds"].keys() == result.metadata.seconds.keys()
    assert side["request"]["output_format"] == "png"


def test_a_clip_from_text_is_written(predict2, client, tmp_path):
    code, out, _ = predict2("text2world", "--prompt", PROMPT, *QUICK_CLIP, "--save-path=ball.mp4")
    assert (code, out) == (0, ["ball.mp4"])
    result = client.text2world(PROMPT, num_steps=1, width=48, height=32, num_frames=5)
    assert (tmp_path / "ball.mp4").read_bytes() == result.media
    assert json.loads((tmp_path / "ball.json").read_text())["num_frames"] == 5


def test_a_clip_goes_on_from_the_last_frames_of_another(predict2, client, clip_mp4, tmp_path):
    (tmp_path / "in.MP4").write_bytes(clip_mp4)
    code, out, _ = predict2(
        *("video2world", "--input_path", "in.MP4", "--num_conditional_frames", 5),
        *("--prompt", PROMPT, "--num_steps", 1, "--quiet"),
    )
    assert (code, out) == (0, [])
    result = client.video2world(PROMPT, video=clip_mp4, num_conditional_frames=5, num_steps=1)
    assert (tmp_path / "output/generated_video.mp4").read_bytes() == result.media
    side = json.loads((tmp_path / "output/generated_video.json").read_text())
    assert side["request"]["video"]["sha256"] == hashlib.sha256(clip_mp4).hexdigest()


def test_pictures_are_taken_as_people_see_them(predict2, picture, tmp_path):
    """However they are stored: format, letters of the name, alpha, rotation, palette, depth."""
    colour = Image.fromarray(picture)
    grey = colour.convert("L")
    opaque = colour.copy()
    opaque.putalpha(255)
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: turn a quarter clockwise to see it upright
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    photo = io.BytesIO()
    colour.save(photo, "JPEG")
    for name, image, options in (
        ("colour.png", colour, {}),
        ("COLOUR2.PNG", colour, {}),
        ("lossless.webp", colour, {"lossless": True}),
        ("opaque.png", opaque, {}),
        ("turned.png", colour.transpose(Image.Transpose.ROTATE_90), {"exif": turned}),
        ("grey.png", grey, {}),
        ("grey as colour.png", grey.convert("RGB"), {}),
        ("grey palette.png", grey.convert("P"), {}),
        ("grey 16 bit.png", deep, {}),
    ):
        image.save(tmp_path / name, **options)
    (tmp_path / "photo.jpg").write_bytes(photo.getvalue())
    (tmp_path / "PHOTO2.JPG").write_bytes(photo.getvalue())
    alike = [
        ["colour.png", "COLOUR2.PNG", "lossless.webp", "opaque.png", "turned.png"],
        ["grey.png", "grey as colour.png", "grey palette.png", "grey 16 bit.png"],
        ["photo.jpg", "PHOTO2.JPG"],
    ]
    inputs = [name for group in alike for name in group]
    batch = [
        {"prompt": PROMPT, "input_video": name, "output_video": f"{i}.mp4"}
        for i, name in enumerate(inputs)
    ]
    (tmp_path / "batch.json").write_text(json.dumps(batch))
    code, _, err = predict2(
        "video2world", "--batch_input_json", "batch.json", "--num_steps", 1, "--num_frames", 5
    )
    assert code == 0, err
    made = {name: (tmp_path / f"{i}.mp4").read_bytes() for i, name in enumerate(inputs)}
    groups = [{made[name] for name in group} for group in alike]
    assert [len(group) for group in groups] == [1, 1, 1]
    assert len(set.union(*groups)) == 3


def test_one_bad_item_stops_no_batch_and_resume_does_only_what_is_missing(
    predict2, picture_png, tmp_path
):
    (tmp_path / "in.png").write_bytes(picture_png)
    (tmp_path / "bad.jpg").write_text("this is no picture")
    batch = [
        {"prompt": PROMPT, "input_video": "in.png", "output_video": "a.mp4"},
        {"prompt": PROMPT, "input_video": "bad.jpg", "output_video": "b.mp4"},
        {"prompt": "", "input_video": "in.png", "output_video": "c.mp4"},
        {"prompt": PROMPT, "input_video": "in.png", "output_video": "d.mp4", "seed": 2},
    ]
    (tmp_path / "batch.json").write_text(json.dumps(batch))
    command = ("video2world", "--batch_input_json", "batch.json", *QUICK_CLIP)

    def rows(lines):
        cells = ([cell.strip() for cell in line.split("│")[1:-1]] for line in lines)
        return {row[1]: (row[2], row[4]) for row in cells if len(row) == 5}

    code, out, _ = predict2(*command)
    assert code == 1
    assert rows(out) == {
        "a.mp4": ("done", ""),
        "b.mp4": ("failed", "the image can't be read as jpg, png or webp"),
        "c.mp4": ("failed", "prompt is empty; say what to generate"),
        "d.mp4": ("done", ""),
    }
    assert {f for f in files(tmp_path) if f.endswith(".mp4")} == {"a.mp4", "d.mp4"}

    (tmp_path / "bad.jpg").write_bytes(picture_png)  # by its name still a jpg: the bytes count
    batch[2]["prompt"] = "a blue ball"
    batch[3]["seed"] = 4
    (tmp_path / "batch.json").write_text(json.dumps(batch))
    before = {name: (tmp_path / name).read_bytes() for name in ("a.mp4", "d.mp4")}
    made_at = (tmp_path / "a.mp4").stat().st_mtime_ns
    code, out, _ = predict2(*command, "--resume")
    assert code == 0
    assert {output: status for output, (status, _) in rows(out).items()} == {
        "a.mp4": "skipped",
        "b.mp4": "done",
        "c.mp4": "done",
        "d.mp4": "done",
    }
    assert (tmp_path / "a.mp4").stat().st_mtime_ns == made_at
    assert (tmp_path / "b.mp4").read_bytes() == before["a.mp4"]
    assert (tmp_path / "d.mp4").read_bytes() != before["d.mp4"]


@pytest.fixture
def steps_done(triton):
    def steps_done():
        [stats] = triton.get_inference_statistics("text2image_denoiser").model_stats
        return int(stats.inference_count)

    return steps_done


def test_ctrl_c_leaves_no_file_and_frees_the_server(start, steps_done, tmp_path):
    before = steps_done()
    run = start("text2image", "--num_steps", "100", "--save_path", "never.jpg")
    run.interrupt_after("encode_text 1/1")
    code, out, err = run.end()
    assert (code, out) == (130, [])
    assert err[-1] == "predict2: cancelled"
    assert files(tmp_path) == []
    at_end = steps_done()
    time.sleep(0.5)  # some fifty steps
    assert steps_done() - at_end <= 5
    assert steps_done() - before < 101


def test_ctrl_c_in_a_batch_keeps_what_is_done(start, tmp_path):
    batch = [{"prompt": PROMPT, "num_steps": steps} for steps in (1, 100, 1)]
    (tmp_path / "batch.json").write_text(json.dumps(batch))
    run = start("text2image", "--batch_input_json", "batch.json")
    run.interrupt_after("[2/3] output_1.jpg: encode_text")
    code, out, _ = run.end()
    assert code == 130
    assert [word for word in ("done", "cancelled", "not run") if word in "\n".join(out)] == [
        "done",
        "cancelled",
        "not run",
    ]
    assert files(tmp_path) == ["batch.json", "output_0.jpg", "output_0.json"]
    with Image.open(tmp_path / "output_0.jpg") as image:
        image.load()


def test_the_demo_makes_a_picture_a_clip_and_its_sheet(predict2, read_mp4, tmp_path):
    code, out, _ = predict2("demo", "--output_dir", "made")
    assert code == 0
    assert out == [
        "picture: made/picture.jpg",
        "clip: made/clip.mp4",
        "contact sheet: made/clip_sheet.png",
    ]
    with Image.open(tmp_path / "made/picture.jpg") as image:
        assert image.size == TOY.size("text2image", "16:9")
    frames, fps = read_mp4((tmp_path / "made/clip.mp4").read_bytes())
    width, height = TOY.size("text2world", "16:9")
    assert (frames.shape, fps) == ((13, height, width, 3), 8)
    code, out, _ = predict2("sheet", "made/clip.mp4", "again.png", "--columns", "13")
    assert (code, out) == (0, ["again.png"])
    with (
        Image.open(tmp_path / "made/clip_sheet.png") as sheet,
        Image.open(tmp_path / "again.png") as again,
    ):
        assert again.size[0] > 13 * width
        assert height <= again.size[1] < 2 * height
        assert sheet.size[0] < again.size[0]
        assert sheet.size[0] * sheet.size[1] >= 13 * width * height


@pytest.mark.parametrize("command", [["text2image"], ["demo"], ["ready", "--timeout", "1"]])
def test_without_a_server_one_line_says_what_to_do(predict2, command, tmp_path):
    url = "127.0.0.1:1"  # a port that needs root, and nobody takes
    code, out, err = predict2(*command, url=url)
    assert (code, out) == (1, [])
    [line] = err
    assert line.startswith("predict2: ")
    assert url in line
    assert "predict2-serve" in line
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "40", "--height", "48"], "width 40 must be a positive multiple of 16"),
        (["--resolution", "720"], "resolution 720 was asked for, but this server runs preset toy"),
        (["--num_steps", "100", "--timeout", "0.1"], "the request's time limit"),
    ],
)
def test_what_the_server_refuses_is_said_in_one_line(predict2, arguments, message, tmp_path):
    code, out, err = predict2("text2image", "--quiet", *arguments)
    assert (code, out) == (1, [])
    [line] = err
    assert line.startswith(f"predict2: {message}")
    assert files(tmp_path) == []


def test_ready_answers_at_once_when_the_server_is(predict2, server):
    assert predict2("ready") == (0, [f"{server.url} is ready"], [])
