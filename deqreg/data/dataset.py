"""The `dataset.json` of the Learn2Reg challenge, and what it may leave out."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# what an entry may hold beside its image; Learn2Reg's `keypoints` are voxels without a header
_PARTS = ("label", "mask", "landmarks", "keypoints")


@dataclass(frozen=True)
class Case:
    """One image and what is known of it.

    Attributes:
        image: NIfTI file.
        label: a segmentation on its grid.
        mask: above zero where the image counts.
        landmarks: CSV with the header `x,y,z`, RAS millimetres.
        keypoints: the same as Learn2Reg has it: no header, numbers in voxels, separated by commas or spaces.
    """

    image: Path
    label: Path | None = None
    mask: Path | None = None
    landmarks: Path | None = None
    keypoints: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """What a `dataset.json` lists.

    Attributes:
        name: what it is called.
        training: cases to train on, none of which is in a validation pair.
        training_pairs: fixed and moving, where the file says which; else any two training cases are a pair.
        validation_pairs: fixed and moving.
    """

    name: str
    training: tuple[Case, ...]
    training_pairs: tuple[tuple[Case, Case], ...]
    validation_pairs: tuple[tuple[Case, Case], ...]


def read_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Read the `dataset.json` of a folder in the layout of Learn2Reg.

    Lists of cases: `training`, `validation`, each entry an object with `image` and, where there are any, `label`,
    `mask`, `landmarks` (CSV, RAS millimetres) or `keypoints` (Learn2Reg's CSV, voxels). Lists of pairs, each an object
    with the `fixed` and `moving` image: `training_paired_images`, `registration_val`. What is known of an image is what
    the lists of cases say of it together, the last where they differ. Learn2Reg's own files list the validation images
    among the training ones; they are taken out.

    Args:
        path: the JSON file, or the folder that holds it. Names in it are relative to its folder.

    Returns:
        The dataset.

    Raises:
        ValueError: no such file, no JSON, an entry that is not as above, a file that is not there.

    Reference: Hering et al., Learn2Reg, IEEE Transactions on Medical Imaging 42 (2023), 697.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> names = ["a.nii.gz", "b.nii.gz"]
        >>> _ = [(folder / name).write_bytes(b"") for name in names]
        >>> _ = (folder / "dataset.json").write_text(json.dumps({"training": [{"image": name} for name in names]}))
        >>> [case.image.name for case in read_dataset(folder).training]
        ['a.nii.gz', 'b.nii.gz']
    """
    path = Path(path)
    path = path / "dataset.json" if path.is_dir() else path
    content = _load(path)
    cases: dict[Path, Case] = {}
    for key in ("training", "validation"):
        for entry in _entries(content, key, path):
            image, parts = _file(entry, "image", path, key), _parts(entry, path, key)
            cases[image] = replace(cases.get(image, Case(image)), **parts)
    training = dict.fromkeys(_file(entry, "image", path, "training") for entry in _entries(content, "training", path))
    listed, validation = (_pairs(content, key, cases, path) for key in ("training_paired_images", "registration_val"))
    held_out = {case.image for pair in validation for case in pair}
    return Dataset(
        str(content.get("name", path.parent.name)),
        tuple(cases[image] for image in training if image not in held_out),
        tuple(pair for pair in listed if not held_out & {case.image for case in pair}),
        validation,
    )


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"dataset {path}: no such file; give the dataset.json of a folder in the layout of Learn2Reg")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"dataset {path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"dataset {path}: must be an object with the list `training`, got {type(content).__name__}")
    return content


def _entries(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"dataset {path}: `{key}` must be a list of objects, got {entries!r:.80}")
    return entries


def _parts(entry: dict[str, Any], path: Path, key: str) -> dict[str, Path]:
    return {part: _file(entry, part, path, key) for part in _PARTS if part in entry}


def _pairs(content: dict[str, Any], key: str, cases: dict[Path, Case], path: Path) -> tuple[tuple[Case, Case], ...]:
    """The pairs of a list; an image that no list of cases knows is a case of its own."""
    found = []
    for entry in _entries(content, key, path):
        fixed, moving = (_file(entry, role, path, key) for role in ("fixed", "moving"))
        found.append((cases.get(fixed, Case(fixed)), cases.get(moving, Case(moving))))
    return tuple(found)


def _file(entry: dict[str, Any], part: str, path: Path, key: str) -> Path:
    """The file that an entry names, which must be there."""
    name = entry.get(part)
    if not isinstance(name, str):
        raise ValueError(f"dataset {path}: each entry of `{key}` must name its {part}, got {entry!r:.80}")
    file = Path(os.path.normpath(path.parent / name))  # one name a file, by which images are told apart
    if not file.is_file():
        raise ValueError(f"dataset {path}: `{key}` names {name}, and there is no such file in {path.parent}")
    return file
