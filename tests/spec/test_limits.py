# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import LIMITS, MAX_FILE_BYTES, parse_limit


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("num_steps=50", ("num_steps", 50)),
        ("guidance=12.5", ("guidance", 12.5)),
        ("media_bytes=64MB", ("media_bytes", 64_000_000)),
        ("media_bytes=64MiB", ("media_bytes", 64 * 1024**2)),
        ("media_bytes=0.5g", ("media_bytes", 500_000_000)),
        ("prompt_bytes=8KiB", ("prompt_bytes", 8192)),
        ("media_total_pixels=40G", ("media_total_pixels", 40_000_000_000)),
        ("media_seconds=90", ("media_seconds", 90.0)),
    ],
)
def test_a_limit_is_read(text, limit):
    name, value = parse_limit(text)
    assert (name, value) == limit
    assert type(value) is type(getattr(LIMITS, name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_step=5", "must be NAME=VALUE, with a NAME of prompt_bytes, num_steps, guidance"),
        ("num_steps", "must be NAME=VALUE|whole number"),
        ("num_steps=", "must be a whole number above 0"),
        ("num_steps=0", "above 0"),
        ("num_steps=-1", "above 0"),
        ("num_steps=2.5", "'2.5' must be a whole number"),
        ("guidance=nan", "must be a number"),
        ("guidance=inf", "must be a number"),
        ("guidance=1e5", "must be a number"),
        ("media_bytes=64 beers", "64MB and 64MiB are understood"),
        ("media_bytes=2GiB", f"up to {MAX_FILE_BYTES}"),
        ("num_generations=17", "up to 16"),
        ("prompt_bytes=2MiB", "up to 1048576"),
    ],
)
def test_what_is_no_limit_is_refused(text, message):
    with pytest.raises(InvalidRequestError, match=message):
        parse_limit(text)
