# SPDX-License-Identifier: Apache-2.0
"""Downloads, against a real HTTP server that speaks the hub's API and sends large files from another host."""

import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import huggingface_hub
import huggingface_hub.utils.logging  # keeps the stderr it sees first; that must not be one test's
import pytest

from predict2_export import cli, wanted
from predict2_export.checksums import RECORD
from predict2_export.fetch import Item, State, fetch
from predict2_export.layouts import located
from predict2_export.released import EXTRAS, REPOS, KnownFile
from predict2_export.wanted import RemoteFile
from predict2_spec.presets import PRESETS

PRESET = "2b-720p-16fps"
PICTURES, VIDEO = "nvidia/Cosmos-Predict2-2B-Text2Image", "nvidia/Cosmos-Predict2-2B-Video2World"
T5, GUARD, LLAMA = "google-t5/t5-11b", "nvidia/Cosmos-Guardrail1", "meta-llama/Llama-Guard-3-8B"
TOKEN = "hf_only_for_the_endpoint"
NEEDED = {
    f"{PICTURES}/model.pt",
    f"{VIDEO}/model-720p-16fps.pt",
    f"{VIDEO}/tokenizer/tokenizer.pth",
    f"{T5}/config.json",
    f"{T5}/pytorch_model.bin",
    f"{T5}/tokenizer.json",
}
BIG = f"{PICTURES}/model.pt"


def _content(name, size=1000):
    return hashlib.shake_256(name.encode()).digest(size)


def _published():
    """Repositories as they are published: more files than anyone needs, diffusers' layout beside the original."""
    diffusers = [
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer.pth",
    ]
    clips = [f"model-{r}p-{f}fps.pt" for r in (480, 720) for f in (10, 16)]
    names = {
        PICTURES: ["README.md", "model.pt", *diffusers],
        VIDEO: ["README.md", *clips, "model-720p-16fps-natten.pt", *diffusers],
        T5: ["config.json", "pytorch_model.bin", "tf_model.h5", "spiece.model", "tokenizer.json"],
        GUARD: [
            "README.md",
            "blocklist/custom/a",
            "blocklist/nltk_data/b.zip",
            "face_blur_filter/Resnet50_Final.pth",
            "video_content_safety_filter/safety_filter.pt",
        ],
        LLAMA: ["config.json", "model-00001-of-00001.safetensors", "original/params.json"],
    }
    files = {f"{repo}/{name}" for repo, of_repo in names.items() for name in of_repo}
    return {path: _content(path, 3_000_000 if path == BIG else 1000) for path in files}


@dataclass
class Request:
    host: str  # hub or store
    method: str
    path: str
    headers: dict


@dataclass
class FakeHub:
    """What the two servers serve, how they misbehave, and what they were asked."""

    files: dict = field(default_factory=_published)
    listed: dict = field(default_factory=dict)  # contents that the listing is made from instead
    answers: dict = field(default_factory=dict)  # (status, headers) by part of a path
    cuts: list = field(default_factory=list)  # the next answers end after so many bytes
    knows_ranges: bool = True
    hold_after: int = 0  # bytes of an answer, then `held` is set and nothing more comes
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    requests: list = field(default_factory=list)
    url: str = ""
    store_url: str = ""

    def listing(self, repo):
        files = {**self.files, **self.listed}
        return [
            _sibling(path.removeprefix(f"{repo}/"), data)
            for path, data in sorted(files.items())
            if path.startswith(f"{repo}/")
        ]

    def asked_for(self):
        """Paths of files that the hub was asked for, in order."""
        asked = [unquote(r.path) for r in self.requests if "/resolve/" in r.path]
        return [re.sub(r"/resolve/\w+", "", path).lstrip("/") for path in asked]

    def ranges(self):
        return [r.headers.get("Range") for r in self.requests if r.host == "store"]


def _is_large(name):
    return not name.endswith((".json", ".md"))


