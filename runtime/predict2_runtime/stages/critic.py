# SPDX-License-Identifier: Apache-2.0
"""The critic stage: asks the reasoner several times whether something is wrong with a clip."""

from dataclasses import dataclass
from typing import Any

from predict2_runtime.bls import Call
from predict2_runtime.clips import sample_clip
from predict2_runtime.language import Question
from predict2_runtime.tensors import parse_number
from predict2_spec.critic import MAX_TRIALS, NUM_TRIALS, score
from predict2_spec.limits import LIMITS, Limits
from predict2_spec.tensors import REASONER

from . import Arrays

FPS = 16.0  # of a clip the critic looks at
MAX_NEW_TOKENS = 4096
INSTRUCTION = """\
You inspect short video clips that a generative model made. Watch the whole clip and find out whether it holds \
artifacts or anomalies: things that footage of the real world couldn't show. Look at each subject and at the scene \
around it. Ask whether things keep their shape, number, colour and identity from frame to frame; whether hands, \
faces, joints and wheels are built as they should be; whether weight, contact, collisions, liquids, cloth and shadows \
obey physics; whether effects follow their causes; whether the camera, the light and the background stay consistent; \
whether anything flickers, melts, tears, merges, or comes out of nothing. Ordinary faults of filming, such as a plain \
picture, compression, a cut-off subject or slow action, are no anomalies.

Answer in exactly this form, with one component for each part of the clip that you examine, and Yes or No where it \
says Yes/No, Yes meaning that there is an anomaly:
<think>
<overview>What the clip shows, and what happens in it, in a few sentences.</overview>
<component name="Name of the part">
<analysis>What you saw of this part over time, and why it is or isn't as it should be.</analysis>
<anomaly>Yes/No</anomaly>
</component>
</think>
<answer>Yes/No</answer>"""
QUESTION = "Are there artifacts or anomalies in this video clip?"


@dataclass(frozen=True)
class Critic:
    """Has the reasoner judge clips."""

    call: Call
    limits: Limits = LIMITS

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """`video` UINT8 [bytes], optional `num_trials` and `seed` -> `responses` strings, and `score` from 0 to 1.

        Raises:
            InvalidRequestError: the video can't be used, or a number is beyond its limits.
        """
        trials = parse_number("num_trials", inputs.get("num_trials", [NUM_TRIALS]), 1, MAX_TRIALS)
        seed = parse_number("seed", inputs.get("seed", [0]), 0, 2**32 - 1)
        frames, fps = sample_clip(inputs["video"].tobytes(), FPS, self.limits)
        question = Question(
            text=QUESTION,
            system=INSTRUCTION,
            frames_first=True,
            num_responses=trials,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=0.6,
            top_p=0.95,
            top_k=50,
            repetition_penalty=1.05,
            seed=seed,
        )
        answer = self.call(REASONER, question=question.to_json(), frames=frames, fps=fps)
        return {"responses": answer["responses"], "score": score(answer["responses"])}
