"""What must be set before jax is imported: memory allocation, the compilation cache."""

import ctypes
import os
import sys
from pathlib import Path

import absl.logging

# glibc's mallopt, by its numbers in malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def prepare() -> None:
    """To be called first thing by a command that computes.

    Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/ddag_jax, so that
    later starts need no compiling.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddag_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    absl.logging.set_verbosity("error")  # orbax warns of what it takes for granted
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Keeps glibc from returning memory to the system after every step and asking for it anew,
    which takes a tenth to a fifth of a step on a CPU."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, with another allocator
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 256 << 20)
