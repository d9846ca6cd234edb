from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> Iterator[None]:
    """The maps here are too small to share out; waking a second thread would take most of the time."""
    torch.set_num_threads(1)
    yield