def _sibling(name, data):
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return {"rfilename": name, "size": len(data), "blobId": git} | (
        {"lfs": lfs} if _is_large(name) else {}
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two small writes

    def do_GET(self):
        hub, host = self.server.hub, self.server.host
        hub.requests.append(Request(host, self.command, self.path, dict(self.headers)))
        path = unquote(self.path.split("?")[0])
        refusal = next((answer for part, answer in hub.answers.items() if part in path), None)
        if refusal:
            self.answer(refusal[0], b"no", refusal[1])
        elif match := re.fullmatch(r"/api/models/(.+?/.+?)/revision/(\w+)", path):
            listed = {"id": match[1], "sha": match[2], "siblings": hub.listing(match[1])}
            self.answer(200, json.dumps(listed).encode())
        else:
            self.answer_file(re.sub(r"/resolve/\w+/", "/", path).lstrip("/"))

    def answer_file(self, file):
        hub = self.server.hub
        if file not in hub.files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif self.server.host == "hub" and _is_large(file):
            self.answer(302, b"", {"Location": f"{hub.store_url}/{file}?signed=1"})
        else:
            self.send_file(hub.files[file])

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, data):
        range_ = self.headers.get("Range", "") if self.server.hub.knows_ranges else ""
        asked = re.fullmatch(r"bytes=(\d+)-", range_)
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        hub, end = self.server.hub, len(data)
        if end > 100_000 and hub.cuts:
            end = start + hub.cuts.pop(0)
            self.close_connection = True
        if end > 100_000 and hub.hold_after:
            self.wfile.write(data[start : hub.hold_after])
            hub.held.set()
            hub.release.wait(20)
            self.close_connection = True
        else:
            self.wfile.write(data[start:end])

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub, host):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.host = hub, host

    def handle_error(self, request, address):
        pass  # a client that was killed


@pytest.fixture(scope="module", autouse=True)
def connections():
    """The client keeps connections; left open they would be reported as leaks."""
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fake = FakeHub()
    servers = [Server(fake, host) for host in ("hub", "store")]
    fake.url = f"http://127.0.0.1:{servers[0].server_port}"
    fake.store_url = f"http://localhost:{servers[1].server_port}"
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", fake.url + "/")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # before the client tries again
    for name, repo in REPOS.items():
        monkeypatch.setitem(REPOS, name, replace(repo, known={}))
    for name, wants in EXTRAS.items():
        plain = tuple(replace(want, repo=REPOS[want.repo.name]) for want in wants)
        monkeypatch.setitem(EXTRAS, name, plain)
    yield fake
    fake.release.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def run(hub, tmp_path, capsys):
    """Runs the command; returns (exit code, everything it printed)."""

    def run(*flags, preset=PRESET):
        code = cli.main(["fetch", "--preset", preset, "--checkpoints", str(tmp_path / "c"), *flags])
        out = capsys.readouterr()
        return code, out.out + out.err

    return run


def _on_disk(root):
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and p.name != RECORD
    }


def _know(monkeypatch, path, **facts):
    name = "/".join(path.split("/")[:2])
    known = {path.removeprefix(f"{name}/"): KnownFile(**facts)}
    monkeypatch.setitem(REPOS, name, replace(REPOS[name], known=known))


def test_exactly_the_files_of_the_preset_land_where_the_build_looks_for_them(hub, run, tmp_path):
    code, said = run()
    assert code == 0, said
    assert _on_disk(tmp_path / "c") == {path: hub.files[path] for path in NEEDED}
    preset = PRESETS[PRESET]
    for path in (preset.text_encoder_path, preset.tokenizer_path, preset.vae_path):
        assert (tmp_path / "c" / path).exists()


def test_every_address_names_the_pinned_revision(hub, run):
    run()
    for request in hub.requests:
        if request.host == "hub":
            repo = re.match(r"/(?:api/models/)?(.+?/.+?)/", request.path)[1]
            assert f"/{REPOS[repo].revision}" in request.path
    assert sorted(hub.asked_for()) == sorted(NEEDED)  # and nothing is asked for twice


