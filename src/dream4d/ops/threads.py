"""Numba kernels on a pool of threads.

Kernels release the GIL and take a range of work items. Unlike with Numba's own `parallel=True`, they can be
called from any thread, whichever threading layer is installed, and no second OpenMP team competes with torch's.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numba
import torch

Kernel = Callable[..., None]


def keep_freed_memory() -> None:
    """Lets glibc use the memory of freed tensors again: it gives those of some megabytes back to the system, and every
    new one then waits for fresh pages: a tenth of a dynamic step on CPUs."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        trim_threshold, mmap_threshold = -1, -3  # names of <malloc.h>
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**30)


keep_freed_memory()


def compiled(*, fastmath: bool | set[str]) -> Callable[[Kernel], Kernel]:
    """Decorates a kernel. It is compiled on its first call and cached on disk, where there is a writable place."""

    def decorate(function: Kernel) -> Kernel:
        options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy", "boundscheck": False}
        try:
            kernel: Kernel = numba.njit(function, cache=True, **options)
        except RuntimeError:  # Numba found no folder that it may write to
            kernel = numba.njit(function, **options)
        return kernel

    return decorate


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="dream4d-kernel")


def spread(kernel: Kernel, items: int, grain: int, *arguments: Any) -> None:
    """Calls `kernel(first, last, *arguments)` on ranges of at most `grain` that cover [0, items).

    Uses as many threads as torch does; a range writes only what belongs to its own items.
    """
    ranges = [(first, min(first + grain, items)) for first in range(0, items, grain)]
    threads = min(torch.get_num_threads(), len(ranges))
    if threads <= 1:
        for first, last in ranges:
            kernel(first, last, *arguments)
        return
    pool = _pool(torch.get_num_threads())
    for done in [pool.submit(kernel, first, last, *arguments) for first, last in ranges]:
        done.result()
