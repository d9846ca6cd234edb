"""Presets: those that ship, and files of one's own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import deqreg
from deqreg.presets import PRESETS, Level, read_preset


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_shipped_ones_are_called_by_their_name(name: str) -> None:
    assert read_preset(name).name == name


def test_a_file_changes_what_it_names_and_no_more(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'base = "brain"\nlevels = [{factor = 2, max_steps = 7}]\n'
        "[method]\nsmooth_field = 0.5\nsimilarity = {window = 7}\n",
    )
    brain, mine = read_preset("brain"), read_preset(path)
    similarity = replace(brain.method.similarity, window=7)
    method = replace(brain.method, smooth_field=0.5, similarity=similarity)
    assert mine == replace(brain, name="mine", levels=(Level(2.0, 7),), method=method)


def test_another_kind_of_similarity_takes_nothing_from_the_base(tmp_path: Path) -> None:
    path = write(tmp_path, 'base = "brain"\n[method]\nsimilarity = {kind = "mean_squares", weight = 9}\n')
    assert vars(read_preset(path).method.similarity) == {"weight": 9.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tol = ", "not TOML"),
        ('base = "liver"', "base must be one of brain, lung, generic, got 'liver'"),
        ('base = "lung"\n[method]\nsmooth_feild = 1', "method.smooth_feild is not known: did you mean smooth_field"),
        ('base = "lung"\n[method]\nsmooth_field = -1', "smooth_field must be in 0 ..."),
        ('base = "lung"\ntol = "small"', "tol must be a number, got 'small'"),
        ('base = "lung"\nlevels = []', "levels and refinement must not be empty"),
        ('base = "lung"\nlevels = [{factor = 1, max_steps = 0}]', "factor and max_steps must be positive"),
        ('base = "lung"\n[method.similarity]\nkind = "mi"', "method.similarity.kind must be one of lncc, mean_squares"),
        ("tol = 0.1", "must be given"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_preset(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"preset nowhere\.toml: No such file"):
        read_preset("nowhere.toml")


def test_a_registration_runs_by_a_file_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, 'base = "generic"\nlevels = [{factor = 2, max_steps = 3}]\n')
    image = torch.rand(24, 24)
    found = deqreg.register(image, image, preset=path, initial="identity")
    assert [level.shape for level in found.levels] == [(12, 12)]
    assert found.settings["preset"]["name"] == "mine"
