from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deqreg import ops
from deqreg.ops import reference
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_matches_reference, assert_same_bits


def pair(*shape: int, batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Two correlated images in double."""
    generator = torch.Generator().manual_seed(seed)
    fixed, noise = (torch.randn(batch, 1, *shape, dtype=torch.float64, generator=generator) for _ in range(2))
    return fixed, 0.5 * fixed + noise


def sample(name: str, shape: tuple[int, ...], window: int, *, mask: bool = False, needs: str = "both") -> Sample:
    fixed, warped = pair(*shape, seed=len(name))
    kwargs: dict[str, object] = {"window": window}
    if mask:
        kwargs["mask"] = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(2)) > 0.4
    return Sample(name, (fixed.requires_grad_(needs != "warped"), warped.requires_grad_(needs != "fixed")), kwargs)


def summed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Sums over voxels in place of means: gradients of the order of one, which tolerances are meant for."""
    return lambda fixed, warped, **kwargs: function(fixed, warped, **kwargs) * fixed[0].numel()


SAMPLES = [
    sample("2-D", (7, 9), 5),
    sample("3-D", (4, 5, 6), 3),
    sample("masked", (4, 5, 6), 5, mask=True),
    sample("2-D masked", (11, 9), 3, mask=True),
    sample("by the fixed image", (5, 4, 6), 3, needs="fixed"),
    sample("by the warped image", (5, 4, 6), 3, mask=True, needs="warped"),
    sample("larger than the image", (4, 3, 5), 11),
    sample("larger than the image, masked", (4, 3, 5), 11, mask=True),
    # more planes than the CPU kernel's running sums live, rows longer than any vector
    sample("long", (75, 3, 41), 9),
    sample("long, masked", (75, 3, 41), 7, mask=True),
]
# two voxels always correlate perfectly: a gradient of zero, which in float32 is the difference of large terms
LINE = sample("one voxel along two axes", (1, 6, 1), 3)
SHARED = sample("shared noise", (4, 5, 6), 3)
SHARED.kwargs.update(epsilon=0.3, shared=0.2)


@pytest.mark.parametrize("s", [*SAMPLES, LINE, SHARED], ids=str)
def test_matches_reference(s: Sample, instruction_set: str) -> None:
    assert_matches_reference(summed(ops.lncc), summed(reference.lncc), s, 1e-12)


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_single_precision(s: Sample, instruction_set: str) -> None:
    # variances of about 1 from a few voxels: float32's 1e-7 times the spread of the coefficients
    assert_matches_reference(summed(ops.lncc), summed(reference.lncc), s.to(dtype=torch.float32), 2e-5)


@pytest.mark.parametrize("s", [*SAMPLES[:8], LINE, SHARED], ids=str)
def test_gradcheck(s: Sample) -> None:
    assert torch.autograd.gradcheck(lambda f, w: ops.lncc(f, w, **s.kwargs), s.args)


@pytest.mark.parametrize("s", [SAMPLES[0], SAMPLES[2]], ids=str)
def test_opcheck(s: Sample) -> None:
    mask, window = s.kwargs.get("mask"), s.kwargs["window"]
    torch.library.opcheck(torch.ops.deqreg.lncc, (*s.args, mask, window, 1e-6, 1e-7))
    images = [a.detach() for a in s.args]
    for needs in [(True, True), (True, False), (False, True), (False, False)]:
        torch.library.opcheck(torch.ops.deqreg.lncc_gradient, (*images, mask, window, 1e-6, 1e-7, *needs))


@pytest.mark.parametrize("s", [SAMPLES[0], SAMPLES[2]], ids=str)
def test_compiles_and_exports(s: Sample) -> None:
    assert_compiles_and_exports(ops.lncc, s)
    assert_compiles_and_exports(ops.lncc_gradient, Sample("in one pass", tuple(a.detach() for a in s.args), s.kwargs))


def assert_one_pass_is_autograd(fixed: Tensor, warped: Tensor, mask: Tensor) -> None:
    value, gradient = ops.lncc_gradient(fixed, warped, window=5, mask=mask)
    warped = warped.clone().requires_grad_()
    expected = ops.lncc(fixed, warped, window=5, mask=mask)
    expected.sum().backward()
    assert torch.equal(value, expected)
    assert torch.equal(gradient, torch.as_tensor(warped.grad))


def test_one_pass_is_autograd_bit_for_bit() -> None:
    fixed, warped = pair(9, 8, 7)
    assert_one_pass_is_autograd(fixed.float(), warped.float(), torch.rand(fixed.shape) > 0.3)


def test_an_affine_map_of_intensities_is_one_and_noise_is_near_none() -> None:
    fixed, _ = pair(20, 21, 22, batch=1)
    assert float(ops.lncc(fixed, 3 - 2 * fixed)) == pytest.approx(1, abs=1e-5)  # epsilon over a variance of 1
    # squared correlation of independent samples has mean 1 / (n - 1) in a window of n, more where it is clipped
    assert float(ops.lncc(fixed, torch.randn_like(fixed))) < 2 / 5**3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 0.7, 1e4])
