"""What reaches the kernels past deqreg.ops, from a trace for instance, is refused where it would break memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deqreg import ops

kernels = torch.ops.deqreg


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(1, 1, 8, 9, 10).to(dtype)


def field() -> Tensor:
    return torch.zeros(1, 3, 8, 9, 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (kernels.warp, lambda dtype: (image(dtype), field(), None, 0, 0)),
        (kernels.splat, lambda dtype: (image(dtype), field(), [8, 9, 10], None, 0, 0, False)),
        (kernels.gaussian, lambda dtype: (image(dtype), [1.0, 1.0, 1.0])),
        (kernels.lncc, lambda dtype: (image(dtype), image(dtype), None, 3, 1e-5, 0.0)),
        (kernels.resize, lambda dtype: (image(dtype), [4, 5, 6])),
        (kernels.correlation, lambda dtype: (image(dtype), image(dtype), None, 1)),
    ],
    ids=str,
)
def test_half_storage_is_for_cuda(
    kernel: Callable[..., Tensor], arguments: Callable[[torch.dtype], tuple[Any, ...]], dtype: torch.dtype
) -> None:
    with pytest.raises(RuntimeError, match="is_cuda"):
        kernel(*arguments(dtype))


def test_a_trace_met_with_half_images_is_refused() -> None:
    traced = torch.jit.trace(lambda moving, u: ops.warp(moving, u), (image(), field()))
    torch.testing.assert_close(traced(image(), field()).shape, image().shape)
    with pytest.raises(RuntimeError, match="is_cuda"):
        traced(image(torch.float16), field())


def test_nothing_is_splat_onto_an_image_without_voxels() -> None:
    with pytest.raises(RuntimeError, match="voxels"):
        kernels.splat(image(), field(), [8, 0, 10], None, 0, 0, False)


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf"), 1e30])
def test_a_gaussian_has_its_taps(sigma: float) -> None:
    with pytest.raises(RuntimeError, match="sigma"):
        kernels.gaussian(image(), [1.0, sigma, 1.0])
