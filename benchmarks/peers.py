"""Run one registration tool on one pair, and write what it found as deqreg writes it: the far side of registration.py.

    PYTHON benchmarks/peers.py --installed     # name and versions of every tool that this interpreter has, as JSON
    PYTHON benchmarks/peers.py JOB.json        # one registration

PYTHON is an interpreter that has the tools; it needs no deqreg. Each tool is imported where it is run, so that the
process holds that tool alone. The displacement that comes out is the total transform, whatever the tool keeps: LPS
millimetres, (X, Y, Z, 1, 3) on the fixed grid.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0])

# tool -> the distributions whose versions decide what it does, the tool's own first
DISTRIBUTIONS = {
    "greedy": ("picsl-greedy",),
    "ants": ("antspyx",),
    "elastix": ("itk-elastix", "itk-core"),
    "convexadam": ("convexadam", "torch"),
    "fireants": ("fireants", "torch"),
    "dipy": ("dipy",),
}


@dataclass(frozen=True)
class Job:
    """One registration; paths are absolute.

    `affine`: find an affine map first, for the images do not lie on each other. `masks`: "own" hands them to the tool,
    "images" makes what is outside of them flat, as deqreg does, and "none" leaves them out.
    """

    peer: str
    fixed: str
    moving: str
    output: str
    work: str
    parameters: dict[str, Any]
    fixed_mask: str | None = None
    moving_mask: str | None = None
    affine: bool = False
    masks: str = "none"
    threads: int = 2

    @property
    def own_masks(self) -> tuple[str, str] | None:
        """The masks that the tool itself is given."""
        if self.masks != "own" or self.fixed_mask is None or self.moving_mask is None:
            return None
        return self.fixed_mask, self.moving_mask

    def images(self) -> tuple[str, str]:
        """The images that the tool is given."""
        if self.masks != "images" or self.fixed_mask is None or self.moving_mask is None:
            return self.fixed, self.moving
        return (
            flat_outside(self.fixed, self.fixed_mask, f"{self.work}/fixed.nii.gz"),
            flat_outside(self.moving, self.moving_mask, f"{self.work}/moving.nii.gz"),
        )


# From each tool's form of a transform to deqreg's. All displacements below are [X, Y, Z, 3] on the fixed grid.


def positions(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The RAS millimetres of every voxel, [X, Y, Z, 3]."""
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float64) for n in shape], indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def lps_from_voxels(displacement: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A displacement in voxels of the fixed grid, component a along axis a, in LPS millimetres."""
    return np.asarray(displacement, dtype=np.float64) @ (LPS @ affine[:3, :3]).T


def lps_from_ras(displacement: np.ndarray) -> np.ndarray:
    return np.asarray(displacement, dtype=np.float64) @ LPS


def then_affine(displacement: np.ndarray, affine: np.ndarray, world: np.ndarray) -> np.ndarray:
    """The total `W(p + d(p)) - p` of an LPS displacement followed by a [4, 4] map of RAS points."""
    p = positions(displacement.shape[:3], affine)
    moved = p + np.asarray(displacement, dtype=np.float64) @ LPS
    return (moved @ world[:3, :3].T + world[:3, 3] - p) @ LPS


def from_itk_array(array: np.ndarray) -> np.ndarray:
    """What ITK's NumPy views hold, [Z, Y, X, 3], in the order of the file."""
    return np.transpose(array, (2, 1, 0, 3))


def read_field(path: str) -> np.ndarray:
    """An ITK displacement field on file."""
    return np.asanyarray(nib.load(path).dataobj, dtype=np.float32)[:, :, :, 0, :]


def write_field(path: str, displacement: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(np.asarray(displacement, dtype=np.float32)[:, :, :, None, :], affine)
    image.header.set_xyzt_units("mm")
    image.header.set_intent("vector")
    nib.save(image, path)


def flat_outside(path: str, mask: str, target: str) -> str:
    """Write an image whose voxels outside of a mask have one value, the 99.9th percentile inside."""
    image = nib.load(path)
    data, inside = np.asanyarray(image.dataobj, dtype=np.float32), np.asanyarray(nib.load(mask).dataobj) > 0
    flat = np.where(inside, data, np.percentile(data[inside], 99.9)).astype(np.float32)
    nib.save(nib.Nifti1Image(flat, image.affine), target)
    return target


# The tools.


def greedy_affine(job: Job) -> np.ndarray:
    """The [4, 4] map from fixed to moving RAS points, by greedy, as its tutorial has it."""
    from picsl_greedy import Greedy3D

    fixed, moving = job.images()
    target = f"{job.work}/affine.mat"
    masks = "" if job.own_masks is None else f" -gm {job.own_masks[0]} -mm {job.own_masks[1]}"
    Greedy3D().execute(
        f"-a -dof 12 -i {fixed} {moving} -o {target} -m NCC 2x2x2 -ia-image-centers -n 100x50x10{masks} "
        f"-seed 1 -threads {job.threads}"
    )
    return np.loadtxt(target)


def greedy(job: Job) -> np.ndarray:
    from picsl_greedy import Greedy3D

    (fixed, moving), p = job.images(), job.parameters
    target = f"{job.work}/warp.nii.gz"
    world = greedy_affine(job) if job.affine else None
    start = "" if world is None else f" -it {job.work}/affine.mat"
    masks = "" if job.own_masks is None else f" -gm {job.own_masks[0]} -mm {job.own_masks[1]}"
    # -wp 0: the warp is rounded to a tenth of a voxel otherwise
    Greedy3D().execute(
        f"-i {fixed} {moving} -o {target} -m {p['metric']} -n {p['iterations']} -s {p['smoothing']} -wp 0"
        f"{start}{masks} -seed 1 -threads {job.threads}"
    )
    warp = read_field(target)
    return warp if world is None else then_affine(warp, nib.load(fixed).affine, world)


def ants(job: Job) -> np.ndarray:
    import ants

    paths, own = job.images(), job.own_masks
    fixed, moving = (ants.image_read(path) for path in paths)
    masks: dict[str, Any] = {}
    if own is not None:
        masks = {"mask": ants.image_read(own[0]), "moving_mask": ants.image_read(own[1]), "mask_all_stages": True}
    stages = {"type_of_transform": "SyN"} if job.affine else {
        "type_of_transform": "SyNOnly", "initial_transform": "Identity"
    }  # fmt: skip
    prefix = f"{job.work}/ants"
    found = ants.registration(fixed, moving, outprefix=prefix, **stages, **masks, **job.parameters)
    return read_field(ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=prefix))


def elastix(job: Job) -> np.ndarray:
    import itk

    fixed, moving = (itk.imread(path, itk.F) for path in job.images())
    maps = itk.ParameterObject.New()
    for kind in ("translation", "affine", "bspline"):
        entries = dict(maps.GetDefaultParameterMap(kind))
        entries["WriteResultImage"] = ["false"]
        changes = job.parameters.get("all", {}) | (job.parameters.get("bspline", {}) if kind == "bspline" else {})
        for key, value in changes.items():
            entries[key] = [str(value)]
        maps.AddParameterMap(entries)
    # not the moving mask: it ends the registration where a quarter of the samples falls outside of it
    masks = {} if job.own_masks is None else {"fixed_mask": itk.imread(job.own_masks[0], itk.UC)}
    # number_of_threads=2 crashes; ITK's own environment variable has the same effect
    _, found = itk.elastix_registration_method(fixed, moving, parameter_object=maps, log_to_console=False, **masks)
    field = itk.transformix_deformation_field(moving, found)
    return from_itk_array(itk.array_view_from_image(field))


def convexadam(job: Job) -> np.ndarray:
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt
    from nibabel.processing import resample_from_to

    torch.set_num_threads(job.threads)
    paths = job.images()
    fixed, moving = (nib.load(path) for path in paths)
    affine = fixed.affine
    # one grid for both: the moving image is resampled, by the affine map where there is one
    world = greedy_affine(job) if job.affine else np.eye(4)
    grid = fixed.shape, affine

    def on_grid(image: Any, order: int) -> np.ndarray:
        placed = nib.Nifti1Image(np.asanyarray(image.dataobj, dtype=np.float32), np.linalg.inv(world) @ image.affine)
        return resample_from_to(placed, grid, order=order, mode="nearest").get_fdata(dtype=np.float32)

    # its blocks have to fit, and its masks want even sizes: the grid is continued at its end
    block = np.lcm(2, job.parameters["grid_sp"])
    padding = [(0, -n % block) for n in fixed.shape]
    arrays = [np.asanyarray(fixed.dataobj, dtype=np.float32), on_grid(moving, 1)]
    arrays = [torch.from_numpy(np.pad(a, padding, mode="edge")) for a in arrays]
    masks: dict[str, Any] = {}
    if job.own_masks is not None:
        inside = [nib.load(mask) for mask in job.own_masks]
        for name, array in (("fixed", np.asanyarray(inside[0].dataobj)), ("moving", on_grid(inside[1], 0))):
            path = f"{job.work}/{name}_mask.nii.gz"
            nib.save(nib.Nifti1Image(np.pad(array, padding, mode="edge").astype(np.uint8), affine), path)
            masks[f"path_{name}_mask"] = path
        masks["use_mask"] = True
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    u = convex_adam_pt(*arrays, **job.parameters, **masks, **options)[tuple(slice(n) for n in fixed.shape)]
    return then_affine(lps_from_voxels(u, affine), affine, world)


def fireants(job: Job) -> np.ndarray:
    import torch
    from fireants.io.image import BatchedImages, Image
    from fireants.io.imagemask import apply_mask_to_image
    from fireants.registration.affine import AffineRegistration
    from fireants.registration.greedy import GreedyRegistration

    torch.set_num_threads(job.threads)
    images = [Image.load_file(path, device="cpu") for path in job.images()]
    if job.own_masks is not None:
        images = [
            apply_mask_to_image(image, Image.load_file(mask, device="cpu"))
            for image, mask in zip(images, job.own_masks, strict=True)
        ]
    pair = [BatchedImages([image]) for image in images]
    loss, start = "cc" if job.own_masks is None else "masked_cc", None
    if job.affine:  # as its tutorial has it, from the centres of the images
        linear = AffineRegistration(
            [8, 4, 2, 1], [200, 100, 50, 20], *pair, loss_type=loss, optimizer="Adam", optimizer_lr=3e-3,
            cc_kernel_size=5, init_rigid="cof", progress_bar=False,
        )  # fmt: skip
        linear.optimize()
        start = linear.get_affine_matrix().detach()
    registration = GreedyRegistration(
        fixed_images=pair[0], moving_images=pair[1], loss_type=loss, init_affine=start, progress_bar=False,
        **job.parameters,
    )  # fmt: skip
    registration.optimize()
    target = f"{job.work}/warp.nii.gz"
    registration.save_as_ants_transforms(target)
    return read_field(target)


def dipy(job: Job) -> np.ndarray:
    from dipy.align import affine_registration
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    fixed, moving = (nib.load(path) for path in job.images())
    # from 0 up: its centres of mass weigh by intensity, which Hounsfield units make negative
    static, other = (np.asanyarray(image.dataobj, dtype=np.float64) for image in (fixed, moving))
    static, other = static - static.min(), other - other.min()
    grids = {"static_grid2world": fixed.affine, "moving_grid2world": moving.affine}
    world = None
    if job.affine:
        options = {"static_affine": fixed.affine, "moving_affine": moving.affine, "level_iters": [1000, 100, 10]}
        # without masks: with them the lung pair, 9 mm off after the centres of mass, ended 137 mm off
        _, world = affine_registration(other, static, **options)
    metric = CCMetric(3, **job.parameters.get("metric", {}))
    solver = SymmetricDiffeomorphicRegistration(metric=metric, level_iters=job.parameters["level_iters"])
    mapping = solver.optimize(static, other, **grids, prealign=world)
    # the field is in world millimetres and comes before the affine map, as in the warp of an image
    displacement = lps_from_ras(mapping.get_forward_field())
    return displacement if world is None else then_affine(displacement, fixed.affine, world)


PEERS: dict[str, Callable[[Job], np.ndarray]] = {
    "greedy": greedy,
    "ants": ants,
    "elastix": elastix,
    "convexadam": convexadam,
    "fireants": fireants,
    "dipy": dipy,
}


def installed() -> dict[str, dict[str, str]]:
    """The versions that decide what each tool does, of those that are installed."""
    found = {}
    for peer, distributions in DISTRIBUTIONS.items():
        try:
            found[peer] = {name: version(name) for name in distributions}
        except PackageNotFoundError:
            continue
    return found


def read_job(path: str) -> Job:
    given = json.loads(Path(path).read_text())
    unknown = set(given) - {field.name for field in fields(Job)}
    if unknown or given.get("peer") not in PEERS:
        raise SystemExit(f"a job names one of {', '.join(PEERS)}, got {given.get('peer')!r}, and unknown {unknown}")
    return Job(**given)


def main() -> None:
    if sys.argv[1:] == ["--installed"]:
        print(json.dumps(installed()))
        return
    job = read_job(sys.argv[1])
    os.chdir(job.work)  # elastix leaves files in the current folder
    displacement = PEERS[job.peer](job)
    fixed = nib.load(job.fixed)
    if displacement.shape != (*fixed.shape, 3):
        raise SystemExit(f"{job.peer}: the field must be on the fixed grid {fixed.shape}, got {displacement.shape}")
    write_field(job.output, displacement, fixed.affine)


if __name__ == "__main__":
    main()
