import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Images of a few hundred voxels: handing them round between threads takes longer than the work."""
    torch.set_num_threads(1)
