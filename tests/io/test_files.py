import os

import pytest

from deqreg.io import replacing


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_the_temporary_name_keeps_its_folder_and_suffixes(tmp_path):
    with replacing(tmp_path / "warped.nii.gz") as temporary:
        temporary.write_text("x")
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
        assert not (tmp_path / "warped.nii.gz").exists()
    assert os.listdir(tmp_path) == ["warped.nii.gz"]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("x")
    with replacing(tmp_path / "replaced") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "replaced").stat().st_mode == (tmp_path / "plain").stat().st_mode
