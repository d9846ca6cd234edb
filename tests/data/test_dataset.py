"""Reading dataset.json, and cases into memory."""

import json

import numpy as np
import pytest
import torch

from deqreg import io
from deqreg.data import Case, load_cases, read_dataset
from deqreg.spatial import Grid, scale_intensities

AFFINE = np.array([[-1.5, 0, 0, 20], [0, 1.5, 0, -7], [0, 0, 2.0, 3], [0, 0, 0, 1]])


def image(path, shape=(26, 28, 24), seed=0):
    data = 1000 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    io.write_volume(path, data, AFFINE)
    return data


@pytest.fixture
def official(tmp_path):
    """The layout of Learn2Reg's NLST task: numbered files, pairs, masks and keypoints in voxels."""
    for folder in ("imagesTr", "masksTr", "keypointsTr"):
        (tmp_path / folder).mkdir()
    entries = []
    for number in (1, 2, 3):
        for time in (0, 1):
            name = f"NLST_{number:04d}_{time:04d}"
            image(tmp_path / "imagesTr" / f"{name}.nii.gz", seed=2 * number + time)
            mask = np.zeros((26, 28, 24))
            mask[4:20, 5:22, 3:20] = 1
            io.write_volume(tmp_path / "masksTr" / f"{name}.nii.gz", mask, AFFINE, dtype=np.uint8)
            (tmp_path / "keypointsTr" / f"{name}.csv").write_text("10,12,8\n11.5,13,9\n")
            entries.append({"image": f"./imagesTr/{name}.nii.gz", "mask": f"./masksTr/{name}.nii.gz",
                            "keypoints": f"./keypointsTr/{name}.csv"})  # fmt: skip
    pairs = [{"fixed": entries[i]["image"], "moving": entries[i + 1]["image"]} for i in (0, 2, 4)]
    content = {"name": "NLST", "training": entries, "training_paired_images": pairs, "registration_val": pairs[2:]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def test_official_layout(official):
    data = read_dataset(official)
    assert (data.name, len(data.training), len(data.training_pairs), len(data.validation_pairs)) == ("NLST", 4, 2, 1)
    fixed, moving = data.validation_pairs[0]
    assert (fixed.image.name, moving.image.name) == ("NLST_0003_0000.nii.gz", "NLST_0003_0001.nii.gz")
    assert all(case.mask and case.keypoints for case in (fixed, moving))


def test_validation_images_are_never_trained_on(official):
    data = read_dataset(official)
    held_out = {case.image for pair in data.validation_pairs for case in pair}
    assert not held_out & {case.image for case in data.training}
    assert not held_out & {case.image for pair in data.training_pairs for case in pair}


def listing(folder, **lists):
    for name in ("a", "b", "c", "d", "label", "mask"):
        (folder / name).touch()
    (folder / "dataset.json").write_text(json.dumps(lists))
    return read_dataset(folder)


def test_what_is_known_of_an_image_is_what_all_lists_say(tmp_path):
    data = listing(
        tmp_path,
        training=[{"image": "a", "label": "label"}, {"image": "b"}],
        validation=[{"image": "a"}, {"image": "a", "mask": "mask"}],
        registration_val=[{"fixed": "a", "moving": "b"}],
    )
    assert data.validation_pairs[0][0] == Case(tmp_path / "a", label=tmp_path / "label", mask=tmp_path / "mask")


def test_an_image_that_is_listed_twice_is_one(tmp_path):
    data = listing(tmp_path, training=[{"image": "a"}, {"image": "b"}, {"image": "./a"}])
    assert [case.image.name for case in data.training] == ["a", "b"]


def test_a_validation_image_is_held_out_by_any_name(tmp_path):
    (tmp_path / "x").mkdir()
    data = listing(
        tmp_path,
        training=[{"image": name} for name in ("x/../a", "./b", "c", "d")],
        training_paired_images=[{"fixed": "x/../a", "moving": "c"}, {"fixed": "c", "moving": "d"}],
        registration_val=[{"fixed": "a", "moving": "b"}],
    )
    assert [case.image.name for case in data.training] == ["c", "d"]
    assert [[case.image.name for case in pair] for pair in data.training_pairs] == [["c", "d"]]


def test_validation_pairs_alone_are_a_data_set(official):
    """What `deqreg evaluate` reads needs nothing to train on."""
    content = json.loads((official / "dataset.json").read_text())
    (official / "dataset.json").write_text(json.dumps({"registration_val": content["registration_val"]}))
    data = read_dataset(official)
    assert (len(data.validation_pairs), data.training, data.training_pairs) == (1, (), ())


def test_keypoints_and_landmarks_are_one(official):
    """Learn2Reg's voxels and RAS millimetres land on the same voxels of a coarser grid."""
    case = read_dataset(official).training[0]
    grid = Grid((26, 28, 24), torch.from_numpy(AFFINE))
    voxels = torch.tensor([[10.0, 12, 8], [11.5, 13, 9]])
    io.write_landmarks(official / "points.csv", grid.to_world(voxels))
    other = Case(case.image, landmarks=official / "points.csv")
    for spacing in (None, 3.0):
        a, b = (load_cases([c], spacing)[case.image] for c in (case, other))
        torch.testing.assert_close(a.points, b.points, atol=1e-4, rtol=0)  # four decimals of a millimetre on file
    # 1.5 mm become 3 mm: voxel 0.5 of the fine grid is the centre of voxel 0 of the coarse one
    assert a.stored.shape == (13, 14, 16)
    torch.testing.assert_close(a.points[:, 0], (voxels[:, 0] - 0.5) / 2, atol=1e-4, rtol=0)


def test_images_are_scaled_as_a_registration_scales_them(tmp_path):
    data = image(tmp_path / "a.nii.gz")
    for storage, step in (("uint8", 1 / 255), ("float16", 2**-11)):
        case = load_cases([Case(tmp_path / "a.nii.gz")], storage=storage)[tmp_path / "a.nii.gz"]
        expected = scale_intensities(data)[None, None]
        # half a step of the storage; float16 has 11 bits
        torch.testing.assert_close(case.image(torch.device("cpu")), expected, atol=step / 2 + 1e-6, rtol=0)


def test_labels_are_numbered_over_all_cases(tmp_path):
    for name, values in (("a", (0, 7)), ("b", (0, 3000))):
        image(tmp_path / f"{name}.nii.gz")
        labels = torch.tensor(values).repeat_interleave(26 * 14 * 24).view(26, 28, 24)
        io.write_volume(tmp_path / f"{name}_labels.nii.gz", labels, AFFINE, dtype=np.int16)
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    cases = load_cases([Case(p, label=p.with_name(p.name.replace(".", "_labels.", 1))) for p in paths])
    assert [cases[p].values for p in paths] == [(0, 7, 3000)] * 2
    assert [cases[p].labels.unique().tolist() for p in paths] == [[0, 1], [0, 2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"training": {}}', "must be a list"),
        ('{"training": [{"label": "a"}]}', "must name its image"),
        ('{"training": [{"image": "a.nii.gz"}]}', "no such file"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, content, message):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("a,b,c\n", "without a header"), ("1,2\n", "rows of 3"), ("99,1,1\n", "outside")]
)
def test_wrong_keypoints_are_said(official, text, message):
    case = read_dataset(official).training[0]
    case.keypoints.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_cases([case])
