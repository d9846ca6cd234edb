from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    """The maps here are too small to share out; waking a second thread would take most of the time."""
    torch.set_num_threads(1)
