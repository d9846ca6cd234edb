import os
import struct

import numpy as np
import pytest
import SimpleITK

from deqreg.io import read_affine, read_transform, write_affine


def linear_transforms():
    centre = (11.0, -22.0, 33.0)
    affine = SimpleITK.AffineTransform([1.1, 0.2, -0.1, 0.05, 0.9, 0.3, -0.2, 0.1, 1.2], [5, -6, 7], centre)
    euler = SimpleITK.Euler3DTransform(centre, 0.4, -0.3, 0.7, (5, -6, 7))
    euler_zyx = SimpleITK.Euler3DTransform(euler)
    euler_zyx.SetComputeZYX(True)
    versor = SimpleITK.VersorRigid3DTransform((0.2, -0.3, 0.4, 0.843), (5, -6, 7), centre)
    similarity = SimpleITK.Similarity3DTransform(1.3, (0.2, -0.3, 0.4, 0.843), (5, -6, 7), centre)
    return {
        "affine": affine,
        "euler": euler,
        "euler zyx": euler_zyx,
        "versor": versor,
        "similarity": similarity,
        "translation": SimpleITK.TranslationTransform(3, (5, -6, 7)),
        "identity": SimpleITK.Transform(3, SimpleITK.sitkIdentity),
        "affine 2-D": SimpleITK.AffineTransform([1.1, 0.2, -0.1, 0.9], [5, -6], centre[:2]),
        "euler 2-D": SimpleITK.Euler2DTransform(centre[:2], 0.4, (5, -6)),
        "similarity 2-D": SimpleITK.Similarity2DTransform(1.3, 0.4, (5, -6), centre[:2]),
        "translation 2-D": SimpleITK.TranslationTransform(2, (5, -6)),
    }


def assert_same_map(matrix, transform, rng):
    d = transform.GetDimension()
    assert matrix.shape == (d + 1, d + 1)
    flip = np.array([-1, -1, 1])[:d]
    for point in rng.standard_normal((5, d)) * 100:
        expected = np.array(transform.TransformPoint((point * flip).tolist())) * flip
        # ITK's text form holds 17 digits; points of 100 mm
        np.testing.assert_allclose((matrix @ [*point, 1])[:d], expected, atol=1e-9)


