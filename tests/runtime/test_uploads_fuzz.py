# SPDX-License-Identifier: Apache-2.0
"""Damaged and malicious pictures and clips: each is read or refused in plain words, whatever its bytes are."""

import io
import re

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from predict2_runtime.clips import sample_clip
from predict2_runtime.frames import decode_image, decode_last_frames
from predict2_spec.errors import InvalidRequestError
from predict2_spec.requests import LIMITS

LEAKS = re.compile(r"Traceback|File \"|object at 0x|/(home|root|usr|tmp|site-packages)/")


def picture(image_format, mode="RGB", **options):
    noise = np.random.RandomState(0).randint(0, 256, (24, 20, 4), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise, "RGBA").convert(mode).save(data, image_format, **options)
    return data.getvalue()


def clip(codec="libx264", container="mp4", frames=8, **options):
    data = io.BytesIO()
    with av.open(data, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for k in range(frames):
            pixels = np.random.RandomState(k).randint(0, 256, (16, 32, 3), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return data.getvalue()


PICTURES = (
    picture("JPEG"),
    picture("JPEG", progressive=True),
    picture("JPEG", "CMYK"),
    picture("PNG"),
    picture("PNG", "RGBA"),
    picture("PNG", "P"),
    picture("PNG", "1"),
    picture("WEBP"),
    picture("WEBP", "RGBA", lossless=True),
    picture("GIF", "P"),
    picture("TIFF"),
)
CLIPS = (
    clip(),
    clip(movflags="frag_keyframe+empty_moov"),
    clip("mpeg4"),
    clip("mpeg4", "avi"),
    clip("libx264", "matroska"),
)
WORDS = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"moov", b"IHDR", b"\xff\xd8")  # fmt: skip


@st.composite
def damaged(draw, samples):
    """One of the files with bytes flipped, cut out, repeated or replaced by words that parsers give a meaning."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        length = draw(st.sampled_from((1, 2, 4, 16, 200)))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            data[at] ^= draw(st.integers(1, 255))
        elif kind == 1:
            data[at : at + 4] = draw(st.sampled_from(WORDS))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def read_or_refused(read, data):
    """What was read; None if it was refused as it should be."""
    try:
        return read(data)
    except InvalidRequestError as error:
        assert not LEAKS.search(str(error)), error  # noqa: PT017
        return None


def check_frames(frames):
    assert frames.dtype == np.uint8
    assert frames.shape[-1] == 3
    assert 0 < frames.shape[-3] * frames.shape[-2] <= LIMITS.media_pixels


@given(data=damaged(PICTURES))
@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_pictures_are_read_or_refused(data):
    frames = read_or_refused(decode_image, data)
    if frames is not None:
        check_frames(frames)


@given(data=damaged(CLIPS), count=st.sampled_from((1, 5)))
def test_damaged_clips_are_read_or_refused(data, count):
    frames = read_or_refused(lambda data: decode_last_frames(data, count), data)
    if frames is not None:
        assert len(frames) == count
        check_frames(frames)


@given(data=damaged(CLIPS))
def test_damaged_clips_are_sampled_or_refused(data):
    sampled = read_or_refused(lambda data: sample_clip(data, 4.0), data)
    if sampled is not None:
        check_frames(sampled[0])
        assert 0 < sampled[1] < 1e6


@given(data=st.binary(max_size=400))
def test_noise_is_refused(data):
    assert read_or_refused(decode_image, data) is None
    assert read_or_refused(lambda data: decode_last_frames(data, 1), data) is None
