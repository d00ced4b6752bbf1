# SPDX-License-Identifier: Apache-2.0
"""Reading inputs, writing results whole, and contact sheets."""

import os
import stat

import av
import numpy as np
import pytest
from PIL import Image

from predict2_client import media
from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import LIMITS, MAX_FILE_BYTES


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "image"),
        ("a.JPG", "image"),
        ("a.Jpeg", "image"),
        ("a.png", "image"),
        ("a.WEBP", "image"),
        ("a.mp4", "video"),
        ("a.b.MP4", "video"),
    ],
)
def test_extension_in_any_letter_case_decides(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"data")
    assert media.read_input(tmp_path / name) == {kind: b"data"}


@pytest.mark.parametrize("name", ["a.gif", "a.mov", "a", "mp4", "a.jpg.txt"])
def test_other_extension_is_refused_with_those_accepted(tmp_path, name):
    (tmp_path / name).write_bytes(b"data")
    with pytest.raises(InvalidRequestError, match=r"\.jpg \.jpeg \.png \.webp.*\.mp4"):
        media.read_input(tmp_path / name)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"none\.png does not exist"):
        media.read_input(tmp_path / "none.png")


def test_folder_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InvalidRequestError, match="is not a file"):
        media.read_input(tmp_path / "a.png")


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(InvalidRequestError, match="is empty"):
        media.read_input(tmp_path / "a.png")


def test_file_that_no_request_can_hold_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "a.mp4"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse; no memory would hold it
    with pytest.raises(InvalidRequestError, match=f"a request holds {MAX_FILE_BYTES} at most"):
        media.read_input(path)


def test_how_large_a_file_may_be_is_for_the_server_to_say(tmp_path):
    path = tmp_path / "a.mp4"
    with path.open("wb") as file:
        file.truncate(LIMITS.media_bytes + 1)
    assert len(media.read_input(path)["video"]) == LIMITS.media_bytes + 1


def test_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / ("x" * 250 + ".bin")
    media.write_whole(path, b"old")
    media.write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_who_still_reads_the_old_file_never_sees_the_new_one(tmp_path):
    path = tmp_path / "a.bin"
    media.write_whole(path, b"old")
    with path.open("rb") as reader:
        media.write_whole(path, b"new")
        assert reader.read() == b"old"


def test_failed_write_leaves_the_old_file_and_no_part(tmp_path):
    target = tmp_path / "folder"
    (target / "inside").mkdir(parents=True)  # a folder can't be replaced by a file
    with pytest.raises(OSError, match="folder"):
        media.write_whole(target, b"new")
    assert list(tmp_path.iterdir()) == [target]


def test_written_file_gets_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "usual").touch()
    media.write_whole(tmp_path / "ours", b"")
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("usual", "ours")]
    assert modes[0] == modes[1]


def write_clip(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def grey_frames(count, height=32, width=64):
    levels = np.linspace(20, 220, count).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def test_clip_is_decoded_to_all_its_frames(tmp_path):
    frames = grey_frames(9)
    write_clip(tmp_path / "a.mp4", frames)
    decoded = media.decode_clip(tmp_path / "a.mp4")
    assert decoded.shape == frames.shape
    np.testing.assert_allclose(decoded, frames, atol=4)  # limited-range YUV rounds


@pytest.mark.parametrize("content", [b"", b"no clip at all"])
def test_what_is_no_clip_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InvalidRequestError, match=r"a\.mp4 can't be decoded"):
        media.decode_clip(tmp_path / "a.mp4")


def test_picture_is_no_clip_without_a_video_stream(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(InvalidRequestError, match=r"a\.mp4 can't be decoded"):
        media.decode_clip(tmp_path / "a.mp4")


def test_sheet_shows_every_frame_once_in_reading_order():
    frames = grey_frames(5)
    sheet = np.asarray(media.contact_sheet(frames, columns=3))
    assert sheet.shape == (2 * 34 - 2, 3 * 66 - 2, 3)
    corners = [sheet[(i // 3) * 34 + 30, (i % 3) * 66 + 60] for i in range(5)]
    np.testing.assert_array_equal(corners, frames[:, 0, 0])
    assert (sheet[35:, 132:] == 255).all()  # the cell no frame is left for


def test_sheet_numbers_the_frames():
    flat = np.full((2, 32, 64, 3), 100, np.uint8)
    sheet = np.asarray(media.contact_sheet(flat, columns=2))
    first, second = sheet[:, :64], sheet[:, 66:]
    assert (first != 100).any()
    assert (first != second).any()  # 0 and 1 differ, the frames don't


@pytest.mark.parametrize(("count", "columns", "width"), [(13, 0, 3), (1, 0, 1), (2, 9, 2)])
def test_sheet_is_about_square_and_no_wider_than_its_frames(count, columns, width):
    sheet = media.contact_sheet(grey_frames(count), columns)
    assert sheet.width == width * 66 - 2


def test_large_frames_are_shrunk_on_the_sheet():
    sheet = media.contact_sheet(grey_frames(2, height=704, width=1280), columns=1)
    assert sheet.size == (320, 2 * 176 + 2)


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG")])
def test_picture_is_written_in_the_format_of_its_name(tmp_path, name, kind):
    media.write_picture(tmp_path / name, Image.new("RGB", (4, 4)))
    with Image.open(tmp_path / name) as picture:
        assert picture.format == kind
