# SPDX-License-Identifier: Apache-2.0
"""Judged clips as web pages that need no server, no script and no network."""

import base64
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from predict2_spec import critic

EMBED_BYTES = 32 * 1024 * 1024  # a larger clip is linked: browsers are slow to open such a page
NO_SEED = -1  # of a clip that came from elsewhere
OVERVIEW = "index.html"

# 'self' alone isn't enough for clips beside a page that is opened as a file.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; media-src 'self' file: data:; "
    "img-src 'self' data:"
)
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --dim: #5c6470; --bad: #b3261e; --good: #17703a; }
@media (prefers-color-scheme: dark) { :root { --dim: #a5acb8; --bad: #ff8a80; --good: #7bd88f; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; }
h2 { font-size: 1.2rem; }
h3 { font-size: 1rem; margin: .4rem 0; }
video { display: block; width: 100%; max-height: 70vh; background: #000; }
.wide { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
.counts { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; list-style: none; }
.counts li { flex: 1 1 7rem; padding: .4rem .8rem; border: 2px solid var(--line); }
.counts b { display: block; font-size: 1.5rem; }
article, section { border-top: 1px solid var(--line); margin-top: 1.5rem; }
.box { border: 2px solid var(--dim); border-radius: .4rem; padding: .2rem .8rem; margin: .6rem 0; }
.box.bad, .counts .bad { border-color: var(--bad); }
.box.good, .counts .good { border-color: var(--good); }
.word { font-weight: 600; color: var(--dim); }
.word.bad { color: var(--bad); }
.word.good { color: var(--good); }
p, pre, dd { white-space: pre-wrap; }
dt { font-weight: 600; }
dd { margin: 0 0 .4rem; }
"""
# Of an answer to whether there are anomalies: how it looks, and the word for who sees no colours.
_LOOKS = {True: ("bad", "anomaly"), False: ("good", "no anomaly"), None: ("unread", "unreadable")}


@dataclass(frozen=True, kw_only=True)
class Clip(critic.Judged):
    """A judged clip as a file."""

    path: Path
    made: bool = False  # the file is there, and is what was asked for
    unavailable: bool = False  # the server was gone or has no critic: the others need not try
    page: str = ""  # the name of the file beside it that shows the judgement
    record: Mapping[str, Any] = field(default_factory=dict)  # how it came about: its side file

    @property
    def seed_text(self) -> str:
        """The seed; empty where none is known."""
        return "" if self.seed == NO_SEED else str(self.seed)


@dataclass(frozen=True)
class Counts:
    """How many responses of a clip say what."""

    no_anomaly: int
    anomaly: int
    unreadable: int


def counted(responses: Iterable[str]) -> Counts:
    """Count the responses by what they answer; the score is made of the same answers."""
    answers = [critic.has_anomaly(response) for response in responses]
    return Counts(answers.count(False), answers.count(True), answers.count(None))


def link(name: str) -> str:
    """The relative URL of a file in the page's own folder."""
    return quote(os.fsencode(name), safe="")


def source(name: str, clip: bytes) -> str:
    """Where a page takes a clip from: the page itself, unless the clip is very large."""
    if len(clip) > EMBED_BYTES:
        return link(name)
    return f"data:video/mp4;base64,{base64.b64encode(clip).decode()}"


def clip_page(clip: Clip, video: str) -> str:
    """What the critic says of one clip; `video` is the clip's URL."""
    trials = "\n".join(_trial(number, text) for number, text in enumerate(clip.responses, start=1))
    return _page(
        f"The critic on {clip.path.name}",
        f"""<p>Score {_score(clip.score)}, of 1 at best. <a href="{OVERVIEW}">All clips</a></p>
{_video(video)}
{_counters(clip.responses)}
{trials}""",
    )


def overview(clips: Sequence[Clip]) -> str:
    """All clips, in the order they are given in: best first."""
    rows = "\n".join(_row(rank, clip) for rank, clip in enumerate(clips, start=1))
    articles = "\n".join(map(_article, clips))
    return _page(
        "Clips as the critic ranks them",
        f"""<div class="wide">
<table>
<thead><tr><th>rank</th><th>clip</th><th>seed</th><th>score</th><th>no anomaly</th><th>anomaly</th>\
<th>unreadable</th><th>judgement</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
{articles}""",
    )


def _page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
{body}
</body>
</html>
"""


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _score(score: float) -> str:
    return f'<meter min="0" max="1" value="{score:.4f}"></meter> {score:.2f}'


def _video(url: str) -> str:
    return f'<video controls playsinline preload="metadata" src="{_text(url)}"></video>'


def _word(anomaly: bool | None) -> str:
    look, word = _LOOKS[anomaly]
    return f'<span class="word {look}">{word}</span>'


def _counters(responses: Sequence[str]) -> str:
    counts = counted(responses)
    return f"""<ul class="counts">
<li class="bad"><b>{counts.anomaly}</b> anomaly</li>
<li class="good"><b>{counts.no_anomaly}</b> no anomaly</li>
<li><b>{counts.unreadable}</b> unreadable</li>
<li><b>{len(responses)}</b> responses</li>
</ul>"""


def _trial(number: int, response: str) -> str:
    reading = critic.parse(response)
    boxes = "\n".join(
        f"""<div class="box {_LOOKS[component.anomaly][0]}">
<h3>{_text(component.name or "unnamed part")}: {_word(component.anomaly)}</h3>
<p>{_text(component.analysis)}</p>
</div>"""
        for component in reading.components
    )
    opened = "" if reading.overview or boxes else " open"
    return f"""<section>
<h2>Trial {number}</h2>
<p>{_text(reading.overview)}</p>
{boxes}
<p>Final answer: {_word(reading.anomaly)}</p>
<details{opened}><summary>The response as it came</summary><pre>{_text(response)}</pre></details>
</section>"""


def _row(rank: int, clip: Clip) -> str:
    name = _text(clip.path.name)
    if clip.made:
        name = f'<a href="{link(clip.path.name)}">{name}</a>'
    if clip.error:
        result = f'<td colspan="5"><span class="word bad">failed</span>: {_text(clip.error)}</td>'
    else:
        counts = counted(clip.responses)
        result = (
            f"<td>{_score(clip.score)}</td><td>{counts.no_anomaly}</td><td>{counts.anomaly}</td>"
            f'<td>{counts.unreadable}</td><td><a href="{link(clip.page)}">read</a></td>'
        )
    place = "" if clip.error else rank
    return f"<tr><td>{place}</td><td>{name}</td><td>{clip.seed_text}</td>{result}</tr>"


def _article(clip: Clip) -> str:
    if not clip.made:
        return ""
    prompt = clip.record.get("refined_prompt") or clip.record.get("prompt") or ""
    settings = "\n".join(
        f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>"
        for name, value in clip.record.items()
        if isinstance(value, str | int | float) and value != ""
    )
    return f"""<article>
<h2>{_text(clip.path.name)}</h2>
{_video(link(clip.path.name))}
<p>{_text(prompt)}</p>
<details><summary>How it came about</summary><dl>
{settings}
</dl></details>
</article>"""
