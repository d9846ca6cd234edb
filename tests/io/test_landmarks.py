from pathlib import Path

import numpy as np
import pytest
import torch

from deqreg.io import Volume, check_landmarks_inside, read_image, read_landmark_pair, read_landmarks, write_landmarks
from tests.io.grids import oblique_affine

SHAPE = (6, 7, 5)
OBLIQUE = oblique_affine((0.8, 1.2, 3.1), (0.3, -0.5, 0.2), (40, -80, 1200), SHAPE, (-1, 1, -1), (2, 0, 1))
LUNG = Path(__file__).parents[2] / "examples" / "data" / "lung"


@pytest.fixture
def image():
    return Volume(torch.rand(SHAPE), OBLIQUE, name="fixed image a.nii.gz")


def in_world(voxels):
    return torch.from_numpy(np.asarray(voxels) @ OBLIQUE[:3, :3].T + OBLIQUE[:3, 3])


@pytest.mark.parametrize("d", [2, 3])
def test_round_trip(tmp_path, d):
    points = torch.randn(20, d, dtype=torch.float64) * 100
    write_landmarks(tmp_path / "p.csv", points)
    # files hold four decimals
    torch.testing.assert_close(read_landmarks(tmp_path / "p.csv"), points, atol=5.1e-5, rtol=0)


@pytest.mark.parametrize(
    "text",
    ["x,y,z\n1,2,3\n4,5,6\n", "\ufeffX, Y, Z\r\n1, 2, 3\r\n4.0,5e0, 6\r\n\r\n"],
    ids=["plain", "from a spreadsheet"],
)
def test_files_that_are_fine(tmp_path, text):
    (tmp_path / "p.csv").write_bytes(text.encode())
    assert read_landmarks(tmp_path / "p.csv").tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"its first line must be x,y,z \(RAS millimetres\), got ''"),
        (b"1,2,3\n4,5,6\n", r"its first line must be x,y,z \(RAS millimetres\), got '1,2,3'"),
        (b"x;y;z\n1;2;3\n", "got 'x;y;z'"),
        (b"x,y,z,t\n1,2,3,0\n", r"got 'x,y,z,t'; ANTs' points \(x,y,z,t\) are LPS"),
        (b"x,y,z\n", "has a header and no points"),
        (b"x,y,z\n1,2,3\n4,five,6\n", "line 3: must be 3 numbers separated by commas, got '4,five,6'"),
        (b"x,y,z\n1,2\n", "line 2: must be 3 numbers"),
        (b"x,y,z\n1,2,3,4\n", "line 2: must be 3 numbers"),
        (b"x,y,z\n1,2,nan\n", "line 2: must be 3 numbers"),
        (b"\x1f\x8b\x08\xff\xfe", "not a text file"),
    ],
)
def test_files_that_are_wrong(tmp_path, content, said):
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        read_landmarks(path, "fixed landmarks")
    assert str(error.value).startswith(f"fixed landmarks {path}: ")
    assert "\n" not in str(error.value)


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"fixed landmarks .*none.csv: no such file"):
        read_landmarks(tmp_path / "none.csv", "fixed landmarks")
    with pytest.raises(ValueError, match="is a folder"):
        read_landmarks(tmp_path)


def test_points_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"points must be \[P, 3\] or \[P, 2\], got \[3\]"):
        write_landmarks(tmp_path / "p.csv", np.zeros(3))


def test_the_box_reaches_half_a_voxel_beyond_the_centres(image):
    corners = np.array([[-0.5, -0.5, -0.5], [5.5, 6.5, 4.5], [-0.5, 6.5, 2]])
    check_landmarks_inside(in_world(corners), image)
    for beyond in ([-0.51, 3, 3], [3, 6.51, 3], [3, 3, 4.51]):
        with pytest.raises(ValueError, match="1 of 1 points lie outside"):
            check_landmarks_inside(in_world([beyond]), image)


def test_the_message_names_the_farthest_point_and_its_distance(image):
    # 2 and 10 voxels beyond the last axis, whose voxels are 3.1 mm
    points = in_world([[3, 3, 3], [3, 3, 6.5], [3, 3, 14.5]])
    with pytest.raises(ValueError, match=r"p\.csv: 2 of 3 points lie outside fixed image a\.nii\.gz, ") as error:
        check_landmarks_inside(points, image, "fixed landmarks p.csv")
    assert "the farthest by 31.0 mm (point 3: " in str(error.value)
    assert "points must be RAS millimetres: are they" in str(error.value)


def test_lps_points_are_recognised(image):
    points = in_world([[1, 1, 1], [4, 5, 3]])
    with pytest.raises(ValueError, match="negating x and y puts all of them inside, so these look like LPS"):
        check_landmarks_inside(points * torch.tensor([-1.0, -1.0, 1.0]), image)


def test_dimensions_must_agree(image):
    with pytest.raises(ValueError, match=r"must be \[P, 3\] for fixed image a.nii.gz, got \[4, 2\]"):
        check_landmarks_inside(torch.zeros(4, 2), image)


def test_a_pair_may_be_a_file_and_a_tensor(tmp_path, image):
    points = in_world([[1, 1, 1], [4, 5, 3]])
    write_landmarks(tmp_path / "p.csv", points)
    read = read_landmark_pair(points.float().requires_grad_(), tmp_path / "p.csv", image, image)
    assert [(p.dtype, p.requires_grad) for p in read] == [(torch.float64, False)] * 2
    torch.testing.assert_close(*read, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (in_world([[1, 1, 1]]), "must be the same points in the same order, got 2 in a tensor and 1 in a tensor$"),
        (in_world([[1, 1, 1], [4, 5, np.nan]]), r"^moving landmarks: must be finite, got \[.*nan.*\] in point 2$"),
        (torch.zeros(0, 3), r"^moving landmarks: must be \[P, 3\] for fixed image a.nii.gz, got \[0, 3\]"),
        (torch.zeros(3), r"^moving landmarks: must be \[P, 3\] for fixed image a.nii.gz, got \[3\]"),
        ([[1.0, 1.0, 1.0]], r"^moving landmarks: must be a CSV file or a \[P, d\] tensor, got list$"),
    ],
)
def test_tensors_that_are_no_landmarks(image, points, said):
    with pytest.raises(ValueError, match=said):
        read_landmark_pair(in_world([[1, 1, 1], [4, 5, 3]]), points, image, image)


def test_the_lung_pair_is_read_and_a_shorter_file_is_not(tmp_path):
    fixed, moving = read_image(LUNG / "fixed.nii.gz", "fixed image"), read_image(LUNG / "moving.nii.gz", "moving image")
    paths = LUNG / "fixed_landmarks.csv", LUNG / "moving_landmarks.csv"
    points = read_landmark_pair(*paths, fixed, moving)
    assert [tuple(p.shape) for p in points] == [(51, 3), (51, 3)]
    short = tmp_path / "short.csv"
    short.write_text("".join(paths[1].read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"must be the same points in the same order, got 51 in .* and 50 in "):
        read_landmark_pair(paths[0], short, fixed, moving)
    write_landmarks(tmp_path / "far.csv", points[1] + 300)
    with pytest.raises(ValueError, match=r"^moving landmarks .*far\.csv: 51 of 51 points lie outside moving image "):
        read_landmark_pair(paths[0], tmp_path / "far.csv", fixed, moving)
