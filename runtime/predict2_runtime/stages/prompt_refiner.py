# SPDX-License-Identifier: Apache-2.0
"""The prompt refiner stage: a caller's short prompt to the kind of description the networks were trained on."""

from dataclasses import dataclass
from typing import Any

from predict2_runtime.bls import Call
from predict2_runtime.clips import sample_clip
from predict2_runtime.language import Question
from predict2_spec.errors import InvalidRequestError, ServerError
from predict2_spec.limits import LIMITS, Limits
from predict2_spec.requests import check_text
from predict2_spec.tensors import REASONER

from . import Arrays

FPS = 2.0  # of a clip the refiner looks at
MAX_NEW_TOKENS = 512
REPETITION_PENALTY = 1.05
INSTRUCTION = """\
You write the descriptions that a video world model generates its clips from. You are given what a user typed, and \
mostly a picture or clip that the new clip will begin with. Turn the user's words into one full description.

How to write it:
1. Write English, whatever language the user wrote in, as one paragraph of 80 to 100 words.
2. Keep what the user means. Add the details he left out so that the scene can be seen, and take nothing back.
3. If there is a picture or clip, it decides: take appearance, materials, colours, light and place from it, and let \
the action grow out of what it shows.
4. Name the main subject first; say what it looks like, where it stands relative to other things, the style of the \
footage, and how the camera is placed or moves.
5. Movement matters most. Say what moves, which way, how fast, what it touches, and what follows from that.
6. Text the user put in quotation marks, titles and names stay exactly as they are.
7. Answer with the description alone: no heading, no list, no remark, no quotation marks around it.

Example 1
User: robot stacks cups
Description: A grey six-axis robot arm with a black two-finger gripper is bolted to a pale birch table, photographed in \
even studio light. Three red plastic cups stand upright in a row before it. The arm swings down to the right, closes \
its fingers on the rim of the nearest cup, lifts it straight up and carries it in a slow arc over the second, then \
lowers it until both nest with a slight wobble. The shadow of the gripper slides across the wood. The camera \
keeps still at table height, the arm filling the left half of the frame.

Example 2
User: forklift brings the box marked "FRAGILE" to the shelf, evening
Description: A yellow electric forklift with a worn steel mast drives along the aisle of a warehouse towards tall blue \
shelves on the left, a brown cardboard box marked "FRAGILE" on its forks. Low evening sun falls through a row of high \
windows and draws long orange stripes over the polished concrete. The forklift slows, turns its rear wheels sharply \
and lines up with an empty bay; the mast rises smoothly, the box sways a little, then glides onto the shelf. The \
camera follows from behind at shoulder height, in the plain look of a handheld documentary.

Example 3
User: a hand pours water in the glass
Description: A close view of a kitchen counter of dark slate, lit softly from a window on the right. A person's hand \
with a silver ring holds a clear glass jug above an empty tumbler in the middle of the frame and tilts it steadily. A \
thin stream of water falls, breaks into bubbles at the bottom, and the level climbs evenly while small ripples run to \
the walls. When the tumbler is nearly full the hand turns upright again and the last drops fall. The camera rests \
level with the rim, with a shallow, realistic depth of field."""


@dataclass(frozen=True)
class PromptRefiner:
    """Has the reasoner rewrite prompts."""

    call: Call
    limits: Limits = LIMITS

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """`prompt`, and optional `frames` UINT8 [F, H, W, 3] or `video` UINT8 [bytes] -> `refined_prompt`, plain ASCII.

        Raises:
            InvalidRequestError: the prompt, frames or video can't be used.
            ServerError: the reasoner answered with nothing.
        """
        if len(inputs["prompt"]) != 1:
            raise InvalidRequestError(f"prompt holds {len(inputs['prompt'])} values; give one")
        prompt = inputs["prompt"][0]
        check_text("prompt", prompt, self.limits)
        question = Question(
            text=f"User: {prompt}\nDescription:",
            system=INSTRUCTION,
            max_new_tokens=MAX_NEW_TOKENS,
            repetition_penalty=REPETITION_PENALTY,
            ascii_only=True,
        )
        answer = self.call(REASONER, question=question.to_json(), **self._seen(inputs))
        return {"refined_prompt": _tidy(answer["responses"][0], self.limits)}

    def _seen(self, inputs: Arrays) -> dict[str, Any]:
        """What the reasoner is shown: pictures, or a clip's frames and their fps."""
        frames, video = inputs.get("frames"), inputs.get("video")
        if frames is not None and video is not None:
            raise InvalidRequestError(
                "frames and a video are both given; give one of them or neither"
            )
        if video is not None:
            frames, fps = sample_clip(video.tobytes(), FPS, self.limits)
            return {"frames": frames, "fps": fps}
        return {} if frames is None else {"frames": frames}


def _tidy(response: str, limits: Limits) -> str:
    """The response as a prompt: one line of plain ASCII, within the limit of prompts."""
    words = " ".join(response.split())
    text = "".join(c for c in words if c.isascii() and c.isprintable())[: limits.prompt_bytes]
    if not text:
        raise ServerError(
            "the reasoner wrote nothing for this prompt; try again, or send the request with "
            "disable_prompt_refiner"
        )
    return text
