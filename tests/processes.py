"""Start several processes of one command on this machine, joined over loopback."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
HAS_OLDER_EMITTER = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
LIMIT = 3600  # seconds: a test that takes as long hangs, however busy the machine


def flags(devices: int, *, hasty: bool = True) -> str:
    """Return XLA_FLAGS for so many CPU devices.

    In haste, XLA compiles a train step in a third of its time, and a tiny step runs as fast: LLVM
    does not optimise, and XLA's older emitter, which jaxlib has up to 0.10, makes fewer kernels. A
    program that runs many times would take several times longer. Without haste, LLVM optimises at
    level 1, which takes two thirds of its usual time to compile and gives programs as fast.

    A program is one LLVM module, which takes less CPU time than several; that they would compile
    side by side is of no use where every core runs tests.
    """
    result = f"--xla_force_host_platform_device_count={devices}"
    result += " --xla_cpu_parallel_codegen_split_count=1"
    if not hasty:
        return f"{result} --xla_backend_optimization_level=1"
    older = " --xla_cpu_use_fusion_emitters=false" if HAS_OLDER_EMITTER else ""
    return f"{result} --xla_backend_optimization_level=0{older}"


def together(
    processes: int,
    devices: int,
    words: Callable[[list[object]], Sequence[object]],
    meanwhile: Callable[[list[subprocess.Popen]], None] | None = None,
    hasty: bool = True,
) -> list[subprocess.CompletedProcess]:
    """Run Python in several processes, each with its own CPU devices, until all have ended.

    Args:
        processes: how many.
        devices: of each.
        words: the command line after `python`, given [HOST:PORT, process, processes]; of a process
            that is alone, given [].
        meanwhile: what to do while they run, given them.
        hasty: how XLA compiles, see `flags`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for index in range(processes):
        where: list[object] = [f"localhost:{port}", index, processes] if processes > 1 else []
        started.append(
            subprocess.Popen(
                [sys.executable, *map(str, words(where))],
                cwd=ROOT,
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "XLA_FLAGS": flags(devices, hasty=hasty),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        if meanwhile is not None:
            meanwhile(started)
        ended = [(process, *process.communicate(timeout=LIMIT)) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, out, err)
        for process, out, err in ended
    ]
