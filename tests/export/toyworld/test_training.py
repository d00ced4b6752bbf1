# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from predict2_export.networks.dit import Dit
from predict2_export.networks.vae import Vae
from predict2_export.toyworld.checkpoint import load_networks, save_networks
from predict2_export.toyworld.denoiser import TEXT2IMAGE, VIDEO2WORLD, flow_loss
from predict2_export.toyworld.fit import Stage, fit, trained
from predict2_export.toyworld.muon import Muon, orthogonal
from predict2_export.toyworld.quality import Networks, similarity, wilson
from predict2_export.toyworld.sampling import generate
from predict2_export.toyworld.scene import vocabulary
from predict2_export.toyworld.text import TextEncoder
from predict2_export.toyworld.tokenizer import word_tokenizer
from predict2_export.toyworld.vae import decoded, fold_normalisation, initialise, posterior
from predict2_runtime.sampler import Guidance, guided_x0, initial_noise, update
from predict2_runtime.schedule import solver_steps
from predict2_spec.presets import TOY
from predict2_spec.video import LatentShape

torch.set_num_threads(1)


def seeded(module, seed=0):
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae():
    vae = Vae(TOY.vae)
    initialise(vae)
    return vae.eval().requires_grad_(False)


def test_orthogonal_matrices_have_singular_values_near_one():
    for shape in ((3, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_muon_fits_a_line_and_goes_on_from_its_state():
    torch.manual_seed(0)
    network = torch.nn.Linear(8, 8)
    wanted = torch.randn(8, 8)
    optimiser = Muon(network, lr=0.3)
    for step in range(200):
        x = torch.randn(32, 8)
        loss = (network(x) - x @ wanted.T).square().mean()
        network.zero_grad()
        loss.backward()
        optimiser.step(step / 200)
    assert loss < 0.05
    other = Muon(network, lr=0.3)
    other.load_state_dict(optimiser.state_dict())
    assert torch.equal(other.momenta[0], optimiser.momenta[0])


def test_an_interrupted_stage_goes_on_where_it_was(tmp_path):
    steps = []

    def run(minutes):
        network = torch.nn.Linear(4, 4)

        def loss_of(progress):
            steps.append(progress)
            return network(torch.ones(1, 4)).square().mean()

        fit(Stage("line", tmp_path, minutes), network, Muon(network, 1e-3), loss_of)

    run(0.005)
    first = len(steps)
    run(0.01)
    assert steps[first] == pytest.approx(0.5, abs=0.05)
    average = trained(Stage("line", tmp_path, 0), torch.nn.Linear(4, 4))
    assert not average.weight.requires_grad
    assert (tmp_path / "line.png").is_file()
    assert not list(tmp_path.glob("*.part"))


@torch.no_grad()
def test_a_whole_pass_is_the_chunked_one(vae):
    clip = torch.rand(1, 3, 9, 32, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents, _ = posterior(vae, clip)
    torch.testing.assert_close(latents, vae.encode(clip), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded(vae, latents), vae.decode(latents), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_folding_makes_latents_normal_and_changes_no_picture(vae):
    folded = Vae(TOY.vae)
    folded.load_state_dict(vae.state_dict())
    fold_normalisation(folded)
    clip = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before, after = vae.encode(clip), folded.encode(clip)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(folded.decode(after), vae.decode(before), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("plan", [TEXT2IMAGE, VIDEO2WORLD])
def test_a_network_that_knows_the_answer_has_no_loss(plan):
    clean = torch.randn(6, 16, plan.frames // 4 + 1, 4, 4)

    class Oracle(torch.nn.Module):
        spec = TOY.text2image if plan is TEXT2IMAGE else TOY.video2world

        def forward(self, noisy, times, text, mask=None):
            if mask is not None:
                assert 1 <= mask[:, 0, :, 0, 0].sum(1).min() <= mask[:, 0, :, 0, 0].sum(1).max() <= 2  # fmt: skip
                assert torch.equal(noisy * mask, clean * mask)
                assert times[mask[:, 0, :, 0, 0] > 0].max() < 2e-4
            time = times[:, None, :, None, None]
            return (noisy - clean) / time  # noisy = (1 - t) clean + t noise

    text = torch.zeros(6, 32, 64)
    loss = flow_loss(Oracle(), clean, text, plan, np.random.default_rng(0))
    assert loss < 1e-6


@pytest.mark.parametrize("given", [0, 1])
@torch.no_grad()
def test_batched_sampling_is_the_served_one(given):
    dit = seeded(Dit(TOY.video2world if given else TOY.text2image))
    shape = LatentShape(2, 4, 4)
    prompts, negative = torch.randn(2, 32, 64), torch.randn(32, 64)
    condition = torch.randn(2, 16, given, 4, 4) if given else None
    batch = generate(dit, (prompts, negative), shape, [5, 6], 3.0, condition, num_steps=3)
    for index in range(2):
        latents = torch.from_numpy(initial_noise(5 + index, shape))
        previous = torch.zeros_like(latents)
        for step in solver_steps(3):
            guidance = Guidance(prompts[index], negative, 3.0)
            x0 = guided_x0(dit, latents, step.sigma, guidance, condition[index] if given else None)
            latents, previous = update(step, latents, x0, previous), x0
        torch.testing.assert_close(batch[index], latents, rtol=1e-3, atol=1e-4)


def test_saved_networks_come_back_rounded_to_half(tmp_path, vae):
    networks = Networks(
        vae,
        seeded(TextEncoder(TOY.text_encoder), 1),
        seeded(Dit(TOY.text2image), 2),
        seeded(Dit(TOY.video2world), 3),
    )
    save_networks(networks, tmp_path)
    again = load_networks(tmp_path)
    for name in ("vae", "text_encoder", "text2image", "video2world"):
        ours, theirs = getattr(networks, name).state_dict(), getattr(again, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(theirs[key], ours[key].half().float()) for key in ours)


def test_the_tokenizer_knows_every_word_of_the_world():
    tokenizer = word_tokenizer()
    assert tokenizer.get_vocab_size() <= TOY.text_encoder.vocab_size
    for word in vocabulary():
        assert tokenizer.encode(word.upper()).tokens == [word, "</s>"]
    assert tokenizer.encode("a pink circle, left.").tokens == ["a", "<unk>", "circle", ",", "left", "<unk>", "</s>"]  # fmt: skip


def test_intervals_and_similarity():
    low, high = wilson(180, 200)
    assert (round(low, 3), round(high, 3)) == (0.851, 0.934)  # Wilson 1927, checked by hand
    assert wilson(0, 0) == (0.0, 1.0)
    clip = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert similarity(clip, clip) == pytest.approx(1.0)
    assert similarity(clip, 255 - clip) < 0
