import os

import pytest

from deqreg.cli.output import check_folder, publishing


def test_checking_leaves_no_trace(tmp_path):
    check_folder(tmp_path)
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("file", "file is in the way and is no folder"),
        ("file/out", "file is in the way and is no folder"),
        ("x" * 300, "cannot be written to: File name too long"),
        ("/proc/deqreg/out", "cannot be written to"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, place, says):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=says):
        check_folder(tmp_path / place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written to: Permission denied"):
        check_folder(tmp_path / "out")


def test_a_new_folder_appears_with_all_of_its_files(tmp_path):
    out = tmp_path / "a" / "out"
    with publishing(out, ["one", "two"]) as folder:
        (folder / "one").write_text("1")
        assert not out.exists()
        assert folder.stat().st_dev == tmp_path.stat().st_dev
    assert [entry.name for entry in out.iterdir()] == ["one"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    (tmp_path / "plain").mkdir()
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode  # not the private mode of temporary folders


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_everything_as_it_was(tmp_path, exists):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
        (out / "one").write_text("old")

    def fail():
        with publishing(out, ["one"]) as folder:
            (folder / "one").write_text("new")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert out.exists() == exists
    assert not exists or [(entry.name, entry.read_text()) for entry in out.iterdir()] == [("one", "old")]


def test_an_existing_folder_keeps_what_is_not_ours(tmp_path):
    for name in ("one", "two", "notes"):
        (tmp_path / name).write_text("old")
    with publishing(tmp_path, ["one", "two"]) as folder:
        (folder / "one").write_text("new")
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"one": "new", "notes": "old"}
