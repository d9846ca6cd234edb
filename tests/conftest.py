from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from deqreg import _C


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=_C.instruction_sets_supported())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.instruction_set()
    assert _C.select_instruction_set(request.param)
    yield request.param
    _C.select_instruction_set(before)
