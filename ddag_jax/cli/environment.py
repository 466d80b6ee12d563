"""Configure the process before jax is imported: allocator, compilation cache, logging."""

import ctypes
import dataclasses
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Annotated

import absl.logging
import tyro

from ddag_jax.errors import UserError

# glibc's mallopt, by its numbers in malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_COMPILED = "/jax/core/compile/backend_compile_duration"
"""Name of jax's event after a compilation or a load from the compilation cache."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """Location of the other processes of a command. On a TPU slice, under srun and under mpirun
    they discover each other; elsewhere each process needs all three options."""

    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Address of process 0."""
    process_id: int | None = None
    """Index of this process, from 0."""
    processes: int | None = None
    """Number of processes."""


def prepare(processes: Processes | None = None) -> None:
    """Configure a command that computes; must be called first.

    Compiled programs are cached in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/ddag_jax.

    Args:
        processes: location of the other processes, which are waited for; None for a command that
            runs in one process.

    Raises:
        UserError: a variable of the environment cannot be read, or that of `join_processes`.
    """
    _keep_compiled()
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    import_jax()
    # orbax logs the exceptions that it raises, and warns about its own defaults.
    absl.logging.set_verbosity("fatal")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    threading.excepthook = _unless_orbax
    sys.unraisablehook = _unless_native
    keep_freed_memory()
    _return_what_compilers_free()
    if processes is not None:
        from ddag_jax.parallel import join_processes

        join_processes(processes.coordinator, processes.process_id, processes.processes)


def import_jax() -> None:
    """Import jax, and say which of the environment's settings of it have no effect on us.

    Raises:
        UserError: jax cannot read one of its variables.
    """
    try:
        from ddag_jax import numerics
    except ValueError as error:
        raise UserError(f"{error}; unset it, or give it a value that JAX knows") from None
    if names := numerics.overridden():
        print(
            f"note: {', '.join(names)}: without effect here, the numbers do not depend on the"
            " environment",
            file=sys.stderr,
        )


def _keep_compiled() -> None:
    """Cache compiled programs between processes, if there is a folder for it."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddag_jax"
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK | os.X_OK):
            raise PermissionError(f"{cache}: cannot be written")
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        print(
            f"note: compiled programs are not kept for the next start ({error}); name a folder for"
            " them by JAX_COMPILATION_CACHE_DIR",
            file=sys.stderr,
        )
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)


def _unless_orbax(failed: threading.ExceptHookArgs) -> None:
    """Print the exception of a thread unless orbax re-raises it where the checkpoint is saved."""
    if not type(failed.thread).__module__.startswith("orbax."):
        threading.__excepthook__(failed)


def _unless_native(failed: "sys.UnraisableHookArgs") -> None:
    """Print unraisable exceptions, except those of tensorstore's native threads."""
    if failed.object is not None or threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(failed)


def make_deterministic() -> None:
    """Restrict XLA to deterministic operations on GPUs.

    Must be called before jax computes anything."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def _return_what_compilers_free() -> None:
    """Return freed memory to the system after each large compilation.

    On a CPU this is 0.9 GB, too fragmented to be reused by a ResNet-50 step, which needs 1.5 GB.
    """
    libc = _glibc()
    if libc is None:
        return
    import jax

    def trim(event: str, duration_secs: float, **about: str | int) -> None:
        if event == _COMPILED and duration_secs > 1:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim)


def keep_freed_memory() -> None:
    """Keep glibc from returning memory to the system after every step.

    Requesting it again takes 10 to 20 % of the time of a step on a CPU.
    """
    libc = _glibc()
    if libc is None:
        return
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never; the largest int would be 2 GiB, which a step frees
    libc.mallopt(_M_TOP_PAD, 256 << 20)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library; None if it is not glibc."""
    try:
        libc = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None
