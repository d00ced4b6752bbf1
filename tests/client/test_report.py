# SPDX-License-Identifier: Apache-2.0
"""Pages of judged clips: what they say, that they are whole, and that no text becomes markup."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from predict2_client import report
from predict2_client.report import Clip

VOID = {"meta"}  # of the elements in use, those that are never closed
HOSTILE = (
    """</pre></p></title></style><script>alert(1)</script><img src=x onerror=alert(1)>"""
    """" onload="x" ' onclick='y' <!-- <b <svg/onload=z> &lt;i&gt; ]]> {braces} %s"""
)
NAMES = ["a b.mp4", 'it\'s "so".mp4', "100%41.mp4", "größer 🎈.mp4", "a#b?c&d=e.mp4", "x:y<b>.mp4"]


def response(answer, components="", overview="A ball rolls."):
    return f"<think><overview>{overview}</overview>{components}</think>\n<answer>{answer}</answer>"


def component(name, analysis, anomaly):
    return (
        f'<component name="{name}"><analysis>{analysis}</analysis>'
        f"<anomaly>{anomaly}</anomaly></component>"
    )


BAD = response("Yes", component("hand", "It has six fingers.", "Yes"))
GOOD = response("No", component("ball", "It rolls.", "No") + component("floor", "Flat.", "No"))


def clip(name="in_seed3.mp4", **values):
    defaults = {"seed": 3, "score": 0.5, "responses": (BAD, GOOD), "made": True, "page": "p.html"}
    return Clip(path=Path("folder") / name, **{**defaults, **values})


