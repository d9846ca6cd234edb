from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.ops import reference
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_matches_reference, assert_same_bits


def sample(
    name: str, shape: tuple[int, ...], out: tuple[int, ...], *, affine: bool = False, channels: int = 3, **kwargs: str
) -> Sample:
    generator = torch.Generator().manual_seed(len(name))
    dims = len(shape)
    image = torch.randn(2, channels, *shape, dtype=torch.float64, generator=generator, requires_grad=True)
    # three voxels of displacement leave these small images on every side
    u = (torch.randn(2, dims, *out, dtype=torch.float64, generator=generator) * 3).requires_grad_()
    maps: dict[str, Tensor] = {}
    if affine:
        noise = torch.randn(2, dims, dims + 1, dtype=torch.float64, generator=generator) * 0.2
        maps["affine"] = (torch.eye(dims, dims + 1, dtype=torch.float64) + noise).requires_grad_()
    return Sample(name, (image, u), {**maps, **kwargs})


SAMPLES = [
    sample("2-D", (7, 5), (6, 9)),
    sample("3-D", (5, 6, 7), (4, 7, 3)),
    sample("zeros", (5, 6, 7), (4, 7, 3), padding="zeros"),
    sample("2-D affine zeros", (7, 5), (6, 9), affine=True, padding="zeros"),
    sample("affine", (5, 6, 7), (4, 7, 3), affine=True),
    sample("nearest", (5, 6, 7), (4, 7, 3), interpolation="nearest"),
    sample("nearest zeros", (5, 6, 7), (4, 7, 3), interpolation="nearest", padding="zeros", affine=True),
    sample("one voxel along an axis", (1, 6, 1), (3, 3, 3)),
    sample("one voxel, zeros", (1, 6, 1), (3, 3, 3), padding="zeros"),
    # longer than a tile of the CPU kernel, and no multiple of any vector's width
    sample("long rows", (3, 4, 301), (2, 3, 293), channels=1),
]
# several boxes of the CPU kernel along each axis, the last ones cut short
BOXES = [
    sample("boxes", (20, 35, 70), (18, 34, 67), channels=2),
    sample("boxes, zeros", (20, 35, 70), (18, 34, 67), channels=1, padding="zeros"),
    sample("2-D boxes", (40, 150), (37, 131), channels=5),
    # vectors of channels, the last one not full, and single ones left over
    sample("many channels", (11, 10, 70), (10, 9, 67), channels=29),
    sample("many channels, zeros", (11, 10, 70), (10, 9, 67), channels=17, padding="zeros", affine=True),
    sample("2-D, many channels", (40, 90), (37, 71), channels=20),
    sample("many channels, one voxel along an axis", (1, 12, 1), (3, 3, 3), channels=16),
]


@pytest.mark.parametrize("s", [*SAMPLES, *BOXES], ids=str)
def test_matches_reference(s: Sample, instruction_set: str) -> None:
    assert_matches_reference(ops.warp, reference.warp, s, 1e-12)


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_single_precision(s: Sample, instruction_set: str) -> None:
    # coordinates up to 300 carry an error of 300 * 2^-24 into the weights, times images of size 4
    assert_matches_reference(ops.warp, reference.warp, s.to(dtype=torch.float32), 1e-4)


@pytest.mark.parametrize("s", SAMPLES[:7], ids=str)
def test_gradcheck(s: Sample) -> None:
    if s.kwargs.get("interpolation") == "nearest":
        image, u = s.args
        assert torch.autograd.gradcheck(lambda i: ops.warp(i, u.detach(), interpolation="nearest"), image)
        return
    affine = s.kwargs.get("affine")
    rest = {k: v for k, v in s.kwargs.items() if k != "affine"}
    assert torch.autograd.gradcheck(lambda i, u, a: ops.warp(i, u, affine=a, **rest), (*s.args, affine))


