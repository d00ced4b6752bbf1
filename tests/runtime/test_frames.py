# SPDX-License-Identifier: Apache-2.0
import io
import struct

import av
import numpy as np
import pytest
from PIL import Image

from predict2_runtime.frames import (
    decode_image,
    decode_last_frames,
    encode_image,
    encode_mp4,
    from_unit_range,
    to_unit_range,
)
from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import Limits

RNG = np.random.RandomState(0)


def smooth_clip(count=13, height=64, width=112):
    """A moving gradient; codecs keep it nearly as it is."""
    y, x = np.mgrid[:height, :width]
    clip = [np.stack([x + 4 * i, y * 2, np.full_like(x, 20 * i)], -1) % 256 for i in range(count)]
    return np.stack(clip).astype(np.uint8)


def file_of(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def test_bytes_survive_the_unit_range():
    values = np.arange(256, dtype=np.uint8)
    unit = to_unit_range(values)
    assert unit.min() == -1
    assert unit.max() == 1
    assert np.array_equal(from_unit_range(unit), values)


def test_values_beyond_the_range_are_clamped():
    assert from_unit_range(np.float32([-3, -1, 0, 1, 7])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_a_lossless_picture_is_read_exactly(image_format):
    picture = RNG.randint(0, 256, (20, 30, 3), dtype=np.uint8)
    data = file_of(Image.fromarray(picture), image_format, lossless=True)
    assert np.array_equal(decode_image(data), picture)


def test_transparency_is_laid_over_black():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[:2, :, 3] = 200, 255
    decoded = decode_image(file_of(Image.fromarray(rgba), "PNG"))
    assert (decoded[:2, :, 0] == 200).all()
    assert (decoded[2:] == 0).all()


def test_grey_pictures_become_rgb():
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    decoded = decode_image(file_of(Image.fromarray(grey), "PNG"))
    assert np.array_equal(decoded, np.stack([grey] * 3, -1))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    deep = np.array([[0, 32768, 65535]], dtype=np.uint16)
    decoded = decode_image(file_of(Image.fromarray(deep), "PNG"))
    assert decoded[0, :, 0].tolist() == [0, 127, 255]


def test_exif_rotation_is_honoured():
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    decoded = decode_image(file_of(Image.fromarray(picture), "PNG", exif=exif))
    assert decoded.shape == (16, 8, 3)
    assert (decoded[:8] == 255).all()
    assert (decoded[8:] == 0).all()


@pytest.mark.parametrize(
    "data",
    [b"", b"just text, not a picture", file_of(Image.new("RGB", (64, 64)), "PNG")[:60], b"GIF89a"],
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(InvalidRequestError, match="the image can't be read as jpg, png or webp"):
        decode_image(data)


def test_a_truncated_jpeg_is_refused():
    picture = Image.fromarray(RNG.randint(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(InvalidRequestError, match="truncated"):
        decode_image(file_of(picture, "JPEG")[:-500])


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded():
    data = file_of(Image.new("RGB", (100, 100)), "PNG")
    with pytest.raises(InvalidRequestError, match="100 x 100 pixels; the limit is 9999"):
        decode_image(data, Limits(media_pixels=9999))


def test_jpeg_and_png_files_hold_the_picture():
    picture = smooth_clip(1)[0]
    assert np.array_equal(decode_image(encode_image(picture, "png")), picture)
    jpeg = decode_image(encode_image(picture, "jpg"))
    assert np.abs(jpeg.astype(int) - picture).mean() < 4
    assert encode_image(picture, "jpg")[:2] == b"\xff\xd8"


def test_a_clip_survives_its_file_with_its_frame_rate():
    clip = smooth_clip()
    data = encode_mp4(clip, 8)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 8
        assert (stream.codec_context.name, stream.frames) == ("h264", 13)
    decoded = decode_last_frames(data, 13)
    # H.264 at this quality and half-resolution colour: some grey levels
    assert np.abs(decoded.astype(int) - clip).mean() < 4


def test_the_same_frames_make_the_same_bytes():
    noise = RNG.randint(0, 256, (13, 8, 14, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    assert len({encode_mp4(noise, 8) for _ in range(20)}) == 1


def test_the_last_frames_of_a_clip_are_taken():
    clip = smooth_clip()
    data = encode_mp4(clip, 8)
    everything = decode_last_frames(data, 13)
    assert np.array_equal(decode_last_frames(data, 5), everything[-5:])


def rotated(data, matrix):
    """The mp4 with another display matrix in its track header, as phones write it."""
    identity = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    at = data.index(identity, data.index(b"tkhd"))
    return data[:at] + struct.pack(">9i", *matrix) + data[at + 36 :]


def test_a_rotated_clip_is_turned_upright():
    clip = smooth_clip(1)
    data = encode_mp4(clip, 8)
    clockwise = (0, 0x10000, 0, -0x10000, 0, 0, 64 * 0x10000, 0, 0x40000000)
    upright = decode_last_frames(rotated(data, clockwise), 1)[0]
    assert np.array_equal(upright, np.rot90(decode_last_frames(data, 1)[0], k=-1))


def test_too_few_frames_are_counted_in_the_message():
    with pytest.raises(InvalidRequestError, match=r"has 3 frames; .* 5 needs at least 5"):
        decode_last_frames(encode_mp4(smooth_clip(3), 8), 5)


def fragmented(clip, fps=8):
    """An mp4 whose header doesn't say how many frames there are."""
    buffer = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"}
    with av.open(buffer, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"media_frames": 6}, "has {frames} frames or more; the limit is 6. Cut it"),
        (
            {"media_total_pixels": 43_008},
            "has {pixels} pixels or more in all its frames; the limit is 43008",
        ),
    ],
)
def test_what_would_take_too_long_is_refused_by_its_header_or_while_it_is_decoded(limits, message):
    plain, without_number = encode_mp4(smooth_clip(), 8), fragmented(smooth_clip())
    assert len(decode_last_frames(without_number, 5)) == 5
    for data, seen in ((plain, 13), (without_number, 7)):
        with pytest.raises(
            InvalidRequestError, match=message.format(frames=seen, pixels=seen * 112 * 64)
        ):
            decode_last_frames(data, 5, Limits(**limits))


@pytest.mark.parametrize(
    "write", [lambda clip: encode_mp4(clip, 1), lambda clip: fragmented(clip, 1)]
)
def test_a_clip_that_plays_too_long_is_refused_by_its_header_or_while_it_is_decoded(write):
    data = write(smooth_clip())  # 13 frames, one a second
    assert len(decode_last_frames(data, 5, Limits(media_seconds=13))) == 5
    with pytest.raises(
        InvalidRequestError, match=r"the video plays [\d.]+ s or longer; the limit is 6 s"
    ):
        decode_last_frames(data, 5, Limits(media_seconds=6))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_mp4_is_refused(keep):
    data = encode_mp4(smooth_clip(), 8)
    length = int(keep * len(data)) if keep < 1 else keep
    with pytest.raises(InvalidRequestError, match="the video"):
        decode_last_frames(data[:length], 5)


def test_a_truncated_mp4_with_its_index_in_front_is_refused(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 112, "yuv420p"
        for picture in smooth_clip():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert decode_last_frames(data, 1).shape == (1, 64, 112, 3)
    with pytest.raises(InvalidRequestError, match="can't be read as an mp4"):
        decode_last_frames(data[:-20], 1)


def test_an_mp4_without_pictures_is_refused():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        stream.layout = "mono"
        for i in range(4):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            sound.sample_rate, sound.pts = 44100, 1024 * i
            container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(InvalidRequestError, match="holds no video stream"):
        decode_last_frames(buffer.getvalue(), 1)


def test_a_playlist_cannot_make_the_server_read_other_files(tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(encode_mp4(smooth_clip(), 8))
    playlists = (f"#EXTM3U\n#EXTINF:1,\n{secret}\n", f"ffconcat version 1.0\nfile {secret}\n")
    for playlist in playlists:
        with pytest.raises(InvalidRequestError, match="can't be read as an mp4"):
            decode_last_frames(playlist.encode(), 1)