class Page(HTMLParser):
    """A page taken apart; fails where elements aren't closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        assert len({name for name, _ in attributes}) == len(attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, tag, name):
        return [value for *place, value in self.attributes if place == [tag, name]]

    @property
    def shape(self):
        """Everything but the texts and the places that links and clips lead to."""
        return self.tags, [
            (tag, name, None if name in ("href", "src", "value") else value)
            for tag, name, value in self.attributes
        ]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def clip_page(one, video="data:video/mp4;base64,AA=="):
    return Page(report.clip_page(one, video))


def overview(*clips):
    return Page(report.overview(clips))


def test_page_of_a_clip_counts_and_shows_each_trial():
    text = clip_page(clip(responses=(BAD, GOOD, "I can't say."), score=0.5)).text
    assert "The critic on in_seed3.mp4" in text
    assert "1 anomaly 1 no anomaly 1 unreadable 3 responses" in text
    for number, answer in enumerate(("anomaly", "no anomaly", "unreadable"), start=1):
        trial = text.split(f"Trial {number}")[1]
        assert trial.split("Final answer: ")[1].startswith(answer)
    assert "hand: anomaly It has six fingers." in text
    assert "floor: no anomaly Flat." in text


def test_box_says_by_border_and_by_word_whether_there_is_an_anomaly():
    page = clip_page(clip())
    boxes = [name for name in page.values("div", "class") if name.startswith("box")]
    assert boxes == ["box bad", "box good", "box good"]
    words = [name for name in page.values("span", "class") if name.startswith("word")]
    assert words == [f"word {look}" for look in ("bad", "bad", "good", "good", "good")]


def test_response_stands_there_as_it_came():
    raw = "<think> odd\n\n  spaces </think>"
    assert raw in "".join(clip_page(clip(responses=(raw,))).texts)


def test_response_of_which_nothing_can_be_read_is_open_at_once():
    opened = clip_page(clip(responses=(GOOD, "I can't say."))).values("details", "open")
    assert len(opened) == 1


def test_page_shows_the_clip_it_is_given():
    data = bytes(range(256))
    url = report.source("a.mp4", data)
    assert clip_page(clip(), url).values("video", "src") == [url]
    assert base64.b64decode(url.removeprefix("data:video/mp4;base64,")) == data


def test_very_large_clip_is_linked(monkeypatch):
    monkeypatch.setattr(report, "EMBED_BYTES", 3)
    assert report.source("a b.mp4", b"1234") == "a%20b.mp4"
    assert report.source("a b.mp4", b"123").startswith("data:")


@pytest.mark.parametrize("name", NAMES)
def test_links_survive_any_file_name(name):
    page = overview(clip(name, page=f"{name}.html"))
    (video,) = page.values("video", "src")
    assert re.fullmatch(r"[A-Za-z0-9._~%-]+", video)
    assert unquote(video) == name
    assert [unquote(link) for link in page.values("a", "href")] == [name, f"{name}.html"]
    assert name in page.text
    assert name in clip_page(clip(name)).text


def test_file_name_that_is_no_text_is_linked_by_its_bytes():
    assert report.link("a\udcff.mp4") == "a%FF.mp4"


def test_overview_keeps_the_order_it_is_given():
    seeds = (7, 2, 5)
    page = overview(*(clip(f"in_seed{seed}.mp4", seed=seed) for seed in seeds))
    assert page.values("video", "src") == [f"in_seed{seed}.mp4" for seed in seeds]
    rows = re.findall(r"(\d) in_seed(\d)\.mp4 \2 0\.50 1 1 0 read", page.text)
    assert rows == [("1", "7"), ("2", "2"), ("3", "5")]


def test_overview_says_how_a_clip_came_about():
    record = {"prompt": "mine", "refined_prompt": "its own", "seed": 3, "seconds": {"vae": 1}}
    text = overview(clip(record=record)).text
    assert (
        "in_seed3.mp4 its own How it came about prompt mine refined_prompt its own seed 3" in text
    )
    assert "vae" not in text


def test_failed_clip_has_its_reason_and_no_video():
    failed = clip(made=False, responses=(), score=0.0, page="", error="disk <full>")
    page = overview(clip("good.mp4"), failed)
    assert "in_seed3.mp4 3 failed : disk <full>" in page.text
    assert page.values("video", "src") == ["good.mp4"]


def test_clip_that_could_not_be_judged_is_shown_with_the_reason():
    page = overview(clip(responses=(), score=0.0, page="", error="no critic"))
    assert "failed : no critic" in page.text
    assert page.values("video", "src") == ["in_seed3.mp4"]


def test_clip_from_elsewhere_has_no_seed():
    assert "in_seed3.mp4 0.50" in overview(clip(seed=report.NO_SEED)).text


def test_hostile_texts_of_the_critic_stay_text():
    def judged(text):
        trial = response("Yes", component(text.replace('"', ""), text, "Yes"), text)
        return clip(responses=(trial, text, f"{text}<answer>No</answer>"))

    harmless, hostile = clip_page(judged("plain")), clip_page(judged(HOSTILE))
    assert hostile.shape == harmless.shape
    assert HOSTILE in "".join(hostile.texts)


def test_hostile_names_settings_and_reasons_stay_text():
    def pages(text):
        record = {"prompt": text, "solver": text}
        failed = clip(text.replace("/", ""), error=text, record=record)
        return overview(clip(text.replace("/", ""), record=record), failed), clip_page(failed)

    for hostile, harmless in zip(pages(HOSTILE), pages("plain"), strict=True):
        assert hostile.shape == harmless.shape


def test_hostile_address_of_a_clip_stays_an_attribute():
    assert clip_page(clip(), HOSTILE).shape == clip_page(clip(), "plain").shape


def test_hostile_setting_name_stays_text():
    hostile = overview(clip(record={HOSTILE: 1}))
    assert hostile.shape == overview(clip(record={"plain": 1})).shape


@pytest.mark.parametrize("page", [overview(clip()), clip_page(clip())], ids=["overview", "clip"])
def test_page_runs_nothing_and_fetches_nothing_from_elsewhere(page):
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    (policy,) = [text for text in page.values("meta", "content") if text.startswith("default-src")]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; media-src ")
    assert "http" not in policy
    assert "url(" not in page.text
    assert "@import" not in page.text


@pytest.mark.parametrize("page", [overview(clip()), clip_page(clip())], ids=["overview", "clip"])
def test_page_fits_narrow_screens_and_dark_rooms(page):
    assert "width=device-width, initial-scale=1" in page.values("meta", "content")
    assert "color-scheme: light dark" in page.text
    assert "prefers-color-scheme: dark" in page.text
