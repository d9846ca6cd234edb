"""Writing results: the place is checked before anything is computed, and files appear when all of them are there."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


def check_folder(folder: Path) -> None:
    """Raise unless files can be written to a folder that exists or can be made.

    Args:
        folder: where results shall go.

    Raises:
        ValueError: something else is in the way, or the place cannot be written to.

    Example:
        >>> import tempfile
        >>> check_folder(Path(tempfile.mkdtemp()) / "new" / "folder")
    """
    place = _existing(folder)
    if not place.is_dir():
        raise ValueError(f"output folder {folder}: {place} is in the way and is no folder; give another place")
    try:
        # permission bits tell little for root, on read-only and on network file systems: try
        _temporary(place).rmdir()
        for name in folder.absolute().relative_to(place).parts:
            with suppress(FileNotFoundError):
                os.lstat(place / name)  # raises where the name is too long for the file system
    except OSError as error:
        raise ValueError(f"output folder {folder}: cannot be written to: {error.strerror}") from error


def check_file(path: Path, suffixes: Sequence[str] = ("",)) -> None:
    """Raise unless a file of that name can be written.

    Args:
        path: the file.
        suffixes: what its name may end in; anything by default.

    Raises:
        ValueError: another suffix, a folder of that name, or a place that cannot be written to.

    Example:
        >>> import tempfile
        >>> check_file(Path(tempfile.mkdtemp()) / "points.csv", [".csv"])
    """
    if not path.name.endswith(tuple(suffixes)):
        raise ValueError(f"-o must end in {' or '.join(suffixes)}, got {path}")
    if path.is_dir():
        raise ValueError(f"-o {path}: is a folder; give a file in it")
    check_folder(path.parent)


def check_not_input(path: Path, inputs: Sequence[str | os.PathLike[str]]) -> None:
    """Raise where a file to be written is one of those that are read, by whatever name.

    Args:
        path: the file to write.
        inputs: the files that are read.

    Raises:
        ValueError: it is one of them.

    Example:
        >>> check_not_input(Path("warped.nii.gz"), ["moving.nii.gz"])
    """
    for source in map(Path, inputs):
        if path.exists() and source.exists() and path.samefile(source):
            raise ValueError(f"-o {path}: is the input {source}; give another place")


@contextmanager
def publishing(folder: Path, products: Sequence[str]) -> Iterator[Path]:
    """Give a temporary folder, and move its files to `folder` when the block ends without an error.

    Args:
        folder: where the files shall be; made, with its parents, where it does not exist.
        products: the names of all files that a run may write; one that is there from an earlier run and is not
            written this time is removed, so that the folder never mixes two runs.

    Yields:
        The folder to write to, on the same file system.

    Raises:
        OSError: files cannot be written or moved.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "out"
        >>> with publishing(folder, ["note.txt"]) as temporary:
        ...     _ = (temporary / "note.txt").write_text("whole")
        >>> [path.name for path in folder.parent.rglob("*")]
        ['out', 'note.txt']
    """
    temporary = _temporary(_existing(folder))
    try:
        yield temporary
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary.rename(folder)
            return
        written = {entry.name for entry in temporary.iterdir()}
        for name in sorted(written):
            os.replace(temporary / name, folder / name)
        for name in set(products) - written:
            (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _existing(path: Path) -> Path:
    """Find the path itself, or the nearest of its parents that exists."""
    path = path.absolute()
    while not os.path.lexists(path):
        path = path.parent
    return path


def _temporary(place: Path) -> Path:
    """Make a hidden folder with the permissions of any other (`tempfile` would make a private one)."""
    temporary = place / f".deqreg-{uuid.uuid4().hex[:12]}"
    temporary.mkdir()
    return temporary