def test_one_task_fetches_only_its_own_network(hub, run, tmp_path):
    assert run("--tasks", "text2image")[0] == 0
    assert set(_on_disk(tmp_path / "c")) == NEEDED - {f"{VIDEO}/model-720p-16fps.pt"}


def test_the_diffusers_layout_fetches_shards_once_and_a_single_text_encoder(hub, run, tmp_path):
    assert run("--layout", "diffusers")[0] == 0
    shards = [n.split("/", 2)[2] for n in hub.files if n.startswith(f"{VIDEO}/transformer/")]
    assert set(_on_disk(tmp_path / "c")) == {
        *(f"{repo}/{shard}" for repo in (PICTURES, VIDEO) for shard in shards),
        f"{VIDEO}/vae/config.json",
        f"{VIDEO}/vae/diffusion_pytorch_model.safetensors",
        f"{VIDEO}/text_encoder/config.json",
        f"{VIDEO}/text_encoder/model.safetensors",
        f"{VIDEO}/tokenizer/tokenizer.json",
    }


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("preset", ["2b-720p-16fps", "2b-480p-10fps", "2b-720p-16fps-sparse"])
def test_the_build_finds_every_file_of_either_layout(hub, run, tmp_path, preset, layout):
    code, said = run("--layout", layout, preset=preset)
    assert code == 0, said
    found = located(PRESETS[preset], tmp_path / "c")
    for part in ("text_encoder", "tokenizer", "vae", "text2image", "video2world"):
        assert (tmp_path / "c" / getattr(found, f"{part}_path")).exists(), part
    assert (tmp_path / "c" / T5).exists() == (layout == "original")


@pytest.mark.parametrize("preset", ["0.6b", "0.6b-distilled"])
def test_a_layout_that_is_not_published_is_refused_before_the_hub_is_asked(hub, run, preset):
    code, said = run("--layout", "diffusers", preset=preset)
    assert code == 1
    assert "leave --layout out" in said
    assert not hub.requests


def test_guardrails_come_only_when_asked_for(hub, run, tmp_path):
    code, said = run("--with", "guardrails", "--tasks", "text2image")
    assert code == 0, said
    assert {n for n in _on_disk(tmp_path / "c") if n.startswith((GUARD, LLAMA))} == {
        f"{GUARD}/blocklist/custom/a",
        f"{GUARD}/blocklist/nltk_data/b.zip",
        f"{GUARD}/face_blur_filter/Resnet50_Final.pth",
        f"{GUARD}/video_content_safety_filter/safety_filter.pt",
        f"{LLAMA}/config.json",
        f"{LLAMA}/model-00001-of-00001.safetensors",
    }
    assert f"{LLAMA} is gated" in said


def test_a_dry_run_lists_sizes_and_revisions_and_touches_nothing(hub, run, tmp_path):
    code, said = run("--dry-run")
    assert code == 0
    assert not (tmp_path / "c").exists()
    assert hub.asked_for() == []
    assert re.search(rf"{BIG} +{REPOS[PICTURES].revision[:8]} +3\.00 MB +to fetch", said)
    assert re.search(r"3\.0\d MB to fetch of 3\.0\d MB; .* free for ", said)


def test_what_is_there_is_not_fetched_again(hub, run):
    run()
    before = len(hub.asked_for())
    code, said = run()
    assert code == 0
    assert len(hub.asked_for()) == before
    assert "0 B to fetch" in said
    assert "to check" not in said


def test_a_connection_that_breaks_is_taken_up_at_the_byte_where_it_broke(hub, run, tmp_path):
    hub.cuts = [1_000_000, 1_200_000]
    code, said = run("--tasks", "text2image")
    assert code == 0, said
    starts = [int(value[6:-1]) for value in hub.ranges() if value]
    assert len(starts) == 2
    assert 900_000 < starts[0] <= 1_000_000 < starts[1] <= 2_200_000
    assert (tmp_path / "c" / BIG).read_bytes() == hub.files[BIG]


