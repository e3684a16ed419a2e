"""Memory that is used again while the spool is decoded, and given back afterwards.

Every batch takes and frees the same hundreds of megabytes. Allocators return them to the system at once and take them
again page by page, which costs a tenth of all decoding and more on a virtual machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import pyarrow as pa

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
_DEFAULT = 128 << 10  # of both
_KEPT, _LARGEST = 1 << 30, 32 << 20  # bytes; glibc knows no larger limit of what it does not map anew


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Meanwhile this process keeps what it frees. Without glibc nothing is different."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    pool = pa.default_memory_pool()
    libc.mallopt(_TRIM_THRESHOLD, _KEPT)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own allocators are not told by mallopt
    try:
        yield
    finally:
        pa.set_memory_pool(pool)
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT)
        libc.mallopt(_MMAP_THRESHOLD, _DEFAULT)
        libc.malloc_trim(ctypes.c_size_t(0))
