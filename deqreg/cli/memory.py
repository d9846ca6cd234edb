"""How the process holds its memory."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

# mallopt's numbers in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_KEPT = 2**31 - 1  # bytes, the largest number that mallopt takes
_HUGE_PAGES = 14  # madvise's number in Linux' mman.h
_HUGE_PAGE, _STEP = 2**21, 2**24  # bytes
# About what any method takes on the finest level of a head, in bytes for a voxel of the fixed image.
_TAKEN = 128
# No machine gets more than this ready while torch is imported.
_MOST = 2**30


def keep_freed_memory() -> None:
    """Let freed memory be handed out again, in place of fresh pages from the system.

    glibc gives a large array back when it is freed, and the next one is cleared page by page: a tenth of a
    registration's time. Kept, it costs a quarter more memory, for the heap is not packed as tightly; threads share it,
    for what one of them keeps to itself no other can use. Does nothing where there is no glibc.

    Example:
        >>> keep_freed_memory()
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)


@contextmanager
def fetching_memory(fixed: str) -> Iterator[None]:
    """While the block runs, have a thread fetch the memory that a registration will take.

    Meant for imports, which keep one core busy: a virtual machine hands out memory at a gigabyte a second or less, and
    where it is taken nothing else can be done meanwhile. Call `keep_freed_memory` first. Does nothing where there is no
    glibc, or where the image cannot be read, which its reader then says.

    Args:
        fixed: path of the fixed image; its size tells how much will be taken.

    Example:
        >>> with fetching_memory("missing.nii.gz"):
        ...     import torch
    """
    libc, size = _glibc(), min(_TAKEN * _voxels(fixed), _MOST)
    if libc is None or size < _STEP:
        yield
        return
    enough = Event()
    thread = Thread(target=_fetch, args=(libc, size, enough), daemon=True)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def _fetch(libc: ctypes.CDLL, size: int, enough: Event) -> None:
    """Write to memory that was never used until it is enough, and free it: it stays with the process."""
    start = libc.malloc(size)
    if start is None:
        return
    end, at = start + size, -(-start // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(at, end - at, _HUGE_PAGES)
    # not madvise's MADV_POPULATE_WRITE, which keeps other threads from mapping theirs
    while at < end and not enough.is_set():
        ctypes.memset(at, 0, min(_STEP, end - at))
        at += _STEP
    libc.free(start)


def _voxels(path: str) -> int:
    """How many an image has; 0 where it cannot be told."""
    from nibabel import Nifti1Header
    from nibabel.openers import ImageOpener

    with suppress(Exception), ImageOpener(path) as file:
        return max(math.prod(Nifti1Header.from_fileobj(file, check=False).get_data_shape()), 0)
    return 0


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
