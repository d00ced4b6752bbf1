# SPDX-License-Identifier: Apache-2.0
"""The face detector against transformers' ResNet and the published formulas, with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from transformers import ResNetBackbone, ResNetConfig

from predict2_export.checkpoint.fit import check_fit, load_strict
from predict2_export.checkpoint.names import face_detector_state_dict
from predict2_export.networks.face_detector import FaceDetector
from predict2_spec.errors import CheckpointError
from predict2_spec.networks import FRAME_GUARD, TOY_FRAME_GUARD, FaceDetectorSpec

SPECS = {
    "toy": TOY_FRAME_GUARD.faces,
    # Wide enough that nothing leaks, though the narrowest rectifier inside is 24 wide.
    "wider": FaceDetectorSpec(base_width=16, num_blocks=(2, 2, 3, 2), pyramid_width=96),
}
ANCHORS = 2  # a place


def random_weights(module, seed=0):
    """Weights that keep signals alive, and norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.ndim > 1:
            # Pictures are in the hundreds; scores have to be small, or every probability is 0 or 1.
            gain = 0.004 if "Head" in name else 1.2
            value.normal_(0, gain / value[0].numel() ** 0.5, generator=generator)
        elif name.endswith(("running_var", "weight")):
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.normal_(0, 0.2, generator=generator)
    return module.eval().requires_grad_(False)


def transformers_body(spec, state):
    """transformers' ResNet in float64 with the body's weights under its own names."""
    config = ResNetConfig(
        embedding_size=spec.base_width,
        hidden_sizes=[spec.base_width * 4 * 2**stage for stage in range(4)],
        depths=list(spec.num_blocks),
        layer_type="bottleneck",
        downsample_in_bottleneck=False,  # as torchvision: in the 3x3 convolution
        out_features=["stage2", "stage3", "stage4"],
    )
    body = ResNetBackbone(config).double().eval()
    renamed = {}
    for key, value in state.items():
        if not key.startswith("body."):
            continue
        first, *rest = key.removeprefix("body.").split(".")
        kind = rest[-1]
        if first in ("conv1", "bn1"):
            part = "convolution" if first == "conv1" else "normalization"
            renamed[f"embedder.embedder.{part}.{kind}"] = value
            continue
        block = f"encoder.stages.{int(first[-1]) - 1}.layers.{rest[0]}"
        if rest[1] == "downsample":
            renamed[f"{block}.shortcut.{('convolution', 'normalization')[int(rest[2])]}.{kind}"] = (
                value
            )
        else:
            part = "convolution" if rest[1].startswith("conv") else "normalization"
            renamed[f"{block}.layer.{int(rest[1][-1]) - 1}.{part}.{kind}"] = value
    missing, unexpected = body.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return body


