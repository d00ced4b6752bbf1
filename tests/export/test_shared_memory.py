# SPDX-License-Identifier: Apache-2.0
"""What regions of shared memory are planned; tests/end_to_end/test_rollout.py holds it against a server's."""

from predict2_export.shared_memory import MIB, shared_memory_bytes
from predict2_spec.presets import TOY, find_preset

CLIP = 93 * 960 * 960 * 3  # bytes of the frames of the largest 720p clip, which is square


def test_a_caller_holds_what_the_frame_guard_takes_and_gives_and_what_it_returns():
    preset = find_preset("2b-720p-16fps")
    planned = shared_memory_bytes(preset, {"generate": 4}, upload_bytes=0)
    assert 4 * 3 * CLIP < planned <= 4 * (3 * CLIP + 2 * MIB)


def test_the_guard_and_the_decoder_hold_their_clips():
    preset = find_preset("2b-720p-16fps")
    latents = 16 * 24 * 120 * 120 * 4
    assert 0 < shared_memory_bytes(preset, {"guardrail_video": 1}) - 2 * CLIP <= 2 * MIB
    assert 0 < shared_memory_bytes(preset, {"vae_decoder": 1}) - CLIP - latents <= 2 * MIB


def test_models_without_large_tensors_hold_a_region_each():
    assert shared_memory_bytes(TOY, {"tracking": 2, "guardrail_text": 1}) == 3 * MIB


def test_who_is_handed_files_holds_one_of_the_largest_size_too():
    for model in ("video2world", "generate", "best_of_n", "critic", "prompt_refiner"):
        without, planned = (
            shared_memory_bytes(TOY, {model: 2}, upload_bytes=size) for size in (0, 64 * MIB)
        )
        assert planned == without + 2 * 64 * MIB
    assert shared_memory_bytes(TOY, {"text2image": 1}) < 3 * MIB
