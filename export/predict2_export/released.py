# SPDX-License-Identifier: Apache-2.0
"""What is published where: repositories at pinned revisions, and what is known of their files."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KnownFile:
    """What is known of a file, or of a folder's weights, without asking a hub. Empty or 0: not known."""

    md5: str = ""
    sha256: str = ""
    size_bytes: int = 0  # of the tensors where only their number is known, so a little too small


@dataclass(frozen=True)
class Repo:
    """A published repository at the commit that the original's own download script names."""

    name: str  # organisation/repository
    revision: str
    gated: bool = False  # its licence has to be accepted on the hub first
    known: Mapping[str, KnownFile] = field(default_factory=dict)  # by path in the repository
    root_files: tuple[str, ...] = ()  # the checkpoint, where a preset names the whole repository

    @property
    def page(self) -> str:
        """Where people read about it and accept its licence."""
        return f"https://huggingface.co/{self.name}"


@dataclass(frozen=True)
class Want:
    """Files of one repository, by patterns in which * also crosses folders."""

    repo: Repo
    include: tuple[str, ...]  # each has to match a file
    exclude: tuple[str, ...] = ()


_WAN_VAE = KnownFile(
    md5="854fcb755005951fa5b329799af6199f",
    sha256="38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981",
    size_bytes=507_609_880,
)
# The networks' weights in diffusers' layout, bf16 but for the VAE.
_T5_ENCODER_BF16 = KnownFile(size_bytes=9_700_000_000)
_DIT_2B = 3_912_810_496
_DIT_14B = 28_530_530_304
# The networks that look at frames, in the guardrails' repository.
GUARD_FACES = "face_blur_filter/Resnet50_Final.pth"
GUARD_CLASSIFIER = "video_content_safety_filter/safety_filter.pt"
GUARD_TOWER = (
    "video_content_safety_filter/models--google--siglip-so400m-patch14-384/"
    "snapshots/9fdffc58afc957d1a03a25b10dba0329ab15c2a3/model.safetensors"
)
GUARD_FILES = (GUARD_FACES, GUARD_CLASSIFIER, GUARD_TOWER)


def _text2image(size: str, revision: str, md5: str, size_bytes: int) -> Repo:
    return Repo(
        f"nvidia/Cosmos-Predict2-{size}-Text2Image",
        revision,
        known={
            "model.pt": KnownFile(md5=md5, size_bytes=size_bytes),
            "transformer": KnownFile(size_bytes=size_bytes),
        },
    )


def _video2world(size: str, revision: str, md5: Mapping[str, str], size_bytes: int) -> Repo:
    return Repo(
        f"nvidia/Cosmos-Predict2-{size}-Video2World",
        revision,
        known={
            "tokenizer/tokenizer.pth": _WAN_VAE,
            **{
                f"model-{variant}.pt": KnownFile(md5=value, size_bytes=size_bytes)
                for variant, value in md5.items()
            },
            "transformer": KnownFile(size_bytes=size_bytes),
            "vae": KnownFile(size_bytes=_WAN_VAE.size_bytes),
            "text_encoder": _T5_ENCODER_BF16,
        },
    )


_ROWS = (
    Repo(
        "nvidia/Cosmos-Predict2-0.6B-Text2Image",
        "80e9f1599778499e9b5435179861871b5a3561d4",
        known={
            "model.pt": KnownFile(md5="f93f9655fce91840723cdb28ebbfa1fe", size_bytes=1_195_072_000),
            # The same network as the others', in a file of other bytes.
            "tokenizer/tokenizer.pth": KnownFile(md5="6eddc5eaf9e9e527803184f6daa65d25"),
        },
    ),
    _text2image(
        "2B",
        "acdb5fde992a73ef0355f287977d002cbfd127e0",
        "0336b218dffe32848d075ba7606c522b",
        _DIT_2B,
    ),
    _text2image(
        "14B",
        "015332720f70dd7b497c1cff9fd0c936a77f160b",
        "3bc68c3384b4985120b13f964e9d6c03",
        _DIT_14B,
    ),
    _video2world(
        "2B",
        "f50c09f5d8ab133a90cac3f4886a6471e9ba3f18",
        {
            "720p-16fps": "66157e5aece452a5a121cbb6fe0580ac",
            "720p-10fps": "1884e792fe3a57c3384c68ff1c0ef0d3",
            "480p-10fps": "af1e352c5a8fb52ee1de19e307731b6b",
            "480p-16fps": "dad6861b72d595f6fae8d91c08a58e9e",
            "720p-16fps-natten": "91355cc9979f47aeb7ee991193e88305",
            "720p-10fps-natten": "4ef2b03da1ca0888e3a4054dc8b4b2f0",
        },
        _DIT_2B,
    ),
    _video2world(
        "14B",
        "03b03a377fede782647afac998f674d9f358e319",
        {
            "720p-16fps": "79c86aa3c91897d9d402e70a3525ed96",
            "720p-10fps": "34730e3d5e65c4c590f3a88ca3fd4e74",
            "480p-10fps": "b1dcd8adbe82e69496532d1e237c7022",
            "480p-16fps": "53a04f51880272d9f4a5c4460b82966d",
            "720p-16fps-natten": "09167672edf4bcd456318d8498cb6f36",
            "720p-10fps-natten": "86d5e27ac75021798ab594f257600e50",
        },
        _DIT_14B,
    ),
    Repo(
        "google-t5/t5-11b",
        "90f37703b3334dfe9d2b009bfcbfbf1ac9d28ea3",
        known={
            "pytorch_model.bin": KnownFile(
                md5="f890878d8a162e0045a25196e27089a3", size_bytes=45_000_000_000
            )
        },
        # tf_model.h5 holds the same weights once more.
        root_files=("config.json", "pytorch_model.bin"),
    ),
    Repo(
        "nvidia/Cosmos-Guardrail1",
        "d6d4bfa899a71454a700907664f3e88f503950cf",
        gated=True,
        known={
            GUARD_FACES: KnownFile(md5="bce939bc22d8cec91229716dd932e56e"),
            GUARD_CLASSIFIER: KnownFile(md5="b46dc2ad821fc3b0d946549d7ade19cf"),
            GUARD_TOWER: KnownFile(md5="f4c887e55e159f96453e18a1d6ca984f"),
        },
    ),
    Repo("meta-llama/Llama-Guard-3-8B", "7327bd9f6efbbe6101dc6cc4736302b3cbb6e425", gated=True),
    Repo("nvidia/Cosmos-Reason1-7B", "8fe96c1fa10db9e666b6fa6a87fea57dd9635649"),
)
REPOS: dict[str, Repo] = {repo.name: repo for repo in _ROWS}

# What isn't a preset's own network, by the name that --with takes.
EXTRAS: dict[str, tuple[Want, ...]] = {
    "guardrails": (
        Want(
            REPOS["nvidia/Cosmos-Guardrail1"],
            ("blocklist/*", "face_blur_filter/*", "video_content_safety_filter/*"),
        ),
        # original/ holds the same weights once more.
        Want(REPOS["meta-llama/Llama-Guard-3-8B"], ("*.safetensors", "*.json"), ("original/*",)),
    ),
    "refiner": (
        Want(REPOS["nvidia/Cosmos-Reason1-7B"], ("*.safetensors", "*.json", "merges.txt")),
    ),
}
