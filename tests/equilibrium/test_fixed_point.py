from __future__ import annotations

from typing import Any

import pytest
import torch

from deqreg.equilibrium import fixed_point


@pytest.mark.parametrize(
    ("z0", "message"),
    [
        (torch.tensor(1.0), r"z0 must be a tensor \[N, \.\.\.\] or a tuple of such with one N, got \[\[\]\]"),
        ((), r"z0 must be a tensor .* got \[\]"),
        ((torch.zeros(2, 3), torch.zeros(3, 3)), r"with one N, got \[\[2, 3\], \[3, 3\]\]"),
        (torch.zeros(2, 3, dtype=torch.long), r"z0 must be float32 or float64, got \[torch.int64\]"),
        ((torch.zeros(2), torch.zeros(2, device="meta")), r"z0 must be on one device, got \['cpu', 'meta'\]"),
    ],
)
def test_the_state_is_checked(z0: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fixed_point(lambda z: z, z0)


@pytest.mark.parametrize(
    ("z0", "value", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"f\(z\) must be \[2, 3\] on cpu, got \[2, 4\] on cpu"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), r"f\(z\) must be torch.float32 as the state is, got torch.float64"),
        (torch.zeros(2, 3), (torch.zeros(2, 3),), r"f must return a tensor as the state is, got a tuple of 1"),
        (torch.zeros(2, 3), None, r"f must return a tensor as the state is, got a NoneType"),
        ((torch.zeros(2, 3), torch.zeros(2)), torch.zeros(2, 3), r"f must return a tuple of 2 tensors .* got a Tensor"),
        ((torch.zeros(2, 3), torch.zeros(2)), [torch.zeros(2, 3)], r"f must return a tuple of 2 tensors .* got a list"),
        ((torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(2, 3), torch.zeros(3)), r"f\(z\)\[1\] must be \[2\] on cpu"),
    ],
)  # fmt: skip
def test_what_the_update_returns_is_checked(z0: Any, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fixed_point(lambda z: value, z0)
