import argparse
import os

import pytest

from deqreg.cli import main
from deqreg.cli.parser import memory_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("8g", 8 * 2**30), ("8 GB", 8 * 10**9), ("1.5MiB", 3 * 2**19), ("100", 100), ("7B", 7)],
)
def test_memory_sizes(text, size):
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "8 gigs", "-1GiB", "0", "1e9", "8GiBs"])
def test_what_is_no_memory_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 8GiB or 500MB"):
        memory_size(text)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    name, number = capsys.readouterr().out.split()
    assert name == "deqreg"
    assert number[0].isdigit()


@pytest.mark.parametrize("words", [[], ["paint"], ["register", "one.nii.gz"], ["register", "a", "b", "--out", "c"]])
def test_wrong_words_are_one_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert len(streams.err.splitlines()) == 1
    assert "--help" in streams.err


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_huge_pages_are_asked_for_unless_the_user_has_said(monkeypatch, capsys, before, after):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if before is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", before)
    main(["info"])
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == after
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