def reference(spec, state, picture):
    """Boxes and probability in float64: the body by transformers, the rest straight from the weights."""
    state = {key: value.double() for key, value in state.items()}
    features = transformers_body(spec, state)(picture.double()).feature_maps
    slope = 0.1 if spec.pyramid_width <= 64 else 0.0

    def layer(name, x, kernel, rectify=True):
        y = F.conv2d(x, state[f"{name}.0.weight"], padding=kernel // 2)
        mean, var, weight, bias = (
            state[f"{name}.1.{key}"][:, None, None]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        y = (y - mean) / (var + 1e-5).sqrt() * weight + bias
        return torch.where(y < 0, slope * y, y) if rectify else y

    def enlarge(x, like):
        rows, columns = (
            torch.arange(n) * m // n for n, m in zip(like.shape[2:], x.shape[2:], strict=True)
        )
        return x[:, :, rows[:, None], columns]

    fine, middle, coarse = (layer(f"fpn.output{n + 1}", x, 1) for n, x in enumerate(features))
    middle = layer("fpn.merge2", middle + enlarge(coarse, middle), 3)
    fine = layer("fpn.merge1", fine + enlarge(middle, fine), 3)
    scores, boxes = [], []
    for level, x in enumerate((fine, middle, coarse)):
        ssh = f"ssh{level + 1}"
        shared = layer(f"{ssh}.conv5X5_1", x, 3)
        parts = [
            layer(f"{ssh}.conv3X3", x, 3, rectify=False),
            layer(f"{ssh}.conv5X5_2", shared, 3, rectify=False),
            layer(f"{ssh}.conv7x7_3", layer(f"{ssh}.conv7X7_2", shared, 3), 3, rectify=False),
        ]
        y = torch.cat(parts, dim=1).clamp(min=0)
        for name, found, numbers in (("ClassHead", scores, 2), ("BboxHead", boxes, 4)):
            weight, bias = (state[f"{name}.{level}.conv1x1.{key}"] for key in ("weight", "bias"))
            out = torch.einsum("bchw,oc->bhwo", y, weight[:, :, 0, 0]) + bias
            found.append(out.reshape(len(out), -1, numbers))
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1).softmax(-1)[..., 1]


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("size", [(64, 96), (75, 53)])  # of odd sides all strides round up
@torch.no_grad()
def test_it_answers_as_the_published_network(case, size):
    spec = SPECS[case]
    network = random_weights(FaceDetector(spec))
    picture = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 60
    boxes, probability = network(picture)
    expected_boxes, expected = reference(spec, network.state_dict(), picture)
    assert boxes.shape == (2, ANCHORS * sum(-(-size[0] // s) * -(-size[1] // s) for s in (8, 16, 32)), 4)  # fmt: skip
    # float32 sums, 20 to 40 layers deep: measured 1e-6 of the largest at most.
    scale = expected_boxes.abs().max().item()
    torch.testing.assert_close(boxes.double(), expected_boxes, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(probability.double(), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.05  # the network says different things of different places


def published_shapes():
    """Names and shapes of Resnet50_Final.pth, by the layers of ResNet-50 and RetinaFace."""

    def norm(name, width):
        parts = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{part}": (width,) for part in parts} | {f"{name}.num_batches_tracked": ()}

    def pair(name, outputs, inputs, kernel, first="0", second="1"):
        shape = (outputs, inputs, kernel, kernel)
        return {f"{name}{first}.weight": shape} | norm(f"{name}{second}", outputs)

    shapes = pair("body.", 64, 3, 7, "conv1", "bn1")
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"body.layer{stage + 1}.{block}."
            shapes |= pair(name, width, inputs, 1, "conv1", "bn1")
            shapes |= pair(name, width, width, 3, "conv2", "bn2")
            shapes |= pair(name, 4 * width, width, 1, "conv3", "bn3")
            if not block:
                shapes |= pair(f"{name}downsample.", 4 * width, inputs, 1)
            inputs = 4 * width
    for level, width in enumerate((512, 1024, 2048)):
        shapes |= pair(f"fpn.output{level + 1}.", 256, width, 1)
        ssh = f"ssh{level + 1}"
        shapes |= pair(f"{ssh}.conv3X3.", 128, 256, 3) | pair(f"{ssh}.conv5X5_1.", 64, 256, 3)
        for name in ("conv5X5_2", "conv7X7_2", "conv7x7_3"):
            shapes |= pair(f"{ssh}.{name}.", 64, 64, 3)
        for head, numbers in (("ClassHead", 2), ("BboxHead", 4), ("LandmarkHead", 10)):
            shapes[f"{head}.{level}.conv1x1.weight"] = (ANCHORS * numbers, 256, 1, 1)
            shapes[f"{head}.{level}.conv1x1.bias"] = (ANCHORS * numbers,)
    return shapes | pair("fpn.merge1.", 256, 256, 3) | pair("fpn.merge2.", 256, 256, 3)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_published_file_fits(prefix):
    with torch.device("meta"):
        published = {prefix + key: torch.empty(shape) for key, shape in published_shapes().items()}
        network = FaceDetector(FRAME_GUARD.faces)
    check_fit(network, face_detector_state_dict(published), "Resnet50_Final.pth")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = [v for key, v in published.items() if not key.endswith(statistics)]
    assert sum(p.numel() for p in parameters) == 27_293_600  # the literature's 27.3 M


def test_another_detectors_weights_are_refused():
    other = FaceDetector(SPECS["wider"]).state_dict()
    with pytest.raises(
        CheckpointError, match=r"mine doesn't fit FaceDetector: of .* another shape"
    ):
        load_strict(FaceDetector(SPECS["toy"]), face_detector_state_dict(other), "mine")
