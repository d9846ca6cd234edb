"""The local change of volume under a displacement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import deqreg._C  # noqa: F401  registers the operators
from deqreg.ops import checks
from deqreg.ops.autograd import forbid_second_derivative


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Determinant of the Jacobian of the map `x + u(x)`: its change of volume, at most zero where it folds.

    `det(I + du/dx)(x)`, the derivatives by central differences, one-sided at the border (the rule of `numpy.gradient`);
    along an axis of one voxel they are zero.

    Args:
        displacement: `u`, `[N, d, *S]`, 2-D or 3-D, in voxels, component `a` along array axis `a`; float32 or float64.

    Returns:
        `[N, *S]`, without a unit. Differentiable by the displacement.

    Raises:
        ValueError: when the shape or dtype breaks this contract.

    Reference: Leow et al., Statistical Properties of Jacobian Maps, IEEE TMI 2007 (26:822-832), sec. II.

    >>> import torch
    >>> x = torch.arange(4.0).expand(1, 4, 4)
    >>> jacobian_determinant(torch.stack([x.mT, -0.5 * x], dim=1))[0, 0].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    displacement = checks.check_field("displacement", displacement)
    return torch.ops.deqreg.jacobian_determinant(displacement)


@torch.library.register_fake("deqreg::jacobian_determinant")
def _(displacement: Tensor) -> Tensor:
    return displacement.new_empty((displacement.shape[0], *displacement.shape[2:]))


@torch.library.register_fake("deqreg::jacobian_determinant_gradient")
def _(displacement: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(displacement, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    return torch.ops.deqreg.jacobian_determinant_gradient(*ctx.saved_tensors, grad)


torch.library.register_autograd("deqreg::jacobian_determinant", _backward, setup_context=_setup_context)
forbid_second_derivative("deqreg::jacobian_determinant_gradient")
