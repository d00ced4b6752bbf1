# SPDX-License-Identifier: Apache-2.0
"""RetinaFace: a ResNet, a feature pyramid, and for every anchor a box and whether it holds a face.

After "RetinaFace: Single-stage Dense Face Localisation in the Wild" (2019), with torchvision's ResNet-50
(the stride is in the 3x3 convolution). Names are those of the released Resnet50_Final.pth. Its heads for
landmarks are left out: nobody asks where a nose is.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict2_spec.networks import FaceDetectorSpec

from .batch_norm import BatchNorm

EXPANSION = 4  # of a bottleneck: its output over its width
LEVELS = 3  # of the pyramid: strides 8, 16 and 32
CLASSES = 2  # background, face


class FaceDetector(nn.Module):
    """A picture -> a box and a probability for every anchor."""

    def __init__(self, spec: FaceDetectorSpec) -> None:
        super().__init__()
        width = spec.pyramid_width
        stages = [EXPANSION * spec.base_width * 2**stage for stage in range(4)]
        counts = [len(sizes) for sizes in spec.anchors]
        self.anchors = spec.anchors
        self.body = ResNet(spec.base_width, spec.num_blocks)
        self.fpn = Pyramid(stages[-LEVELS:], width)
        self.ssh1, self.ssh2, self.ssh3 = (Context(width) for _ in range(LEVELS))
        self.ClassHead = nn.ModuleList(Head(width, count, CLASSES) for count in counts)
        self.BboxHead = nn.ModuleList(Head(width, count, 4) for count in counts)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Look at pictures.

        Args:
            picture: float32 [B, 3, H, W], BGR, 0..255 minus (104, 117, 123).

        Returns:
            boxes [B, A, 4], offsets from the anchors as the runtime decodes them, and
            probability [B, A], 0..1, that an anchor holds a face. Anchors go by stride, row, column, size.
        """
        scores, boxes = self.heads(picture)
        return boxes, F.softmax(scores, dim=-1)[..., 1]

    def heads(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, A, 2] before softmax, and boxes [B, A, 4]."""
        levels = self.fpn(self.body(picture))
        contexts = (self.ssh1, self.ssh2, self.ssh3)
        features = [ssh(level) for ssh, level in zip(contexts, levels, strict=True)]
        return _all_anchors(self.ClassHead, features), _all_anchors(self.BboxHead, features)


def _all_anchors(heads: Iterable[nn.Module], features: list[Tensor]) -> Tensor:
    return torch.cat([head(x) for head, x in zip(heads, features, strict=True)], dim=1)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size, or divides it by `stride` and rounds up."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class ResNet(nn.Module):
    """The trunk: features at strides 8, 16 and 32."""

    def __init__(self, width: int, num_blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, width, 7, stride=2), BatchNorm(width)
        inputs = width
        for stage, count in enumerate(num_blocks):
            inner = width * 2**stage
            blocks: list[nn.Module] = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(Bottleneck(inputs, inner, stride))
                inputs = EXPANSION * inner
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> three of [B, C, H / stride, W / stride], rounded up."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        features = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            features.append(x)
        return features[-LEVELS:]


class Bottleneck(nn.Module):
    """A residual block: narrow, look around, widen."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1, self.bn1 = conv(inputs, width, 1), BatchNorm(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), BatchNorm(width)
        self.conv3, self.bn3 = conv(width, outputs, 1), BatchNorm(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), BatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, 4 width, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def normed(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution and norm."""
    return nn.Sequential(conv(inputs, outputs, kernel), BatchNorm(outputs))


def activated(inputs: int, outputs: int, kernel: int, leak: float) -> nn.Sequential:
    """Convolution, norm and a rectifier with that slope below zero."""
    return nn.Sequential(*normed(inputs, outputs, kernel), nn.LeakyReLU(leak))


def leak_of(width: int) -> float:
    """The rectifiers' slope in a pyramid of that width: narrow ones leak, the released one doesn't."""
    return 0.1 if width <= 64 else 0.0


class Pyramid(nn.Module):
    """Brings what coarse features know to the fine ones."""

    def __init__(self, inputs: list[int], width: int) -> None:
        super().__init__()
        leak = leak_of(width)
        self.output1, self.output2, self.output3 = (activated(n, width, 1, leak) for n in inputs)
        self.merge1, self.merge2 = (activated(width, width, 3, leak) for _ in range(2))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Features of three strides, fine to coarse -> the same, all of the pyramid's width."""
        fine, middle, coarse = features
        coarse = self.output3(coarse)
        middle = self.output2(middle)
        middle = self.merge2(middle + _as_large_as(middle, coarse))
        fine = self.output1(fine)
        fine = self.merge1(fine + _as_large_as(fine, middle))
        return fine, middle, coarse


def _as_large_as(fine: Tensor, coarse: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")


class Context(nn.Module):
    """Looks 3, 5 and 7 pixels around, the larger ones by 3x3 convolutions in a row (SSH, 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter, leak = width // 2, width // 4, leak_of(width)
        self.conv3X3 = normed(width, half, 3)
        self.conv5X5_1 = activated(width, quarter, 3, leak)
        self.conv5X5_2 = normed(quarter, quarter, 3)
        self.conv7X7_2 = activated(quarter, quarter, 3, leak)
        self.conv7x7_3 = normed(quarter, quarter, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> the same shape."""
        shared = self.conv5X5_1(x)
        parts = (self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared)))
        return F.relu(torch.cat(parts, dim=1))


class Head(nn.Module):
    """A few numbers for every anchor."""

    def __init__(self, width: int, anchors: int, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.conv1x1 = nn.Conv2d(width, anchors * numbers, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> [B, H * W * anchors, numbers]."""
        y: Tensor = self.conv1x1(x).permute(0, 2, 3, 1)
        return y.reshape(x.shape[0], -1, self.numbers)
