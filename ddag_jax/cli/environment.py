"""What must be set before jax is imported: memory allocation, the compilation cache."""

import argparse
import ctypes
import logging
import os
import sys
import threading
from pathlib import Path

import absl.logging

# glibc's mallopt, by its numbers in malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Where the other processes of the same command are, where jax cannot find that out."""
    group = parser.add_argument_group(
        "several processes",
        "On a TPU slice, under srun and under mpirun they find each other; elsewhere each process"
        " is told all three.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--process-id", type=int, metavar="I", help="of this one, from 0")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")


def prepare(options: argparse.Namespace | None = None) -> None:
    """To be called first thing by a command that computes.

    With the options of `add_process_options` it waits for the other processes, if there are any.

    Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/ddag_jax, so that
    later starts need no compiling.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddag_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    # orbax warns of what it takes for granted, and logs what it raises.
    absl.logging.set_verbosity("fatal")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    threading.excepthook = _unless_orbax
    sys.unraisablehook = _unless_native
    _keep_freed_memory()
    if options is not None:
        from ddag_jax.parallel import join_processes

        join_processes(options.coordinator, options.process_id, options.processes)


def _unless_orbax(failed: threading.ExceptHookArgs) -> None:
    """Prints what ends a thread; what ends orbax's own is raised where the checkpoint is saved."""
    if not type(failed.thread).__module__.startswith("orbax."):
        threading.__excepthook__(failed)


def _unless_native(failed: "sys.UnraisableHookArgs") -> None:
    """The same of what tensorstore's native threads, which belong to no Python object, meet."""
    if failed.object is not None or threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(failed)


def make_deterministic() -> None:
    """Has XLA use only operations, and choices among them, that give the same bits each time on a
    GPU. To be called before jax computes anything."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


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