class TestAffineFiles:
    @pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat"])
    @pytest.mark.parametrize("kind", linear_transforms())
    def test_points_go_where_itk_sends_them(self, tmp_path, rng, kind, suffix):
        transform = linear_transforms()[kind]
        path = tmp_path / f"t{suffix}"
        SimpleITK.WriteTransform(transform, path)
        assert_same_map(read_affine(path), transform, rng)

    def test_a_composite_applies_its_last_transform_first(self, tmp_path, rng):
        parts = linear_transforms()
        composite = SimpleITK.CompositeTransform([parts["euler"], parts["affine"], parts["translation"]])
        SimpleITK.WriteTransform(composite, tmp_path / "t.tfm")
        assert_same_map(read_affine(tmp_path / "t.tfm"), composite, rng)

    @pytest.mark.parametrize("suffix", [".txt", ".mat"])
    def test_the_names_that_ants_gives(self, tmp_path, rng, suffix):
        transform = linear_transforms()["affine"]
        SimpleITK.WriteTransform(transform, tmp_path / f"t{suffix}")
        content = (tmp_path / f"t{suffix}").read_bytes()
        old, new = b"AffineTransform_double_3_3", b"MatrixOffsetTransformBase_double_3_3"
        if suffix == ".mat":  # the header counts the name and its final zero
            content = content.replace(struct.pack("<i", len(old) + 1) + old, struct.pack("<i", len(new) + 1) + new)
        (tmp_path / f"t{suffix}").write_bytes(content.replace(old, new))
        assert_same_map(read_affine(tmp_path / f"t{suffix}"), transform, rng)

    @pytest.mark.parametrize(("order", "machine"), [("<", 0), (">", 1000)])
    def test_single_precision_mat_of_either_byte_order(self, tmp_path, order, machine):
        content = b""
        for name, values in {
            "AffineTransform_float_3_3": [1, 0, 0, 0, 1, 0, 0, 0, 1, 5, 6, 7],
            "fixed": [0, 0, 0],
        }.items():
            content += struct.pack(f"{order}5i", machine + 10, len(values), 1, 0, len(name) + 1) + name.encode() + b"\0"
            content += struct.pack(f"{order}{len(values)}f", *values)
        (tmp_path / "t.mat").write_bytes(content)
        np.testing.assert_array_equal(read_affine(tmp_path / "t.mat")[:3, 3], [-5, -6, 7])

    @pytest.mark.parametrize("d", [2, 3])
    @pytest.mark.parametrize("suffix", [".tfm", ".txt"])
    def test_round_trip_through_a_file_that_itk_reads(self, tmp_path, rng, d, suffix):
        matrix = np.eye(d + 1)
        matrix[:d] += rng.standard_normal((d, d + 1)) * 0.3
        write_affine(tmp_path / f"t{suffix}", matrix)
        np.testing.assert_array_equal(read_affine(tmp_path / f"t{suffix}"), matrix)
        assert_same_map(matrix, SimpleITK.ReadTransform(tmp_path / f"t{suffix}"), rng)

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("t.h5", b"\x89HDF", r"must be an ITK transform in \.mat, \.tfm or \.txt, or a displacement field"),
            ("t.txt", b"1 0 0 0\n0 1 0 0\n", "its first line must be '#Insight Transform File V1.0'"),
            ("t.mat", b"1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "not an ITK .mat .MATLAB level 4.*FSL's"),
            ("t.mat", b"MATLAB 5.0 MAT-file, Platform: PCWIN" + bytes(200), "not an ITK .mat"),
            ("t.mat", b"", "must hold one transform and its fixed parameters, got nothing"),
            ("t.mat", struct.pack("<5i", 0, 12, 1, 0, 27) + b"AffineTransform_double_3_3\0" + bytes(40), "cut off"),
            ("t.mat", struct.pack("<5i", 0, 1, 1, 0, 2) + b"A\0" + bytes(8), "fixed parameters, got A"),
            ("t.txt", b"#Insight Transform File V1.0\n", "got none"),
            (
                "t.txt",
                b"#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\nParameters: 0\n",
                "cannot use a BSplineTransform_double_3_3; it must be one of AffineTransform, Euler2D",
            ),
            (
                "t.txt",
                b"#Insight Transform File V1.0\nTransform: Euler3DTransform_double_3_3\nParameters: 0 0 0 0 0\n",
                "a Euler3DTransform_double_3_3 has 6 parameters and a centre of 3, got 5 and 0",
            ),
            (
                "t.txt",
                b"#Insight Transform File V1.0\nTransform: Euler3DTransform_double_3_3\nParameters: 0 0 x 0 0\n",
                "the Parameters of Euler3DTransform_double_3_3 must be numbers, got '0 0 x 0 0'",
            ),
            (
                "t.txt",
                b"#Insight Transform File V1.0\nTransform: TranslationTransform_double_3_3\nParameters: 0 0 nan\n",
                "singular or not finite",
            ),
            (
                "t.txt",
                b"#Insight Transform File V1.0\nTransform: AffineTransform_double_2_2\nParameters: 1 0 0 0 0 0\n",
                "singular or not finite",
            ),
            (
                "t.txt",
                b"#Insight Transform File V1.0\n"
                + b"Transform: TranslationTransform_double_3_3\nParameters: 0 0 1\n" * 2,
                "holds 2 transforms with no order between them",
            ),
        ],
    )
    def test_files_that_hold_no_linear_transform(self, tmp_path, name, content, said):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said) as error:
            read_transform(tmp_path / name, "initial transform")
        assert str(error.value).startswith(f"initial transform {tmp_path / name}: ")
        assert "\n" not in str(error.value)

    def test_missing_files_and_what_cannot_be_written(self, tmp_path):
        with pytest.raises(ValueError, match="no such file"):
            read_transform(tmp_path / "none.tfm")
        with pytest.raises(ValueError, match="is a folder"):
            read_transform(tmp_path)
        with pytest.raises(ValueError, match=r"must end in \.tfm or \.txt"):
            write_affine(tmp_path / "t.mat", np.eye(4))
        with pytest.raises(ValueError, match=r"matrix must be \[3, 3\] or \[4, 4\], got \[3, 4\]"):
            write_affine(tmp_path / "t.tfm", np.eye(4)[:3])
        assert os.listdir(tmp_path) == []
