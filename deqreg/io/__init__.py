"""Files: NIfTI volumes, ITK/ANTs transforms and landmarks. Nothing here computes a registration."""

from deqreg.io.affines import read_affine, write_affine
from deqreg.io.exports import write_elastix, write_greedy, write_voxels
from deqreg.io.files import replacing
from deqreg.io.landmarks import (
    check_landmarks_inside,
    read_landmark_pair,
    read_landmarks,
    write_landmarks,
)
from deqreg.io.transforms import (
    DisplacementField,
    read_displacement,
    read_transform,
    voxel_map,
    world_displacement,
    write_displacement,
)
from deqreg.io.volumes import (
    Volume,
    check_exact,
    check_same_grid,
    grid_matrix,
    read_grid,
    read_image,
    read_labels,
    read_mask,
    read_volume,
    write_volume,
)

__all__ = [
    "DisplacementField",
    "Volume",
    "check_exact",
    "check_landmarks_inside",
    "check_same_grid",
    "grid_matrix",
    "read_affine",
    "read_displacement",
    "read_grid",
    "read_image",
    "read_labels",
    "read_landmark_pair",
    "read_landmarks",
    "read_mask",
    "read_transform",
    "read_volume",
    "replacing",
    "voxel_map",
    "world_displacement",
    "write_affine",
    "write_displacement",
    "write_elastix",
    "write_greedy",
    "write_landmarks",
    "write_volume",
    "write_voxels",
]
