"""Parsing arguments, with errors of one line."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("", 1024), ("iB", 1024), ("B", 1000))
}


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, as those of bad input are."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)  # an abbreviation breaks when an option is added
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Print the message and where help is, and exit with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class ShowVersion(argparse.Action):
    """`--version`, looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print and exit."""
        try:
            found = metadata.version("deqreg")
        except metadata.PackageNotFoundError:  # run from a checkout that was never installed
            found = "not installed"
        print(f"deqreg {found}")
        parser.exit()


def memory_size(text: str) -> int:
    """Read an amount of memory such as "8GiB".

    Args:
        text: a number and B, K, M, G or T; "8G" and "8GiB" count in 1024s, "8GB" in 1000s; bytes without a unit.

    Returns:
        Bytes.

    Raises:
        argparse.ArgumentTypeError: anything else, or nothing above 0.

    Example:
        >>> memory_size("8GiB"), memory_size("1.5GB"), memory_size("4096")
        (8589934592, 1500000000, 4096)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = "" if found is None else found[2]
    known = {name.lower(): factor for name, factor in _UNITS.items()}
    size = int(float(found[1]) * known[unit.lower()]) if found is not None and unit.lower() in known else 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"must be an amount of memory such as 8GiB or 500MB, got {text!r}")
    return size


def check_installed(method: str) -> None:
    """Raise unless what a method needs beside deqreg's own dependencies is installed.

    Args:
        method: of `deqreg register`.

    Raises:
        ValueError: a package is missing: how to install it.

    Example:
        >>> check_installed("variational")
    """
    if method == "equilibrium" and importlib.util.find_spec("safetensors") is None:
        raise ValueError("--method equilibrium reads its weights with safetensors: pip install 'deqreg[cli]'")
