# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_spec.errors import InvalidRequestError
from predict2_spec.video import (
    PIXEL_MULTIPLE,
    TEXT2IMAGE_SIZES,
    VIDEO_SIZES,
    VideoShape,
    latent_frames,
    pixel_frames,
)

# (frames, aspect ratio) -> tokens, per class: the published token counts of the original
TOKENS = {
    "720": {("16:9", 93): 84480, ("16:9", 61): 56320, ("1:1", 93): 86400, ("1:1", 61): 57600,
            ("4:3", 93): 63360, ("3:4", 61): 42240},
    "480": {("16:9", 93): 31104, ("16:9", 61): 20736, ("1:1", 93): 21600, ("1:1", 61): 14400,
            ("4:3", 93): 28800, ("3:4", 61): 19200},
}  # fmt: skip


@pytest.mark.parametrize("resolution", TOKENS)
def test_video_sizes_have_the_originals_token_counts(resolution):
    for (ratio, frames), tokens in TOKENS[resolution].items():
        width, height = VIDEO_SIZES[resolution][ratio]
        assert VideoShape(frames, height, width).latent.tokens == tokens


@pytest.mark.parametrize(("ratio", "tokens"), [("16:9", 4080), ("1:1", 4096), ("4:3", 4015)])
def test_pictures_have_the_originals_token_counts(ratio, tokens):
    width, height = TEXT2IMAGE_SIZES[ratio]
    assert VideoShape(1, height, width).latent.tokens == tokens


def test_every_table_size_is_a_whole_number_of_tokens():
    for sizes in (TEXT2IMAGE_SIZES, *VIDEO_SIZES.values()):
        for width, height in sizes.values():
            assert width % PIXEL_MULTIPLE == height % PIXEL_MULTIPLE == 0


def test_portrait_is_landscape_turned():
    for sizes in (TEXT2IMAGE_SIZES, *VIDEO_SIZES.values()):
        assert sizes["9:16"] == sizes["16:9"][::-1]
        assert sizes["3:4"] == sizes["4:3"][::-1]


def test_frames_and_latent_frames_are_inverse():
    assert [latent_frames(n) for n in (1, 5, 13, 61, 93)] == [1, 2, 4, 16, 24]
    assert [pixel_frames(t) for t in (1, 2, 4, 16, 24)] == [1, 5, 13, 61, 93]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((13, 70, 64), "height 70 must be a positive multiple of 16; nearest are 64 and 80"),
        ((13, 64, 0), "width 0 must be a positive multiple of 16; the smallest is 16"),
        ((13, 64, -16), "width -16 must be a positive multiple of 16"),
        ((12, 64, 64), r"num_frames 12 must be 1 \+ 4k; nearest are 9 and 13"),
        ((0, 64, 64), r"num_frames 0 must be 1 \+ 4k; the smallest is 1"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_with_the_nearest_that_do(shape, message):
    with pytest.raises(InvalidRequestError, match=message):
        VideoShape(*shape)