def test_a_constant_image_is_zero_with_no_gradient(level: float, dtype: torch.dtype) -> None:
    fixed, _ = pair(12, 40, 13, batch=1)
    flat = torch.full_like(fixed, level).to(dtype)
    for images in [(fixed.to(dtype), flat), (flat, fixed.to(dtype)), (flat, flat)]:
        value, gradient = ops.lncc_gradient(*images, window=5)
        assert float(value) == 0
        assert not gradient.any()


def test_a_large_offset_changes_nothing(instruction_set: str) -> None:
    fixed, warped = pair(40, 19, 18, batch=1)
    # intensities that float32 holds exactly with the offset, so that nothing but the arithmetic differs
    fixed, warped = (torch.round(image * 256) / 256 for image in (fixed, warped))
    expected = ops.lncc_gradient(fixed, warped, window=9)
    shifted = ops.lncc_gradient(fixed.float() + 1e4, warped.float() - 1e4, window=9)
    assert float(shifted[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    # float32 keeps 1e-7 of the largest of the terms that cancel
    torch.testing.assert_close(shifted[1].double(), expected[1], rtol=0, atol=1e-5 * float(expected[1].abs().max()))


def gradient_bound(image: Tensor, window: int, epsilon: float) -> float:
    """No element of the gradient is larger: n windows hold a voxel, and each passes on 4 / sqrt(n epsilon) at most."""
    return 4 * (window ** (image.ndim - 2) / epsilon) ** 0.5 / image.numel()


def flat_beside_background(level: float) -> Tensor:
    """Intensities are counted from the background, so that a flat region has a mean and no deviation."""
    image = torch.zeros(1, 1, 40, 17, 17)
    image[..., 4:, :, 2:] = level
    return image


@pytest.mark.parametrize("epsilon", [1e-6, 1e-12])
@pytest.mark.parametrize("level", [0.7, 3e4, 1e6])
def test_where_images_are_flat_but_for_rounding_gradients_are_small(
    level: float, epsilon: float, instruction_set: str
) -> None:
    flat = flat_beside_background(level)
    fixed, warped = (flat.nextafter(2 * flat).where(torch.rand(flat.shape) > 0.5, flat) for _ in range(2))
    value, gradient = ops.lncc_gradient(fixed, warped, window=5, epsilon=epsilon)
    assert 0 <= float(value) <= 1
    assert float(gradient.abs().max()) <= gradient_bound(fixed, 5, epsilon)


def test_variance_is_never_negative(instruction_set: str) -> None:
    """Where the difference of rounded sums falls below zero, by more than epsilon, the similarity would turn round."""
    flat = flat_beside_background(3e4 + 0.1)
    textured = flat + torch.rand(flat.shape)
    mask = torch.zeros_like(flat)
    mask[..., 8:, :, 6:] = 1  # windows without background, but for its first voxel, from which intensities are counted
    mask[..., 0, 0, 0] = 1
    for fixed, warped in [(flat, textured), (textured, flat), (flat, 1.1 * flat)]:
        value, gradient = ops.lncc_gradient(fixed, warped, window=5, mask=mask, epsilon=1e-12)
        assert float(value) == 0
        assert not gradient.any()


def test_a_bright_block_leaves_no_trace_behind(instruction_set: str) -> None:
    """Intensities that differ by 1e3, so coefficients by 1e6: sums that pass the larger must still tell the smaller."""
    fixed, warped = pair(70, 40, 20, batch=1)
    bright = torch.ones(70, 40, 20, dtype=torch.float64)
    bright[20:50, 10:30] = 1e3
    fixed, warped = (fixed * bright).float(), (warped * bright).float()
    _, actual = ops.lncc_gradient(fixed, warped, window=5)
    exact = warped.double().requires_grad_()
    (expected,) = torch.autograd.grad(reference.lncc(fixed.double(), exact, window=5), exact)
    # away from the block's faces, where windows hold both
    for region in [np.s_[..., 24:46, 14:26, :], np.s_[..., :16, :, :], np.s_[..., 54:, :, :], np.s_[..., 34:, :]]:
        # float32 counts these intensities from one that may lie 1e3 deviations away
        scale = float(expected[region].abs().max())
        torch.testing.assert_close(actual[region].double(), expected[region], rtol=0, atol=1e-3 * scale)


def test_what_is_outside_the_mask_does_not_matter() -> None:
    fixed, warped = pair(9, 10, 11)
    mask = torch.rand(fixed.shape) > 0.5
    expected = ops.lncc_gradient(fixed, warped, window=5, mask=mask)
    spoilt = [image.where(mask, torch.full_like(image, float("nan"))) for image in (fixed, warped)]
    value, gradient = ops.lncc_gradient(*spoilt, window=5, mask=mask)
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1])
    assert not gradient[~mask].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_a_mask_is_nonzero_in_any_dtype(dtype: torch.dtype) -> None:
    fixed, warped = pair(9, 10, 11)
    mask = torch.rand(fixed.shape) > 0.5
    assert torch.equal(ops.lncc(fixed, warped, mask=mask), ops.lncc(fixed, warped, mask=mask.to(dtype) * 3))