def test_a_store_that_sends_all_when_asked_for_the_rest_spoils_nothing(hub, run, tmp_path):
    hub.cuts, hub.knows_ranges = [1_000_000], False
    code, said = run("--tasks", "text2image")
    assert code == 0, said
    assert any(hub.ranges())
    assert (tmp_path / "c" / BIG).read_bytes() == hub.files[BIG]


@pytest.mark.parametrize("left", ["other bytes", "more bytes than the file has"])
def test_a_part_that_was_spoilt_costs_one_more_run_at_most(hub, run, tmp_path, left):
    hub.cuts = [1_000_000] + 6 * [0]  # until the client gives up
    assert run()[0] == 1
    (part,) = (tmp_path / "c" / PICTURES).glob(".*.part")
    part.write_bytes(b"?" * (1000 if left == "other bytes" else 4_000_000))
    run()
    code, said = run()
    assert code == 0, said
    assert (tmp_path / "c" / BIG).read_bytes() == hub.files[BIG]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_fetch_that_is_stopped_leaves_no_half_file_and_goes_on_later(hub, run, tmp_path, how):
    hub.files[BIG] = _content(BIG, 24_000_000)
    hub.hold_after = 15_000_000
    command = [sys.executable, "-m", "predict2_export.cli", "fetch", "--preset", PRESET]
    process = subprocess.Popen(
        [*command, "--checkpoints", str(tmp_path / "c"), "--tasks", "text2image"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert hub.held.wait(20)
    part = _growing(tmp_path / "c" / PICTURES)
    process.send_signal(how)
    _, said = process.communicate(timeout=20)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert "Traceback" not in said
    assert not (tmp_path / "c" / BIG).exists()
    have = part.stat().st_size
    hub.hold_after = 0
    hub.requests.clear()
    code, said = run("--tasks", "text2image")
    assert code == 0, said
    assert "to go on with" in said
    assert f"bytes={have}-" in hub.ranges()
    assert (tmp_path / "c" / BIG).read_bytes() == hub.files[BIG]
    assert not part.exists()


def _growing(folder):
    """The incomplete file, once something of it is on the disk."""
    wait = threading.Event()
    for _ in range(1000):
        for part in folder.glob(".*.part"):
            if part.stat().st_size:
                return part
        wait.wait(0.01)
    raise AssertionError(f"nothing arrived in {folder}")


def test_a_file_that_arrives_damaged_is_refused_and_the_others_come_in(hub, run, tmp_path):
    hub.listed[BIG] = hub.files[BIG][:-1] + b"?"
    code, said = run()
    assert code == 1
    assert set(_on_disk(tmp_path / "c")) == NEEDED - {BIG}
    assert f"{BIG} is damaged: sha256 {hashlib.sha256(hub.files[BIG]).hexdigest()}" in said


def test_a_small_file_that_arrives_damaged_is_refused_too(hub, run, tmp_path):
    path = f"{T5}/config.json"
    hub.listed[path] = hub.files[path][:-1] + b"?"
    code, said = run()
    assert code == 1
    assert f"{path} is damaged: git-sha1" in said
    assert not (tmp_path / "c" / path).exists()


def test_a_file_unknown_to_this_version_is_taken_only_on_request_and_without_fetching_it_twice(
    hub, run, tmp_path, monkeypatch
):
    _know(monkeypatch, BIG, md5="0" * 32)
    code, said = run()
    assert code == 1
    assert f"md5 {hashlib.md5(hub.files[BIG]).hexdigest()} instead of {'0' * 32}" in said
    assert "--no-checksums" in said
    assert not (tmp_path / "c" / BIG).exists()
    before = hub.asked_for()
    assert run("--no-checksums")[0] == 0
    assert (tmp_path / "c" / BIG).read_bytes() == hub.files[BIG]
    assert hub.asked_for() == before


def test_a_file_this_version_knows_comes_in(hub, run, tmp_path, monkeypatch):
    _know(monkeypatch, BIG, md5=hashlib.md5(hub.files[BIG]).hexdigest())
    assert run()[0] == 0
    assert (tmp_path / "c" / BIG).exists()


def test_verify_finds_a_file_that_rotted_and_sets_it_aside(hub, run, tmp_path):
    run()
    file = tmp_path / "c" / BIG
    file.write_bytes(hub.files[BIG][:-1] + b"?")
    assert run()[0] == 0  # its size is right, so only --verify reads it
    code, said = run("--verify")
    assert code == 1
    assert "it is now model.pt.aside1" in said
    assert not file.exists()
    assert run()[0] == 0
    assert file.read_bytes() == hub.files[BIG]


def test_files_brought_by_hand_are_checked_and_kept(hub, run, tmp_path):
    file = tmp_path / "c" / BIG
    file.parent.mkdir(parents=True)
    file.write_bytes(hub.files[BIG])
    code, said = run()
    assert code == 0
    assert re.search(rf"{BIG} .*there, to check", said)
    assert BIG not in hub.asked_for()
    assert "to check" not in run()[1]


def test_somebodys_own_weights_under_that_name_are_not_lost(hub, run, tmp_path):
    file = tmp_path / "c" / BIG
    file.parent.mkdir(parents=True)
    file.write_bytes(b"tuned for months")
    assert run()[0] == 0
    assert file.read_bytes() == hub.files[BIG]
    assert file.with_name("model.pt.aside1").read_bytes() == b"tuned for months"


@pytest.mark.parametrize("path", [BIG, f"{T5}/config.json"])
def test_what_the_hub_has_anew_at_the_pinned_revision_replaces_what_was_fetched(
    hub, run, tmp_path, path
):
    run()
    hub.files[path] = hub.files[path][:-1] + b"?"
    code, said = run()
    assert code == 0, said
    assert _on_disk(tmp_path / "c") == {path: hub.files[path] for path in NEEDED}


def test_the_record_is_one_that_sha256sum_reads(hub, run, tmp_path):
    run()
    checked = subprocess.run(
        ["sha256sum", "-c", RECORD], cwd=tmp_path / "c", capture_output=True, text=True
    )
    assert checked.returncode == 0
    assert len(checked.stdout.splitlines()) == len(NEEDED)


def test_the_token_goes_to_the_endpoint_alone_and_is_never_written(hub, run, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    hub.cuts = [1_000_000]
    hub.answers = {f"{T5}/resolve": (403, {"X-Error-Code": "GatedRepo"})}
    said = run()[1] + run("--verify")[1] + caplog.text
    assert TOKEN not in said
    assert all(TOKEN.encode() not in data for data in _on_disk(tmp_path).values())
    for request in hub.requests:
        sent = {name.lower(): value for name, value in request.headers.items()}
        if request.host == "hub":
            assert sent.pop("authorization") == f"Bearer {TOKEN}"
        assert TOKEN not in str(sent) + request.path
    assert {request.host for request in hub.requests} == {"hub", "store"}


def test_without_a_token_none_is_sent(hub, run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert run()[0] == 0
    assert not any("authorization" in str(request.headers).lower() for request in hub.requests)


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, r"accept the licence at https://huggingface.co/\S+ "),
        (403, {"X-Error-Code": "GatedRepo"}, r"set HF_TOKEN to a token that may read it"),
        (401, {}, r"it doesn't accept HF_TOKEN"),
        (404, {"X-Error-Code": "RevisionNotFound"}, r"no revision acdb5fde\w+; if HF_ENDPOINT"),
        (404, {"X-Error-Code": "RepoNotFound"}, r"no repository nvidia/Cosmos-Predict2-2B-Text"),
        (429, {"Retry-After": "17"}, r"too many requests; wait 17 s"),
        (503, {}, r"answers 503; run the command again later"),
    ],
)
@pytest.mark.parametrize("where", ["api/models/", "resolve"])
def test_a_hub_that_refuses_is_answered_with_the_way_out_and_the_others_come_in(
    hub, run, tmp_path, where, status, headers, says
):
    path = f"{where}{PICTURES}" if where.endswith("/") else f"{PICTURES}/{where}"
    hub.answers = {path: (status, headers)}
    code, said = run()
    assert code == 1
    assert re.search(says, said), said
    assert "Traceback" not in said
    assert set(_on_disk(tmp_path / "c")) == NEEDED - {BIG}  # and no empty file is left


def test_a_gated_repository_is_asked_once_not_for_each_of_its_files(hub, run):
    hub.answers = {f"{LLAMA}/resolve": (403, {"X-Error-Code": "GatedRepo"})}
    code, said = run("--with", "guardrails")
    assert code == 1
    assert said.count(f"accept the licence at https://huggingface.co/{LLAMA}") == 1
    assert sum(path.startswith(LLAMA) for path in hub.asked_for()) == 1


def test_a_file_that_the_revision_lacks_is_named_and_the_others_come_in(hub, run, tmp_path):
    del hub.files[f"{T5}/tokenizer.json"]
    code, said = run()
    assert code == 1
    assert f"{T5} has no tokenizer.json at revision {REPOS[T5].revision}" in said
    assert set(_on_disk(tmp_path / "c")) == NEEDED - {f"{T5}/tokenizer.json"}


def test_a_file_that_vanishes_after_it_was_listed_is_named(hub, run):
    hub.answers = {
        f"{BIG.removesuffix('/model.pt')}/resolve": (404, {"X-Error-Code": "EntryNotFound"})
    }
    code, said = run()
    assert code == 1
    assert f"{BIG}: {hub.url} answers 404, no such file at revision" in said


def test_no_network_is_said_at_once(run, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    code, said = run()
    assert code == 1
    assert "http://127.0.0.1:9 can't be reached" in said
    assert "check the network, HTTPS_PROXY and HF_ENDPOINT" in said


def test_an_endpoint_that_is_no_hub_is_said(hub, run):
    hub.answers = {"/api/": (200, {})}
    code, said = run()
    assert code == 1
    assert "doesn't answer as a hub does" in said


@pytest.mark.parametrize("name", ["../../../evil.json", "a/../../../../evil.json", "..\\evil.json"])
def test_a_listing_cannot_make_files_outside_the_checkpoint_folder(hub, run, tmp_path, name):
    hub.listed[f"{VIDEO}/text_encoder/{name}"] = b"{}"
    code, said = run("--layout", "diffusers")
    assert code == 1
    assert "could land outside its folder" in said
    assert not list(tmp_path.rglob("*evil*"))
    assert not any(VIDEO in path for path in hub.asked_for())


def test_a_listed_digest_cannot_choose_a_path_either(hub, run, tmp_path, monkeypatch):
    listing = FakeHub.listing

    def evil(self, repo):
        files = listing(self, repo)
        for file in files:
            if "lfs" in file:
                file["lfs"]["sha256"] = "/../../../evil"
        return files

    monkeypatch.setattr(FakeHub, "listing", evil)
    code, said = run()
    assert code == 1
    assert "without a digest to check it by" in said
    assert not list(tmp_path.rglob("*evil*"))


def test_a_disk_too_small_is_refused_before_anything_is_fetched(hub, run, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**7, 7 * 10**6, 2_900_000))
    code, said = run()
    assert code == 1
    assert "has 2.90 MB free, the files need 3.00 MB; make room" in said
    assert hub.asked_for() == []
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("answer", "fetched"), [("y", True), ("", False), ("n", False)])
def test_a_terminal_is_asked_first(hub, run, tmp_path, monkeypatch, answer, fetched):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: answer)
    assert run()[0] == 0
    assert (tmp_path / "c").exists() == fetched


