# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_runtime.guardrails.blocklist import SHIPPED_LISTS, Blocklist
from predict2_spec.errors import EngineMismatchError


def write(folder, files):
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture
def read(tmp_path):
    """Reads a folder with these files."""
    return lambda **lists: Blocklist.read(
        write(tmp_path, {f"{name}/words.txt": text for name, text in lists.items()})
    )


def test_a_guardrail_checkpoint_folder_is_read_as_it_is(tmp_path):
    files = {
        "custom/bombs": "bomb\n",
        "custom/other.words.txt": "gun\n",
        "exact_match/brands.txt": "acme robots\n",
        "whitelist/fine": "gun\n",
        "nltk_data/corpora/wordnet.zip": b"\xff\x00",
        "custom/.gitattributes": "spoon\n",
        "README.md": "fork\n",
    }
    blocklist = Blocklist.read(write(tmp_path, files))
    assert blocklist.find("a Bomb") == ("bombs", "bomb")
    assert blocklist.find("ACME  Robots!") == ("brands", "acme robots")
    assert blocklist.find("a gun, a spoon and a fork") is None


def test_blank_lines_and_remarks_are_no_entries(read):
    blocklist = read(custom="\ufeffbomb\r\n\r\n   \r\n# gun\r\n  mortar  \r\n")
    assert blocklist.find("bomb") == ("words", "bomb")
    assert blocklist.find("mortars") == ("words", "mortar")
    assert blocklist.find("a gun # gun") is None


def test_entries_without_a_word_match_nothing(read):
    blocklist = read(custom="***\n(.Y.)\n:-)\n*\nbomb", exact_match="...\n-")
    assert blocklist.find("why *** y (.Y.) :-) * ... -") is None


def test_several_folders_add_up_and_each_can_excuse_from_the_others(tmp_path):
    first = write(tmp_path / "first", {"custom/a.txt": "bomb\ngun"})
    second = write(tmp_path / "second", {"whitelist/b.txt": "gun\nbath bomb"})
    blocklist = Blocklist.read(first, second)
    assert blocklist.find("a gun and a bath bomb") is None
    assert blocklist.find("a bath bomb and a bomb") == ("a", "bomb")


def test_the_shipped_whitelist_saves_what_other_lists_are_known_to_refuse(tmp_path):
    strict = write(tmp_path, {"custom/strict.txt": "xbox\nbleeding\nlifeless\nkill\nnail\nblood"})
    blocklist = Blocklist.read(SHIPPED_LISTS, strict)
    for text in (
        "an Xbox controller",
        "bleeding edge, a bleeding heart flower",
        "a lifeless desert",
        "the kill switches",
        "a nail gun",
        "blood oranges",
    ):
        assert blocklist.find(text) is None, text
    assert blocklist.find("a bleeding man") == ("strict", "bleeding")


def test_a_whitelisted_word_frees_no_phrase_that_it_stands_in(read):
    blocklist = read(
        custom="white power\nwhite", exact_match="power plant", whitelist="white\npower"
    )
    assert blocklist.find("white power") == ("words", "white power")
    assert blocklist.find("a power plant") == ("words", "power plant")
    assert blocklist.find("a white wall") is None


def test_a_whitelisted_phrase_covers_the_words_in_it(read):
    blocklist = read(custom="kill", exact_match="switch", whitelist="kill switch")
    assert blocklist.find("the KILL-switch") is None
    assert blocklist.find("kill the switch") == ("words", "kill")
    assert blocklist.find("a switch") == ("words", "switch")


def test_exact_entries_are_found_only_as_they_stand(read):
    blocklist = read(exact_match="acme\nu.s. robots\nheroin")
    for text in ("Acme's arm", "the ACME.", "acme-made", "**acme**"):
        assert blocklist.find(text) == ("words", "acme"), text
    assert blocklist.find("U.S.\nRobots") == ("words", "u.s. robots")
    for text in ("acmes", "4cme", "acm", "heroine", "herion", "heroins", "a robots"):
        assert blocklist.find(text) is None, text


def test_partly_equal_words_pass(read):
    blocklist = read(custom="heroin\npipe bomb")
    for text in ("heroine", "eroin", "heron", "pipe", "bombpipe", "pipe bombastic", "bomb pipe"):
        assert blocklist.find(text) is None, text


def test_words_that_only_together_make_an_entry_pass(read):
    blocklist = read(custom="heroin\ntherapist\ndeskin")
    for text in ("a hero in red", "the rapist", "a desk in the background"):
        assert blocklist.find(text) is None, text


