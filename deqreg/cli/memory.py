"""How the process holds its memory."""

from __future__ import annotations

import ctypes
import sys

# mallopt's numbers in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# A finest level of heads frees and takes this much again at every step.
_KEPT = 2**29  # bytes


def keep_freed_memory() -> None:
    """Let freed memory be handed out again, in place of fresh pages from the system.

    glibc gives a large array back when it is freed, and the next one is cleared page by page: a tenth of a
    registration's time. Kept, it costs a quarter more memory, for the heap is not packed as tightly; threads share it,
    for what one of them keeps to itself no other can use. Does nothing where there is no glibc.

    Example:
        >>> keep_freed_memory()
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_ARENA_MAX, 1)
        mallopt(_TRIM_THRESHOLD, _KEPT)