def test_the_end_of_input_is_no_consent(hub, run, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert run()[0] == 0
    assert not (tmp_path / "c").exists()


def test_yes_asks_nobody(hub, run, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail("asked"))
    assert run("--yes")[0] == 0
    assert (tmp_path / "c" / BIG).exists()


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "is full; make room"), (errno.EACCES, "can't be written")]
)
def test_a_disk_that_refuses_is_said_and_what_has_arrived_is_kept(tmp_path, number, says):
    file = RemoteFile(REPOS[PICTURES], "model.pt", 10, sha256="0" * 64)

    def download(file, stream):
        stream.write(b"half")
        raise OSError(number, "no")

    (failure,) = fetch([Item(file, State.FETCH)], tmp_path, download, lambda line: None)
    assert failure.startswith(f"{BIG}: ")
    assert says in failure
    assert list(_on_disk(tmp_path).values()) == [b"half"]


def test_two_fetches_do_not_write_to_one_file(tmp_path):
    file = RemoteFile(REPOS[PICTURES], "model.pt", 10, sha256="0" * 64)
    inner = []

    def download(file, stream):
        if not inner:
            inner.append("started")
            inner[:] = fetch([Item(file, State.FETCH)], tmp_path, download, lambda line: None)

    fetch([Item(file, State.FETCH)], tmp_path, download, lambda line: None)
    assert "is being written by another fetch" in inner[0]


