# SPDX-License-Identifier: Apache-2.0
"""The content filter against transformers' SigLIP and the classifier's formula, with the same weights."""

import pytest
import torch
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from predict2_export.checkpoint.fit import check_fit
from predict2_export.checkpoint.names import classifier_state_dict, vision_tower_state_dict
from predict2_export.networks.content_filter import Classifier, ContentFilter, VisionTower
from predict2_spec.networks import FRAME_GUARD, TOY_FRAME_GUARD, ContentFilterSpec

SPECS = {
    "toy": TOY_FRAME_GUARD.content,
    # 5 pixels of a side belong to no patch; heads are as wide as the released ones.
    "wider": ContentFilterSpec(
        image_size=47, patch=14, width=144, num_layers=3, num_heads=2, ff_width=538, hidden=(64, 32)
    ),
}


def vision_config(spec):
    return SiglipVisionConfig(
        hidden_size=spec.width,
        intermediate_size=spec.ff_width,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        image_size=spec.image_size,
        patch_size=spec.patch,
    )


def random_weights(module, seed=0):
    """Weights of a layer's usual size, and norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight")):
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.normal_(0, 0.2, generator=generator)
    return module.eval().requires_grad_(False)


def classify(state, x):
    """The classifier's formula: normalise the features, then Linear, norm, ReLU twice, then Linear."""
    x = x / x.pow(2).sum(-1, keepdim=True).sqrt()
    for linear, norm in ((0, 1), (3, 4)):
        x = x @ state[f"network.layers.{linear}.weight"].T + state[f"network.layers.{linear}.bias"]
        mean, var, weight, bias = (
            state[f"network.layers.{norm}.{key}"]
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        x = ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)
    return x @ state["network.layers.6.weight"].T + state["network.layers.6.bias"]


@pytest.mark.parametrize("case", SPECS)
@torch.no_grad()
def test_it_answers_as_transformers_and_the_formula(case):
    spec = SPECS[case]
    network = random_weights(ContentFilter(spec))
    state = {key: value.double() for key, value in network.state_dict().items()}
    tower = SiglipVisionModel(vision_config(spec)).double().eval()
    tower.load_state_dict(vision_tower_state_dict(state))
    side = spec.image_size
    picture = 2 * torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1)) - 1
    features = tower(picture.double()).pooler_output
    # float32 against float64, a few layers deep: measured 2e-6 of features up to 3.
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(network.vision_model(picture).double(), features, **close)
    torch.testing.assert_close(network(picture).double(), classify(state, features), **close)
    assert features.std(0).mean() > 0.01  # pictures differ


def test_the_published_tower_fits():
    spec = FRAME_GUARD.content
    text = {"hidden_size": 1152, "num_attention_heads": 16, "num_hidden_layers": 1}
    with torch.device("meta"):
        config = SiglipConfig(
            vision_config=vision_config(spec).to_dict(), text_config={**text, "bos_token_id": 1, "eos_token_id": 1}
        )  # fmt: skip
        published = SiglipModel(config)
        tower = VisionTower(spec)
    # The text tower is there and left out.
    check_fit(tower, vision_tower_state_dict(published.state_dict()), "model.safetensors")
    theirs = sum(p.numel() for p in published.vision_model.parameters())
    # 27 layers of four projections, two matrices and two norms; embeddings; pooling head.
    layer = 4 * (1152**2 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    embeddings = 14 * 14 * 3 * 1152 + 1152 + 27 * 27 * 1152
    assert theirs == 27 * layer + embeddings + 2 * 1152 + 1152 + layer - 2 * 1152


def test_the_published_classifier_fits():
    shapes = {"network.layers.6.weight": (7, 256), "network.layers.6.bias": (7,)}
    for number, inputs, outputs in ((0, 1152, 512), (3, 512, 256)):
        shapes[f"network.layers.{number}.weight"] = (outputs, inputs)
        shapes[f"network.layers.{number}.bias"] = (outputs,)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"network.layers.{number + 1}.{part}"] = (outputs,)
        shapes[f"network.layers.{number + 1}.num_batches_tracked"] = ()
    with torch.device("meta"):
        published = {key: torch.empty(shape) for key, shape in shapes.items()}
        network = Classifier(FRAME_GUARD.content)
    check_fit(network, classifier_state_dict(published), "safety_filter.pt")
