from __future__ import annotations

import math
import platform
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

PROGRAM = """
import ctypes
from deqreg.cli.memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
keep_freed_memory()
first = libc.malloc(2**27)
libc.free(first)
heap = next(line for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]"))
low, high = (int(end, 16) for end in heap.split()[0].split("-"))
print(low <= first < high)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_what_was_freed_stays_with_the_process() -> None:
    """128 MiB that were freed still belong to the heap; by default they are a mapping of their own, which is gone."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


FETCHING = """
import resource, sys, time
from deqreg.cli.memory import fetching_memory, keep_freed_memory

def resident():
    return resource.getpagesize() * int(open("/proc/self/statm").read().split()[1])

with fetching_memory("missing.nii.gz"):
    import nibabel.openers  # which takes memory too
keep_freed_memory()
for seconds in (0, 5):
    before = resident()
    with fetching_memory(sys.argv[1]):
        time.sleep(seconds)
    print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_memory_is_there_before_it_is_taken(tmp_path: Path) -> None:
    """As much as the image's size asks for if there is time, but no more than that; it was freed, and stays."""
    path, shape = tmp_path / "image.nii.gz", (160, 160, 128)
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), path)
    done = subprocess.run([sys.executable, "-c", FETCHING, path], capture_output=True, text=True, check=True)
    asked = 128 * math.prod(shape)
    at_once, later = map(int, done.stdout.split())
    assert at_once < asked / 2
    # less the ends, which are no whole pages
    assert asked - 2**21 <= at_once + later <= asked + 2**22
