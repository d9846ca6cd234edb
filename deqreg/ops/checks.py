"""Contracts of the operators' arguments, and of settings, checked once in Python, in the user's words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

INTERPOLATIONS = {"linear": 0, "nearest": 1}
PADDINGS = {"border": 0, "zeros": 1}

AXES = {2: "H, W", 3: "D, H, W"}
STORAGE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def coordinate_dtype(values: Tensor) -> torch.dtype:
    """The dtype of coordinates beside `values`: float64 with float64, float32 with everything narrower."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def check_volume(name: str, tensor: Tensor, channels: int | None = None) -> None:
    """A floating-point [N, C, *S] tensor, 2-D or 3-D, half precision on CUDA only."""
    check_tangent(name, tensor)
    if tensor.ndim not in (4, 5) or (channels is not None and tensor.shape[1] != channels):
        count = "C" if channels is None else channels
        raise ValueError(f"{name} must be [N, {count}, H, W] or [N, {count}, D, H, W], got {list(tensor.shape)}")
    if tensor.dtype not in STORAGE_DTYPES:
        raise ValueError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"{name} must be float32 or float64 on the CPU, got {tensor.dtype}")


def check_field(name: str, field: Tensor, beside: Tensor | None = None) -> Tensor:
    """A displacement or velocity [N, d, *S]; beside an image, of its batch, dimension, device and coordinate dtype.

    Returns the field, in single precision where autocast left it in half.
    """
    check_tangent(name, field)
    if field.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(field.device.type):
        field = field.float()
    dims = field.ndim - 2 if beside is None else beside.ndim - 2
    batch = "N" if beside is None else beside.shape[0]
    wrong_batch = beside is not None and field.shape[:1] != beside.shape[:1]
    if dims not in AXES or field.ndim != dims + 2 or field.shape[1] != dims or wrong_batch:
        shape = f"[{batch}, {dims}, {AXES[dims]}]" if dims in AXES else "[N, 2, H, W] or [N, 3, D, H, W]"
        raise ValueError(f"{name} must be {shape}, got {list(field.shape)}")
    wanted = coordinate_dtype(field if beside is None else beside)
    if field.dtype != wanted:
        raise ValueError(f"{name} must be {wanted}, got {field.dtype}")
    if beside is not None:
        check_device(name, field, beside)
    return field


def check_affine(affine: Tensor | None, beside: Tensor) -> None:
    """Sampling maps [N, d, d + 1] in voxels, beside an image [N, C, *S]."""
    if affine is None:
        return
    check_tangent("affine", affine)
    dims = beside.ndim - 2
    if affine.shape != (beside.shape[0], dims, dims + 1):
        raise ValueError(f"affine must be [{beside.shape[0]}, {dims}, {dims + 1}], got {list(affine.shape)}")
    if affine.dtype != coordinate_dtype(beside):
        raise ValueError(f"affine must be {coordinate_dtype(beside)}, got {affine.dtype}")
    check_device("affine", affine, beside)


def check_same(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Two tensors of one shape, dtype and device."""
    check_tangent(name, tensor)
    if tensor.shape != other.shape or tensor.dtype != other.dtype:
        raise ValueError(
            f"{name} must match {other_name}, {list(other.shape)} {other.dtype}, "
            f"got {list(tensor.shape)} {tensor.dtype}"
        )
    check_device(name, tensor, other)


def check_device(name: str, tensor: Tensor, other: Tensor) -> None:
    """Two tensors on one device."""
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on {other.device}, got {tensor.device}")


def check_tangent(name: str, tensor: Tensor) -> None:
    """No forward-mode derivative: torch loses it in silence where a gradient is registered or solved for."""
    # the level first: it takes a tenth of a microsecond, and outside of forward mode that is all
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise RuntimeError(
            f"{name} must have no tangent, for there is no forward-mode derivative here, got one; take "
            "torch.autograd.grad, which runs in reverse"
        )


def check_not_empty(name: str, tensor: Tensor) -> None:
    """An image that is sampled needs at least one voxel."""
    if 0 in tensor.shape[2:]:
        raise ValueError(f"{name} must have at least one voxel along every axis, got {list(tensor.shape)}")


def choose(name: str, value: str, choices: dict[str, int]) -> int:
    """The number the native layer knows a named choice by."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return choices[value]


def require(holds: bool, contract: str, value: object) -> None:
    """A setting that is within its range."""
    if not holds:
        raise ValueError(f"{contract}, got {value!r}")


def check_shape(shape: Sequence[int], dims: int) -> None:
    """A spatial shape of the right length with at least one voxel along every axis."""
    if len(shape) != dims or any(size < 1 for size in shape):
        raise ValueError(f"shape must be {dims} positive sizes, got {list(shape)}")