def test_entries_of_many_words_are_found_with_any_marks_between(read):
    blocklist = read(custom="cut off the heads")
    assert blocklist.find("he CUTS off -- the head") is None
    assert blocklist.find("cutting off,\n\nthe *heads*") == ("words", "cut off the heads")
    assert blocklist.find("cut off the") is None


def test_entries_may_hold_accents_and_other_scripts(read):
    blocklist = read(custom="na\u00efve\n\u70b8\u5f39")
    assert blocklist.find("NAIVE") == ("words", "na\u00efve")
    assert blocklist.find("\u70b8\u5f39!") == ("words", "\u70b8\u5f39")


def test_a_short_spelling_with_signs_is_found_and_a_price_is_not(read):
    blocklist = read(custom="ass\nsos")
    assert blocklist.find("@$$") == ("words", "ass")
    assert blocklist.find("a$$ 455 $0$ $05 *$$") == ("words", "ass")
    assert blocklist.find("455 $0$ $05 *$$ ***") is None


def test_letters_apart_make_words_of_three_letters_and_more(read):
    blocklist = read(custom="bomb\ngun\nxx")
    for text in ("b o m b", "B.O.M.B", "a b o m b", "i b-o-m-b you", "b\no\nm\nb"):
        assert blocklist.find(text) == ("words", "bomb"), text
    for text in ("g u n", "a g.u.n"):
        assert blocklist.find(text) == ("words", "gun"), text
    for text in ("x x", "b o m b a r d", "a b o m b i c", "g u n s e t", "x g u n"):
        assert blocklist.find(text) is None, text


def test_entries_of_five_letters_are_found_inside_letters_apart_and_nowhere_else(read):
    blocklist = read(custom="sarin\nnail bomb", exact_match="acme x", whitelist="nail bombast")
    for text, entry in (
        ("o f s a r i n o w", "sarin"),
        ("o f 5 4 r 1 n o w", "sarin"),
        ("a n n a i l b o m b s", "nail bomb"),
        ("t h e a c m e x y", "acme x"),
    ):
        assert blocklist.find(text) == ("words", entry), text
    for text in ("ofsarinow", "annailbombs", "n a i l b o m b a s t", "t h e 4 c m e x y"):
        assert blocklist.find(text) is None, text


def test_entries_of_many_words_are_found_as_one_word_that_is_long_enough(read):
    blocklist = read(custom="nail bomb\nu.s.", exact_match="acme x\ni. t.")
    for text, entry in (("n4ilb0mbs", "nail bomb"), ("ACMEx", "acme x")):
        assert blocklist.find(text) == ("words", entry), text
    for text in ("give it to us", "acmexs", "snailbomb"):
        assert blocklist.find(text) is None, text


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no entry in custom, whitelist, exact_match"),
        ({"custom/a.txt": "# only a remark\n"}, "has no entry"),
        ({"words.txt": "bomb"}, "or name another folder"),
        ({"custom": "bomb"}, "custom can't be read"),
        ({"custom/a.txt": b"caf\xe9"}, "a.txt can't be read"),
        ({"whitelist/a.txt": "bomb".encode("utf-16")}, "save it as UTF-8 text"),
    ],
)
def test_a_folder_that_holds_no_readable_list_is_refused(tmp_path, files, said):
    with pytest.raises(EngineMismatchError, match=said):
        Blocklist.read(write(tmp_path, files))


def test_a_list_that_a_broken_link_stands_for_is_refused(tmp_path):
    folder = write(tmp_path, {"custom/a.txt": "bomb"})
    (folder / "custom" / "b.txt").symlink_to(tmp_path / "absent")
    with pytest.raises(EngineMismatchError, match=r"b\.txt can't be read"):
        Blocklist.read(folder)


def test_a_missing_folder_is_refused_by_its_name(tmp_path):
    with pytest.raises(EngineMismatchError, match="absent has no entry"):
        Blocklist.read(tmp_path / "absent")


@pytest.mark.parametrize(
    "unit",
    [
        "*",
        "a",
        "a ",
        "* ",
        "a*",
        "-",
        "'s",
        "\n",
        "a-",
        "\u0301",
        "\ufdfa",
        "\u0430 ",
        "b.",
        "kill ",
        "s u i c i d ",
        "b  3 ",
    ],
)
def test_hostile_prompts_come_to_an_end(unit):
    blocklist = Blocklist.read(SHIPPED_LISTS)
    assert blocklist.find((unit * 16384)[:16384]) is None
