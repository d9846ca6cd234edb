"""Settings in files: trees of frozen dataclasses, built of plain values and checked as they are built."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

__all__ = ["Choices", "build", "check_known", "plain"]

# annotation -> `kind: NAME` in the file -> the class, for each place where there is a choice
Choices = Mapping[Any, Mapping[str, type]]


def build(cls: Any, content: Any, choices: Choices, name: str = "") -> Any:
    """An object of a dataclass from plain values.

    Args:
        cls: the dataclass.
        content: a mapping of its fields' names to plain values.
        choices: the classes that a `kind` stands for, of each annotation that leaves a choice.
        name: where this is in the tree, for messages.

    Raises:
        ValueError: a name that is not known, one that is missing, a value that is not what it must be.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Smoothing:
        ...     width: float
        >>> build(Smoothing, {"width": 2}, {})
        Smoothing(width=2.0)
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{name or 'the configuration'} must be a mapping of names to values, got {content!r:.60}")
    hints = typing.get_type_hints(cls)
    known = [entry.name for entry in fields(cls)]
    for key in content:
        check_known(str(key), known, name)
    for entry in fields(cls):
        if entry.name not in content and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{_join(name, entry.name)} must be given")
    values = {key: _convert(hints[key], value, choices, _join(name, key)) for key, value in content.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from error


def plain(value: Any, choices: Choices) -> Any:
    """A configuration as the plain values that `build` makes it of again.

    Args:
        value: a dataclass, or what is in one.
        choices: as given to `build`.

    >>> plain({"edges": (1, 2)}, {})
    {'edges': [1, 2]}
    """
    if is_dataclass(value):
        kinds = [kind for choice in choices.values() for kind, cls in choice.items() if cls is type(value)]
        found = {entry.name: plain(getattr(value, entry.name), choices) for entry in fields(value)}
        return {"kind": kinds[0], **found} if kinds else found
    if isinstance(value, Mapping):
        return {str(key): plain(part, choices) for key, part in value.items()}
    return [plain(part, choices) for part in value] if isinstance(value, tuple | list) else value


def check_known(key: str, known: Sequence[str], name: str = "") -> None:
    """Raise where a name is not known, with the one that is nearest.

    >>> check_known("steps", ["steps", "batch"])
    """
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    raise ValueError(f"{_join(name, key)} is not known: {hint}")


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _convert(hint: Any, value: Any, choices: Choices, name: str) -> Any:
    """A plain value as what the annotation asks for."""
    if hint in choices:
        return _choose(choices, hint, value, name)
    if is_dataclass(hint):
        return build(hint, {} if value is None else value, choices, name)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        wanted = next(a for a in arguments if a is not type(None))
        return None if value is None else _convert(wanted, value, choices, name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], part, choices, f"{name}[{i}]") for i, part in enumerate(value))
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping | None):
        return {str(key): part for key, part in (value or {}).items()}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (hint is float and number) or (hint is int and number and value == int(value)):
        return hint(value)
    if hint in (str, bool) and isinstance(value, hint):
        return value
    kind = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}.get(hint)
    raise ValueError(f"{name} must be {kind or ('a list' if origin is tuple else 'a mapping')}, got {value!r:.60}")


def _choose(choices: Choices, hint: Any, value: Any, name: str) -> Any:
    choice = choices[hint]
    if not isinstance(value, Mapping) or value.get("kind") not in choice:
        got = value.get("kind") if isinstance(value, Mapping) else value
        raise ValueError(f"{name}.kind must be one of {', '.join(choice)}, got {got!r:.60}")
    rest = {key: part for key, part in value.items() if key != "kind"}
    return build(choice[value["kind"]], rest, choices, name)
