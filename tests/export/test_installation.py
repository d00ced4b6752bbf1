# SPDX-License-Identifier: Apache-2.0
"""Stages are put into a repository whole, one builder at a time, or not at all."""

import errno
import os
from pathlib import Path

import pytest

from predict2_export.installation import check_unchanged, install, replacing, stamps
from predict2_runtime.repository import write_preset
from predict2_spec.errors import CheckpointError, InvalidRequestError, Predict2Error
from predict2_spec.presets import TOY, find_preset

TEMPLATES = Path(__file__).parents[2] / "model_repository"


@pytest.fixture
def stage(tmp_path):
    """A stage that is installed already."""
    folder = tmp_path / "served" / "stage"
    folder.mkdir(parents=True)
    (folder / "plan").write_text("old")
    return folder


def replace(folder, text="new"):
    with replacing(folder) as made:
        (made / "plan").write_text(text)
        return made


class Nothing:
    """A recipe of no files."""

    network = "text_encoder"
    files = ()

    def check_lowerable(self):
        pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_stage_is_made_beside_the_repository_and_takes_the_old_ones_place(stage):
    made = replace(stage)
    assert made.parent == stage.parents[1]
    assert (stage / "plan").read_text() == "new"
    assert (names(stage.parent), names(stage.parents[1])) == (["stage"], ["served"])


def test_a_repository_may_be_the_current_folder(stage, monkeypatch):
    monkeypatch.chdir(stage.parent)
    replace(Path("stage"))
    replace(Path("..") / "served" / "stage")
    replace(Path("..") / "served" / "." / "other")
    assert (names(stage.parent), names(stage.parents[1])) == (["other", "stage"], ["served"])


def test_a_repository_that_is_a_disk_of_its_own_gets_its_stages_too(stage, monkeypatch):
    real = os.rename

    def rename(source, target):
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    replace(stage)
    assert (stage / "plan").read_text() == "new"
    assert (names(stage.parent), names(stage.parents[1])) == (["stage"], ["served"])


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()])
def test_the_old_stage_is_back_when_the_new_one_cant_take_its_place(stage, error, monkeypatch):
    real = os.rename

    def rename(source, target):
        if Path(target) == stage and "old" not in Path(source).suffix:
            raise error
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(type(error)):
        replace(stage)
    assert (stage / "plan").read_text() == "old"
    assert (names(stage.parent), names(stage.parents[1])) == (["stage"], ["served"])


def test_what_another_build_left_is_taken_away(stage):
    left = stage.parents[1] / ".served.stage.part"
    (left / "1").mkdir(parents=True)
    replace(stage)
    assert (names(stage), names(stage.parents[1])) == (["plan"], ["served"])


def test_two_builds_dont_write_into_one_repository(tmp_path):
    def again(recipe, tell):
        install(TOY, [], TEMPLATES, tmp_path / "toy", tell, again)

    with pytest.raises(Predict2Error, match=r"something else builds into .*toy now; wait until it is done or choose another --output"):  # fmt: skip
        install(TOY, [Nothing()], TEMPLATES, tmp_path / "toy", print, again)
    install(TOY, [], TEMPLATES, tmp_path / "toy", print, again)  # which is free again


def test_a_stage_that_the_preset_lacks_is_refused(tmp_path):
    found = [Nothing()]
    with pytest.raises(InvalidRequestError, match="preset toy has no critic; it has text_encoder"):
        install(TOY, found, TEMPLATES, tmp_path / "toy", print, print, only="critic")
    assert not (tmp_path / "toy").exists()


def test_a_repository_of_another_preset_is_refused(tmp_path):
    other = find_preset("2b-480p-16fps")
    write_preset(tmp_path, other)
    with pytest.raises(InvalidRequestError, match="holds preset 2b-480p-16fps and a repository serves one; choose another --output for toy"):  # fmt: skip
        install(TOY, [], TEMPLATES, tmp_path, print, lambda recipe, tell: None)
    assert names(tmp_path) == ["repository.json"]


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    (tmp_path / "folder").mkdir()
    files = [tmp_path / "one", tmp_path / "folder" / "two"]
    for file in files:
        file.write_text("0")
    before = stamps([files[0], tmp_path / "folder"])
    check_unchanged(before)
    files[1].write_text("01")
    with pytest.raises(CheckpointError, match="two changed while it was read"):
        check_unchanged(before)
    files[1].unlink()
    with pytest.raises(CheckpointError, match="two changed while it was read"):
        check_unchanged(before)