def test_the_toy_needs_no_download(hub, run):
    code, said = run(preset="toy")
    assert code == 0
    assert "needs no download" in said
    assert not hub.requests


def test_the_list_of_sizes_is_there_without_a_network(capsys):
    assert cli.main(["fetch", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # T5 45, VAE 0.5 and two denoisers of 1.956e9 two-byte weights; T5's encoder in bfloat16 is 9.7.
    assert any(re.fullmatch(r"2b-720p-16fps +~ 53\.3 GB +~ 18\.0 GB", line) for line in lines)
    assert any(re.fullmatch(r"2b-480p-10fps +~ 53\.3 GB +~ 18\.0 GB", line) for line in lines)
    assert any(re.fullmatch(r"0\.6b +> 46\.2 GB +-", line) for line in lines)
    assert not any(line.startswith("toy") for line in lines)


def test_help_does_not_load_the_hub_client():
    code = "import sys, predict2_export.cli as c\ntry: c.main(['fetch', '--help'])\nexcept SystemExit: pass\n"
    code += "print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_telemetry_is_off(hub, run):
    code = "import os, sys, predict2_export.cli as c\nc.main(['fetch', '--preset', '2b-720p-16fps', '--dry-run'])\n"
    code += "from huggingface_hub import constants\nprint(constants.HF_HUB_DISABLE_TELEMETRY)"
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "True", done.stderr


def test_every_preset_names_published_repositories_and_every_known_file_is_somebodys():
    used = set()
    for preset in PRESETS.values():
        if wanted.is_published(preset):
            layouts = [wanted.wanted(preset)]
            if preset.video2world:
                layouts.append(wanted.wanted(preset, layout="diffusers"))
            used |= {(w.repo.name, p) for wants in layouts for w in wants for p in w.include}
    used |= {(w.repo.name, p) for wants in EXTRAS.values() for w in wants for p in w.include}
    for repo in REPOS.values():
        assert re.fullmatch(r"[0-9a-f]{40}", repo.revision)
        for name, known in repo.known.items():
            assert any(
                owner == repo.name and (pattern == name or pattern.startswith(name.split("/")[0]))
                for owner, pattern in used
            ), name
            assert re.fullmatch(r"|[0-9a-f]{32}", known.md5)
            assert re.fullmatch(r"|[0-9a-f]{64}", known.sha256)
