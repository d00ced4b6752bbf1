# SPDX-License-Identifier: Apache-2.0
"""Trains the toy preset's networks from scratch: `python -m predict2_export.toyworld.train --help`.

Run the stages in this order, each until its minutes are used up; a stage that was interrupted goes on
where it was. The two denoisers may train at the same time, a core each. Under `torchrun --nproc-per-node 2 -m`
two processes train one stage together.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from predict2_export.networks.dit import Dit
from predict2_export.networks.vae import Vae
from predict2_spec.networks import TOY_VAE
from predict2_spec.presets import TOY

from .checkpoint import save_networks
from .denoiser import TEXT2IMAGE, VIDEO2WORLD, Plan, train_denoiser
from .fit import Stage, trained
from .quality import Networks
from .text import train_text, trained_text
from .vae import fold_normalisation, train_decoder, train_vae

FOLDED = "folded.pt"  # the VAE whose latents are normal by themselves
MINUTES = {"vae": 23.0, "text": 1.0, "decoder": 12.0, "text2image": 48.0, "video2world": 56.0}


def _vae(stage: Stage) -> None:
    """Train the VAE and scale it once, so that all later stages see the same latents."""
    vae = train_vae(stage)
    fold_normalisation(vae)
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(vae.state_dict(), stage.folder / FOLDED)


def folded_vae(state: Path) -> Vae:
    """The VAE of a finished stage, with latents of mean 0 and deviation 1."""
    vae = Vae(TOY_VAE)
    vae.load_state_dict(torch.load(state / FOLDED, weights_only=True))
    return vae.eval().requires_grad_(False)


def _denoiser(plan: Plan) -> Callable[[Stage], object]:
    def run(stage: Stage) -> object:
        encoder = trained_text(Stage("text", stage.folder, 0))
        return train_denoiser(stage, plan, folded_vae(stage.folder), encoder)

    return run


def export(stage: Stage) -> None:
    """Write what the other stages trained as a checkpoint folder in the state folder."""
    spec, state = TOY.video2world, stage.folder
    assert spec is not None
    decoder = Stage("decoder", state, 0)
    vae = trained(decoder, Vae(TOY_VAE)) if decoder.path.is_file() else folded_vae(state)
    networks = Networks(
        vae,
        trained_text(Stage("text", state, 0)),
        trained(Stage("text2image", state, 0), Dit(TOY.text2image)),
        trained(Stage("video2world", state, 0), Dit(spec)),
    )
    save_networks(networks, state / "checkpoints")


STAGES: dict[str, Callable[[Stage], object]] = {
    "vae": _vae,
    "text": train_text,
    "decoder": lambda stage: train_decoder(stage, folded_vae(stage.folder)),
    "text2image": _denoiser(TEXT2IMAGE),
    "video2world": _denoiser(VIDEO2WORLD),
    "export": export,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", required=True, choices=list(STAGES))
    parser.add_argument("--minutes", type=float, help="of training in all; the default is what the shipped weights took")  # fmt: skip
    parser.add_argument("--state", type=Path, default=Path("build/toyworld"), help="folder for checkpoints, logs and loss curves (%(default)s)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="of this process (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    minutes = args.minutes if args.minutes is not None else MINUTES.get(args.stage, 0.0)
    try:
        STAGES[args.stage](Stage(args.stage, args.state, minutes))
    except FileNotFoundError as error:
        sys.stderr.write(f"{error}; run the stage that makes it first\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
