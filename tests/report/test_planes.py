import nibabel as nib
import numpy as np
import pytest

from deqreg.report.planes import content_of, planes
from tests.io.grids import oblique_affine

SHAPE = (9, 12, 10)
AFFINES = {
    "RAS": np.diag([1.0, 1.5, 2.0, 1.0]),
    "LPI": oblique_affine((1.0, 1.5, 2.0), (0, 0, 0), (0, 0, 0), SHAPE, flips=(-1, -1, -1)),
    "permuted": oblique_affine((1.0, 1.5, 2.0), (0, 0, 0), (5, -9, 40), SHAPE, flips=(1, -1, 1), order=(2, 0, 1)),
    "oblique": oblique_affine((1.0, 1.5, 2.0), (0.2, -0.15, 0.25), (5, -9, 40), SHAPE, flips=(-1, 1, -1)),
}
# plane -> world axis that falls down the screen, world axis that falls to its right, letters of the left and the top
LAID = {"axial": (1, 0, "R", "A"), "coronal": (2, 0, "R", "S"), "sagittal": (2, 1, "A", "S")}


def world(affine, shape):
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    return np.tensordot(affine[:3, : len(shape)], voxels, 1) + affine[:3, 3].reshape(3, *[1] * len(shape))


@pytest.mark.parametrize("kind", AFFINES)
def test_the_screen_is_radiological(kind):
    affine = AFFINES[kind]
    coordinates = world(affine, SHAPE)
    found = planes(affine, np.ones(SHAPE, bool))
    assert [plane.name for plane in found] == list(LAID)
    for plane in found:
        down, right, left_letter, top_letter = LAID[plane.name]
        # the first pixel is the patient's front, head or right; both coordinates fall away from it
        assert (np.diff(plane.cut(coordinates[down]), axis=0) < 0).all()
        assert (np.diff(plane.cut(coordinates[right]), axis=1) < 0).all()
        assert (plane.right.letters[0], plane.down.letters[0]) == (left_letter, top_letter)


@pytest.mark.parametrize("kind", ["RAS", "LPI", "permuted"])
def test_millimetres_of_a_voxel_are_where_its_pixel_is_drawn(kind):
    plane = planes(AFFINES[kind], np.ones(SHAPE, bool))[1]
    for edge, pixels_along in ((plane.down, 0), (plane.right, 1)):
        index = np.indices(SHAPE)[edge.axis]
        voxels = np.moveaxis(plane.cut(index), pixels_along, 0)[:, 0]
        pixel_centres = (np.arange(len(voxels)) + 0.5) * edge.spacing
        np.testing.assert_allclose(edge.millimetres(voxels), pixel_centres)


def test_slices_go_through_the_middle_of_the_content_and_show_little_more():
    content = np.zeros(SHAPE, bool)
    content[1:4, 6:9, 2:9] = True
    axial, coronal, sagittal = planes(AFFINES["RAS"], content)
    assert [plane.index for plane in (axial, coronal, sagittal)] == [5, 7, 2]
    assert axial.label == "axial  S 10 mm"
    shown = axial.right.shown  # flipped: array index 1..3 of 9 voxels of 1 mm, from the right
    assert 4.5 < shown[0] <= 5
    assert 8 <= shown[1] < 8.5


def test_content_on_the_border_still_gives_a_slice_with_two_neighbours():
    content = np.zeros(SHAPE, bool)
    content[0, 0, -1] = True
    assert [plane.index for plane in planes(AFFINES["RAS"], content)] == [8, 1, 1]


def test_a_2d_image_is_one_plane():
    found = planes(np.diag([-1.0, 1.0, 1.0, 1.0]), np.ones((6, 8), bool))
    assert len(found) == 1
    assert (found[0].through, found[0].label) == (None, "axial")
    image = np.arange(48.0).reshape(6, 8)
    # x falls along the first axis, so columns run as the array; y rises along the second, so rows run against it
    np.testing.assert_array_equal(found[0].cut(image), image.T[::-1])


def test_letters_agree_with_nibabel():
    affine = AFFINES["permuted"]
    codes = nib.aff2axcodes(affine)
    for plane in planes(affine, np.ones(SHAPE, bool)):
        for edge in (plane.down, plane.right):
            end = edge.letters[0] if edge.flipped else edge.letters[1]
            assert codes[edge.axis] == end


def test_content_is_the_mask_or_what_stands_out():
    image = np.zeros((8, 8), np.float32)
    image[2:6, 2:6] = 100
    mask = np.zeros((8, 8))
    mask[0, 0] = 1
    assert content_of(image).sum() == 16
    assert content_of(image, mask).sum() == 1
    assert content_of(np.full((8, 8), 7.0)).all()
