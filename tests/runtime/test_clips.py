# SPDX-License-Identifier: Apache-2.0
import av
import numpy as np
import pytest

from predict2_runtime import clips
from predict2_runtime.clips import sample_clip
from predict2_runtime.frames import check_length, encode_mp4
from predict2_runtime.language.vision import clip_size
from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import LIMITS, Limits


def clip(count, fps=16, height=64, width=112):
    """An mp4 whose every frame is one grey, 2 brighter than the one before."""
    levels = np.arange(count, dtype=np.uint8)[:, None, None, None] * 2
    return encode_mp4(np.broadcast_to(levels, (count, height, width, 3)), fps)


def assert_are(frames, numbers):
    """They are those frames of `clip`; its greys are off by up to 1 after the codec's limited range."""
    np.testing.assert_allclose(frames.mean((1, 2, 3)) / 2, numbers, atol=0.7)


def test_frames_are_taken_evenly_from_first_to_last():
    frames, fps = sample_clip(clip(93), 2.0)
    assert_are(frames, [0, 10, 20, 31, 41, 51, 61, 72, 82, 92])
    assert fps == pytest.approx(10 / 93 * 16)


@pytest.mark.parametrize(
    ("count", "file_fps", "fps", "taken"),
    [
        (93, 16, 16.0, 92),  # whole pairs
        (93, 10, 16.0, 92),  # no frame twice
        (20, 10, 2.0, 4),
        (8, 30, 2.0, 4),  # 4 at least
        (3, 16, 2.0, 2),  # as far as there are any
        (1, 16, 16.0, 1),
    ],
)
def test_frames_are_as_many_as_fps_asks_for(count, file_fps, fps, taken):
    assert len(sample_clip(clip(count, file_fps), fps)[0]) == taken


def test_a_long_clip_gives_no_more_than_the_most(monkeypatch):
    monkeypatch.setattr(clips, "MAX_FRAMES", 6)
    frames, fps = sample_clip(clip(64), 16.0)
    assert_are(frames, [0, 13, 25, 38, 50, 63])
    assert fps == pytest.approx(6 / 64 * 16)


def test_frames_are_shrunk_to_what_is_looked_at():
    frames, _ = sample_clip(clip(5, height=704, width=1280), 16.0)
    assert frames.shape[1:3] == clip_size(4, 704, 1280)
    assert frames.dtype == np.uint8


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"media_frames": 10}, "12 frames or more; the limit is 10"),
        ({"media_pixels": 100}, "112 x 64 pixels"),
        (
            {"media_total_pixels": 12 * 112 * 64 - 1},
            "86016 pixels or more in all its frames; the limit is 86015",
        ),
        ({"media_bytes": 100}, "bytes; the limit is 100"),
        ({"media_seconds": 0.5}, r"0\.75 s or longer; the limit is 0\.5 s"),
    ],
)
def test_a_clip_over_its_limits_is_refused_with_the_owners_way_out(limits, message):
    [name] = limits
    with pytest.raises(InvalidRequestError, match=f"{message}.*predict2-serve --limit {name}="):
        sample_clip(clip(12), 2.0, Limits(**limits))


def test_ten_minutes_of_full_hd_are_within_the_limits():
    check_length(10 * 60 * 30, 10 * 60 * 30 * 1920 * 1080, 10 * 60, LIMITS)


@pytest.mark.parametrize("data", [b"", b"no video", clip(5)[:400]])
def test_what_is_no_mp4_is_refused(data):
    with pytest.raises(InvalidRequestError, match="can't be read as an mp4"):
        sample_clip(data, 2.0)


def test_an_mp4_without_pictures_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(InvalidRequestError, match="no video stream"):
        sample_clip(path.read_bytes(), 2.0)


def test_a_damaged_clip_gives_some_of_its_frames_or_is_refused():
    data = bytearray(clip(93, height=256, width=256))
    start = data.index(b"mdat")
    data[start + 2000 :] = data[start + 2000 :].replace(b"\x00\x00", b"\xff\xff", 40)
    try:
        frames, _ = sample_clip(bytes(data), 16.0)
    except InvalidRequestError:
        return  # just as well
    assert 1 <= len(frames) <= 92