def test_a_full_mask_is_no_mask() -> None:
    fixed, warped = pair(9, 10, 11)
    full = ops.lncc_gradient(fixed, warped, mask=torch.ones_like(fixed))
    torch.testing.assert_close(full, ops.lncc_gradient(fixed, warped), rtol=1e-12, atol=1e-15)


def test_an_empty_mask_is_zero_for_its_sample_alone() -> None:
    fixed, warped = pair(9, 10, 11)
    mask = torch.ones_like(fixed)
    mask[0] = 0
    value, gradient = ops.lncc_gradient(fixed, warped, mask=mask)
    assert float(value[0]) == 0
    assert not gradient[0].any()
    torch.testing.assert_close(value[1:], ops.lncc(fixed[1:], warped[1:]))


def test_same_bits_at_any_thread_count(threads: None) -> None:
    fixed, warped = (image.float() for image in pair(100, 33, 40))
    mask = torch.rand(fixed.shape) > 0.2
    for inside in (None, mask):
        assert_same_bits(partial(torch.ops.deqreg.lncc_gradient, fixed, warped, inside, 7, 1e-6, 0.0, True, True))


def test_the_gradients_mirror_when_the_images_change_places() -> None:
    fixed, warped = pair(9, 10, 11)
    value, by_fixed, by_warped = ops.lncc_gradients(fixed, warped, window=5)
    swapped = ops.lncc_gradients(warped, fixed, window=5)
    torch.testing.assert_close(swapped, (value, by_warped, by_fixed), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close((value, by_warped), ops.lncc_gradient(fixed, warped, window=5), rtol=0, atol=0)


def test_non_contiguous_inputs() -> None:
    fixed, warped = (image.permute(0, 1, 4, 3, 2) for image in pair(5, 6, 7))
    assert torch.equal(ops.lncc(fixed, warped), ops.lncc(fixed.contiguous(), warped.contiguous()))


def test_empty_batch() -> None:
    value, gradient = ops.lncc_gradient(torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4))
    assert value.shape == (0,)
    assert gradient.shape == (0, 1, 4, 4)