@pytest.mark.parametrize("s", [SAMPLES[0], SAMPLES[4]], ids=str)
def test_opcheck(s: Sample) -> None:
    image, u = s.args
    torch.library.opcheck(torch.ops.deqreg.warp, (image, u, s.kwargs.get("affine"), 0, 0))
    values = torch.randn(*image.shape[:2], *u.shape[2:], dtype=image.dtype)
    affine = s.kwargs.get("affine")
    inputs = (image.detach(), u.detach(), values, None if affine is None else affine.detach(), 0)
    torch.library.opcheck(torch.ops.deqreg.warp_gradient, inputs)
    torch.library.opcheck(torch.ops.deqreg.warp_gradients, inputs)


@pytest.mark.parametrize("s", [SAMPLES[0], SAMPLES[4]], ids=str)
def test_compiles_and_exports(s: Sample) -> None:
    assert_compiles_and_exports(ops.warp, s)


def test_non_contiguous_inputs() -> None:
    image = torch.randn(2, 6, 5, 4, 3, dtype=torch.float64).permute(0, 4, 3, 2, 1)
    u = torch.randn(2, 6, 5, 4, 3, dtype=torch.float64).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(ops.warp(image, u), ops.warp(image.contiguous(), u.contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("channels", [1, 4, 17, 28])
@pytest.mark.parametrize("scatter", [0.5, 200.0], ids=["packed", "scattered"])
def test_boxes_whose_cells_lie_together_or_apart(
    scatter: float, channels: int, padding: str, instruction_set: str
) -> None:
    # the CPU kernel packs what a box reaches, or, where that is most of the image, fetches from the image itself
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, 40, 50, 90, generator=generator)
    u = torch.randn(1, 3, 12, 17, 66, generator=generator) * scatter
    affine = torch.eye(3, 4)[None] + torch.randn(1, 3, 4, generator=generator) * 0.1
    for maps in ({}, {"affine": affine}):
        actual = ops.warp(image, u, padding=padding, **maps)
        # positions up to 1000 carry an error of 1000 * 2^-24 into the weights, times images of size 5
        torch.testing.assert_close(actual, reference.warp(image, u, padding=padding, **maps), atol=1e-3, rtol=0)
        values, still = torch.randn(actual.shape, generator=generator), u.clone().requires_grad_()
        expected = torch.autograd.grad(reference.warp(image, still, padding=padding, **maps), still, values)[0]
        gradient = ops.warp_gradient(image, u, values, padding=padding, **maps)
        if maps:  # the gradient by the sample position, which the affine map takes to the displacement
            gradient = torch.einsum("nab,na...->nb...", affine[:, :, :3], gradient)
        # near a voxel the slope jumps: a position off by the above may lie on its other side
        near = (gradient - expected).abs().amax(1) < 1e-2
        assert near.float().mean() > 0.998


def test_identity_is_exact() -> None:
    image = torch.randn(1, 1, 9, 8, 7)
    assert torch.equal(ops.warp(image, torch.zeros(1, 3, 9, 8, 7)), image)


def test_empty_batch() -> None:
    assert ops.warp(torch.zeros(0, 2, 4, 4), torch.zeros(0, 2, 3, 3)).shape == (0, 2, 3, 3)


def test_no_channels_have_no_slope() -> None:
    u = torch.zeros(1, 2, 3, 3)
    assert torch.equal(ops.warp_gradient(torch.zeros(1, 0, 4, 4), u, torch.zeros(1, 0, 3, 3)), u)


def test_displacement_that_is_not_a_number_is_harmless() -> None:
    u = torch.full((1, 3, 4, 4, 4), float("nan"))
    u[:, 0] = float("inf")
    assert ops.warp(torch.ones(1, 1, 4, 4, 4), u).shape == (1, 1, 4, 4, 4)


def test_same_bits_at_any_thread_count(threads: None) -> None:
    image, u = torch.randn(1, 19, 33, 40, 50), torch.randn(1, 3, 33, 40, 50) * 4
    u[:, :, :16] /= 8  # half of the CPU kernel's boxes reach few voxels, half of them many
    assert_same_bits(lambda: (ops.warp(image, u), ops.warp_gradient(image, u, image)))


@pytest.mark.parametrize("s", [s for s in [*SAMPLES, *BOXES] if "interpolation" not in s.kwargs], ids=str)
def test_both_gradients_in_one_pass_are_the_bits_of_each(s: Sample, instruction_set: str) -> None:
    image, u = (tensor.detach() for tensor in s.args)
    assert_both_gradients_are_those_of_each(image, u, s.kwargs.get("affine"), s.kwargs.get("padding", "border"))


def test_both_gradients_across_the_threads_planes(threads: None) -> None:
    image, u = torch.randn(1, 2, 33, 40, 50), torch.randn(1, 3, 33, 40, 50) * 4
    u[:, :, :16] /= 8  # half of the CPU kernel's boxes reach few voxels, half of them many
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        assert_both_gradients_are_those_of_each(image, u)


def assert_both_gradients_are_those_of_each(
    image: Tensor, u: Tensor, affine: Tensor | None = None, padding: str = "border"
) -> None:
    values = torch.randn(*image.shape[:2], *u.shape[2:], dtype=image.dtype)
    how = ops.checks.PADDINGS[padding]
    by_image, by_position = torch.ops.deqreg.warp_gradients(image, u, values, affine, how)
    assert torch.equal(by_image, ops.splat(values, u, image.shape[2:], affine=affine, padding=padding))
    assert torch.equal(by_position, ops.warp_gradient(image, u, values, affine=affine, padding=padding))


def test_second_derivative_by_the_image_is_right_and_by_the_displacement_raises() -> None:
    image = torch.randn(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    u = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda i: ops.warp(i, u).square(), image)
    u.requires_grad_()
    (first,) = torch.autograd.grad(ops.warp(image, u).square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("image", "u", "kwargs", "message"),
    [
        (torch.zeros(4, 4), torch.zeros(1, 2, 4, 4), {}, r"image must be \[N, C, H, W\] or \[N, C, D, H, W\], got \[4, 4\]"),
        (torch.zeros(1, 1, 4, 4, 4), torch.zeros(2, 2, 8, 8), {}, r"displacement must be \[1, 3, D, H, W\], got \[2, 2, 8, 8\]"),
        (torch.zeros(1, 1, 4, 4).half(), torch.zeros(1, 2, 4, 4), {}, "float32 or float64 on the CPU"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4).double(), {}, "displacement must be torch.float32, got torch.float64"),
        (torch.zeros(1, 1, 4, 4).long(), torch.zeros(1, 2, 4, 4), {}, "floating-point tensor, got torch.int64"),
        (torch.zeros(1, 1, 0, 4), torch.zeros(1, 2, 4, 4), {}, "at least one voxel"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4), {"affine": torch.zeros(2, 3)}, r"affine must be \[1, 2, 3\], got \[2, 3\]"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4), {"padding": "wrap"}, "padding must be one of 'border', 'zeros', got 'wrap'"),
    ],
)  # fmt: skip
def test_errors_state_the_contract(image: Tensor, u: Tensor, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.warp(image, u, **kwargs)


@pytest.mark.cuda
@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_cuda_matches_reference(s: Sample) -> None:
    assert_matches_reference(ops.warp, reference.warp, s.to(device="cuda"), 1e-12)
    assert_matches_reference(ops.warp, reference.warp, s.to(device="cuda", dtype=torch.float32), 1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_half_storage(dtype: torch.dtype) -> None:
    image = torch.randn(2, 4, 9, 10, 11, device="cuda").to(dtype)
    u = torch.randn(2, 3, 9, 10, 11, device="cuda") * 2
    # the only rounding beyond the reference's is that of the result
    torch.testing.assert_close(ops.warp(image, u), ops.warp(image.float(), u).to(dtype))
