from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.ops import reference
from tests.ops.harness import Sample, assert_compiles_and_exports, assert_matches_reference, assert_same_bits


def sample(name: str, shape: tuple[int, ...], batch: int = 2) -> Sample:
    generator = torch.Generator().manual_seed(len(name))
    u = torch.randn(batch, len(shape), *shape, dtype=torch.float64, generator=generator)
    return Sample(name, (u.requires_grad_(),))


SAMPLES = [
    sample("2-D", (7, 6)),
    sample("3-D", (5, 6, 7)),
    # every way in which the border rules of both ends can meet along one axis
    sample("short axes", (2, 3, 4)),
    sample("shorter axes", (3, 2, 2)),
    sample("one voxel along two axes", (1, 5, 1)),
    sample("one voxel", (1, 1)),
    sample("long rows", (2, 3, 293), batch=1),
]


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_matches_reference(s: Sample, instruction_set: str) -> None:
    assert_matches_reference(ops.jacobian_determinant, reference.jacobian_determinant, s, 1e-13)
    # a cubic polynomial in differences of order 1, each with an error of 2^-24
    single = s.to(dtype=torch.float32)
    assert_matches_reference(ops.jacobian_determinant, reference.jacobian_determinant, single, 1e-5)


@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_gradcheck(s: Sample) -> None:
    # of a few values at once for the long ones
    assert torch.autograd.gradcheck(ops.jacobian_determinant, s.args, fast_mode=s.args[0].numel() > 1000)


@pytest.mark.parametrize("s", SAMPLES[:2], ids=str)
def test_opcheck(s: Sample) -> None:
    (u,) = s.args
    torch.library.opcheck(torch.ops.deqreg.jacobian_determinant, (u,))
    grad = torch.randn(u.shape[0], *u.shape[2:], dtype=u.dtype)
    torch.library.opcheck(torch.ops.deqreg.jacobian_determinant_gradient, (u.detach(), grad))


@pytest.mark.parametrize("s", SAMPLES[:2], ids=str)
def test_compiles_and_exports(s: Sample) -> None:
    assert_compiles_and_exports(ops.jacobian_determinant, s)


@pytest.mark.parametrize("dims", [2, 3])
def test_of_a_linear_map_is_its_determinant_up_to_the_border(dims: int) -> None:
    matrix = torch.randn(dims, dims, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(*[torch.arange(5, dtype=torch.float64)] * dims, indexing="ij"))
    u = torch.einsum("ab,b...->a...", matrix, x) - x
    found = ops.jacobian_determinant(u[None])
    torch.testing.assert_close(found, torch.linalg.det(matrix).expand_as(found))


def test_non_contiguous_input() -> None:
    u = torch.randn(2, 6, 5, 4, 3, dtype=torch.float64).permute(0, 4, 3, 2, 1)
    assert torch.equal(ops.jacobian_determinant(u), ops.jacobian_determinant(u.contiguous()))


def test_empty_batch_and_empty_grid() -> None:
    u = torch.zeros(0, 2, 4, 5, requires_grad=True)
    found = ops.jacobian_determinant(u)
    assert found.shape == (0, 4, 5)
    assert torch.autograd.grad(found.sum(), u)[0].shape == u.shape
    assert ops.jacobian_determinant(torch.zeros(1, 3, 4, 0, 5)).shape == (1, 4, 0, 5)


def test_same_bits_at_any_thread_count(threads: None) -> None:
    u = torch.randn(2, 3, 33, 40, 50, requires_grad=True)

    def call() -> list[Tensor]:
        found = ops.jacobian_determinant(u)
        return [found, *torch.autograd.grad(found.square().sum(), u)]

    assert_same_bits(call)


def test_second_derivative_raises() -> None:
    u = torch.randn(1, 2, 4, 5, requires_grad=True)
    (first,) = torch.autograd.grad(ops.jacobian_determinant(u).sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("u", "message"),
    [
        (torch.zeros(4, 4), r"displacement must be \[N, 2, H, W\] or \[N, 3, D, H, W\], got \[4, 4\]"),
        (torch.zeros(1, 2, 4, 4, 4), r"displacement must be \[N, 3, D, H, W\], got \[1, 2, 4, 4, 4\]"),
        (torch.zeros(1, 2, 4, 4).half(), r"displacement must be torch.float32, got torch.float16"),
    ],
)
def test_errors_state_the_contract(u: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.jacobian_determinant(u)


@pytest.mark.cuda
@pytest.mark.parametrize("s", SAMPLES, ids=str)
def test_cuda_matches_reference(s: Sample) -> None:
    on_gpu = s.to(device="cuda")
    assert_matches_reference(ops.jacobian_determinant, reference.jacobian_determinant, on_gpu, 1e-13)
    single = s.to(device="cuda", dtype=torch.float32)
    assert_matches_reference(ops.jacobian_determinant, reference.jacobian_determinant, single, 1e-5)