def test_second_derivative_raises() -> None:
    fixed, warped = pair(5, 6)
    warped.requires_grad_()
    (first,) = torch.autograd.grad(ops.lncc(fixed, warped).sum(), warped, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


IMAGE = torch.zeros(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("fixed", "warped", "kwargs", "message"),
    [
        (torch.zeros(4, 4), IMAGE, {}, r"fixed must be \[N, 1, H, W\] or \[N, 1, D, H, W\], got \[4, 4\]"),
        (IMAGE.expand(1, 2, 4, 4), IMAGE, {}, r"fixed must be \[N, 1, H, W\] .* got \[1, 2, 4, 4\]"),
        (IMAGE, IMAGE.double(), {}, "warped must match fixed"),
        (IMAGE, torch.zeros(1, 1, 4, 5), {}, "warped must match fixed"),
        (torch.zeros(1, 1, 0, 4), torch.zeros(1, 1, 0, 4), {}, "at least one voxel"),
        (IMAGE, IMAGE, {"window": 4}, "window must be odd and positive, got 4"),
        (IMAGE, IMAGE, {"window": -1}, "window must be odd and positive, got -1"),
        (IMAGE, IMAGE, {"epsilon": 0.0}, "epsilon must be positive, got 0.0"),
        (IMAGE, IMAGE, {"shared": 1.0}, "shared must be in 0 ... epsilon, 1e-06, got 1.0"),
        (IMAGE, IMAGE, {"mask": torch.ones(4, 4)}, r"mask must be \[1, 1, 4, 4\], got \[4, 4\]"),
    ],
)
def test_errors_state_the_contract(fixed: Tensor, warped: Tensor, kwargs: dict, message: str) -> None:
    for function in (ops.lncc, ops.lncc_gradient, ops.lncc_gradients):
        with pytest.raises(ValueError, match=message):
            function(fixed, warped, **kwargs)


@pytest.mark.cuda
@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_cuda_matches_reference(s: Sample) -> None:
    assert_matches_reference(summed(ops.lncc), summed(reference.lncc), s.to(device="cuda"), 1e-12)
    # sums of squares are float there, and under the mask some windows hold two or three voxels of almost one intensity
    assert_matches_reference(summed(ops.lncc), summed(reference.lncc), s.to(device="cuda", dtype=torch.float32), 1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_half_storage(dtype: torch.dtype) -> None:
    fixed, warped = (image.to("cuda", dtype) for image in pair(9, 10, 11))
    value, gradient = ops.lncc_gradient(fixed, warped)
    expected = ops.lncc_gradient(fixed.float(), warped.float())
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient, expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_images_are_float32(dtype: torch.dtype) -> None:
    with FakeTensorMode():
        images = [torch.empty(2, 1, 9, 10, 11, dtype=dtype, device="cuda") for _ in range(2)]
        found = ops.lncc_gradients(*images)
    assert [t.dtype for t in found] == [torch.float32] * 3


@pytest.mark.cuda
def test_cuda_large_offset_and_repeatability() -> None:
    fixed, warped = (torch.round(image * 256) / 256 for image in pair(40, 19, 70, batch=1))
    expected = ops.lncc_gradient(fixed, warped)
    on_device = ((fixed.float() + 1e4).cuda(), (warped.float() - 1e4).cuda())
    value, gradient = ops.lncc_gradient(*on_device)
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-5)
    scale = float(expected[1].abs().max())
    torch.testing.assert_close(gradient.cpu().double(), expected[1], rtol=0, atol=1e-4 * scale)
    again = ops.lncc_gradient(*on_device)
    assert torch.equal(value, again[0])
    assert torch.equal(gradient, again[1])


@pytest.mark.cuda
def test_cuda_one_pass_is_autograd() -> None:
    fixed, warped = (image.float().cuda() for image in pair(9, 8, 7))
    assert_one_pass_is_autograd(fixed, warped, torch.rand(fixed.shape, device="cuda") > 0.3)


def test_an_image_is_stationary_at_its_twin_where_the_noise_is_shared() -> None:
    image = torch.rand(1, 1, 9, 8, 7, dtype=torch.float64)
    value, gradient = ops.lncc_gradient(image, image, window=3, epsilon=0.01, shared=0.01)
    torch.testing.assert_close(value, torch.ones_like(value))
    assert gradient.abs().max() < 1e-15
    _, pull = ops.lncc_gradient(image, image, window=3, epsilon=0.01)
    assert pull.abs().max() > 1e-5  # without, more contrast still gains
