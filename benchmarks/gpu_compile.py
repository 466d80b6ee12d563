"""Compile the train step for an NVIDIA GPU, on a machine without one, and count its kernels.

    python -m benchmarks.gpu_compile                  the published step for an H100
    python -m benchmarks.gpu_compile --chip a100      for another GPU
    python -m benchmarks.gpu_compile --identities 32  another batch
    python -m benchmarks.gpu_compile --compare FILE   beside an earlier result, as a table
    python -m benchmarks.gpu_compile --config debug   a small network, to try it

The program is train.py's for one GPU, with 8 identities (64 images of DDAG) and convolutions in
bfloat16. Needs the CUDA plugin of jax (`pip install "jax[cuda13]"`, 4 GB; not in the lock), which
contains the compiler, but neither a GPU nor its driver. Prints the kernels of a step and the bytes
that they read and write, by kind, the largest twenty, and the memory of the program; writes
results/gpu_compile.json. A full-size step compiles in two minutes on two cores.

Nothing runs. Without a GPU, XLA cannot try which form of a matrix product is fastest, and takes its
own (Triton) for all of them; with `XLA_FLAGS=--xla_gpu_enable_triton_gemm=false` it takes cuBLAS. A
program that is compiled on a GPU is between the two. The figures are functions of the program and
of the versions: they are equal in every run.

Bytes are those of the operands and results of each kernel: once, however often it reads them, and
of slices and gathers what they touch. Caches, and the workspaces of cuDNN and cuBLAS, are not
counted.
"""

import argparse
import collections
import dataclasses
import importlib.metadata
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from ddag_jax.cli.main import run
from ddag_jax.config import Config
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config

LARGEST = 20
LAUNCH_SECONDS = 2e-6
"""A kernel that moves less than the memory does in this time costs its launch."""
PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")

# jax reads these; the first keeps it from looking for a GPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # programs of a described GPU cannot be loaded
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A GPU as XLA's compiler sees it."""

    name: str
    """As the driver reports it."""
    capability: int
    """Major compute capability; the minor one is 0."""
    multiprocessors: int
    lanes: int
    """Float32 units of a multiprocessor."""
    memory: int
    """Bytes."""
    bandwidth: int
    """Bytes per second."""
    l2: int
    """Bytes of the second-level cache."""
    clock_ghz: float
    """The highest."""
    shared: int
    """KiB of shared memory of a multiprocessor. A block may have one less."""

    def description(self) -> str:
        """Return XLA's description of the chip, a GpuTargetConfigProto as text."""
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 10 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {self.capability} }}
              core_count: {self.multiprocessors}
              fpus_per_core: {self.lanes}
              clock_rate_ghz: {self.clock_ghz}
              device_memory_size: {self.memory}
              memory_bandwidth: {self.bandwidth}
              l2_cache_size: {self.l2}
              shared_memory_per_core: {self.shared << 10}
              shared_memory_per_block_optin: {(self.shared - 1) << 10}
              shared_memory_per_block: {48 << 10}
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              threads_per_core_limit: 2048
              threads_per_block_limit: 1024
              threads_per_warp: 32
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
            }}"""


_GB = 10**9
CHIPS = {
    "h100": Chip("NVIDIA H100 80GB HBM3", 9, 132, 128, 80 * _GB, 3_350 * _GB, 50 << 20, 1.98, 228),
    "h200": Chip("NVIDIA H200", 9, 132, 128, 141 * _GB, 4_800 * _GB, 50 << 20, 1.98, 228),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 8, 108, 64, 80 * _GB, 2_039 * _GB, 40 << 20, 1.41, 164),
}
"""From NVIDIA's data sheets of the SXM modules (memory, bandwidth), its white papers of the Ampere
and the Hopper architecture (multiprocessors, lanes, caches, clock), and the table of compute
capabilities in the CUDA programming guide (shared memory, and the limits that do not differ)."""


def prepare() -> str:
    """Set the environment and return the CUDA plugin with its version. Call this before jax is
    imported.

    Raises:
        UserError: the plugin is not installed, or is of another version than jax.
    """
    jax_version = importlib.metadata.version("jax")
    fix = (
        f'pip install "jax[cuda13]=={jax_version}", in an environment of its own if this one'
        " must stay as the lock has it"
    )
    for name in PLUGINS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if version != jax_version:
            raise UserError(f"{name} {version}, but jax {jax_version}: install one version: {fix}")
        os.environ.update(ENVIRONMENT)
        return f"{name} {version}"
    raise UserError(f"the CUDA plugin of jax, which compiles for GPUs, is not installed: {fix}")


# ---------------------------------------------------------------------------- reading a program

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.+?) (?P<opcode>[a-z][\w\-]*)\("
    r"(?P<rest>.*)$"
)
_TENSOR = re.compile(
    r"\b(?P<dtype>[a-z]+(?P<bits>\d*)\w*)\[(?P<sizes>[\d,]*)\](?P<layout>\{[^}]*\})?"
)
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
    r"(?:%?([\w.\-]+)|\{([^}]*)\})"
)
_NAME = re.compile(r"%([\w.\-]+)")
_WORKSPACE = re.compile(r", [su]8\[\d+\](\{0\})?\)$")
"""Last result of a call of cuDNN or cuBLAS."""

NO_KERNEL = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier",
    "partition-id", "replica-id", "copy-done", "async-update", "async-done", "all-reduce-done",
    "all-gather-done",
})  # fmt: skip
"""Operations that a program does without a kernel of their own."""
_MOVING = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "reshape", "copy", "slice",
    "transpose", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad", "broadcast", "iota",
    "convert", "reduce-precision",
})  # fmt: skip
_CALLING = frozenset({"call", "while", "conditional"})


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of an HLO module."""

    name: str
    type: str
    opcode: str
    arguments: str
    """What is in its parentheses."""
    attributes: str
    """What follows them."""
    root: bool

    @property
    def operands(self) -> list[str]:
        """Names of its operands, in order."""
        return _NAME.findall(self.arguments)

    @property
    def op_name(self) -> str:
        """The JAX operation behind it, with its scopes; "" if the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        return [
            name
            for one, several in _CALLED.findall(self.attributes)
            for name in ([one] if one else _NAME.findall(several))
        ]


@dataclasses.dataclass(frozen=True)
class Module:
    """An optimised HLO module (`compiled.as_text()`)."""

    computations: Mapping[str, Mapping[str, Instruction]]
    """By name, and each the instructions by name, in the order of the text."""
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Read the text of a module."""
        computations = dict[str, dict[str, Instruction]]()
        entry, current = "", dict[str, Instruction]()
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                current = computations.setdefault(head["name"], {})
                entry = head["name"] if head["entry"] else entry
            elif found := _INSTRUCTION.match(line):
                current[found["name"]] = Instruction(
                    found["name"],
                    found["type"],
                    found["opcode"],
                    *_closed(found["rest"]),
                    root=bool(found["root"]),
                )
        return cls(computations, entry)

    def launched(self, computation: str | None = None) -> Iterator[tuple[str, Instruction]]:
        """Return the computation and the instruction of every kernel. A loop's body counts once."""
        within = self.entry if computation is None else computation
        for one in self.computations[within].values():
            if one.opcode in _CALLING:
                for called in one.called:
                    yield from self.launched(called)
            elif one.opcode not in NO_KERNEL:
                yield within, one

    def content(self, one: Instruction) -> list[Instruction]:
        """Return the instructions that a kernel fuses, or the instruction itself."""
        if one.opcode != "fusion":
            return [one]
        return [
            inner
            for called in one.called
            for instruction in self.computations[called].values()
            for inner in self.content(instruction)
        ]


def _closed(text: str) -> tuple[str, str]:
    """Return what is before and after the parenthesis that closes the one before `text`."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:place], text[place + 1 :]
    return text, ""


def _tensors(type_: str) -> Iterator[tuple[int, int]]:
    """Return number and bytes of the elements of each array of a type."""
    for found in _TENSOR.finditer(type_):
        if found["dtype"] != "token":
            width = 1 if found["dtype"] == "pred" else max(int(found["bits"] or 0), 8) // 8
            yield math.prod(map(int, filter(None, found["sizes"].split(",")))), width


def size(type_: str) -> int:
    """Return the bytes of a type.

    >>> size("(bf16[2,64]{1,0}, pred[3])")
    259
    """
    return sum(number * width for number, width in _tensors(type_))


def moved(module: Module, within: str, one: Instruction) -> int:
    """Return the bytes that a kernel of the computation `within` reads and writes."""
    outside = module.computations[within]
    if one.opcode != "fusion":
        read = sum(size(outside[name].type) for name in set(one.operands))
        return read + size(_WORKSPACE.sub("", one.type))
    inside = module.computations[one.called[0]]
    users = collections.defaultdict[str, list[Instruction]](list)
    for inner in inside.values():
        for name in inner.operands:
            users[name].append(inner)
    touched = dict[str, int]()
    for inner in inside.values():
        if inner.opcode == "parameter":
            name = one.operands[int(inner.arguments)]
            ((_, width),) = _tensors(inner.type)
            touched[name] = max(touched.get(name, 0), width * _touched(inner, users))
    return sum(touched.values()) + _written(inside)


def _touched(one: Instruction, users: Mapping[str, Sequence[Instruction]]) -> int:
    """Return how many elements of an array its users in a fusion read."""
    ((whole, _),) = _tensors(one.type)
    total = 0
    for user in users[one.name]:
        first = user.operands[0] == one.name
        if user.opcode in ("slice", "dynamic-slice", "gather") and first:
            total += next(_tensors(user.type))[0]
        elif user.opcode == "dynamic-update-slice" and first and user.operands.count(one.name) == 1:
            continue  # written in place
        elif user.opcode in ("bitcast", "reshape", "convert"):
            total += _touched(user, users)
        else:
            return whole
    return min(total, whole)


def _written(inside: Mapping[str, Instruction]) -> int:
    """Return the bytes of a fusion's results."""
    (root,) = (one for one in inside.values() if one.root)
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for result in results:
        while result.opcode in ("bitcast", "reshape"):
            result = inside[result.operands[0]]
        in_place = result.opcode == "dynamic-update-slice"
        total += size(inside[result.operands[1]].type if in_place else result.type)
    return total


# --------------------------------------------------------------------------------- kinds of kernels

PRODUCTS, CONVOLUTIONS = "matrix products", "convolutions"
FORWARD, BACKWARD = "BatchNorm forward", "BatchNorm backward"
SELECTIONS, FINITENESS = "update and selection of the state", "finiteness of gradients"
COPIES, LAYOUTS, REDUCTIONS = "copies and conversions", "layout changes", "other reductions"
OTHER = "other"
KINDS = (
    PRODUCTS,
    CONVOLUTIONS,
    FORWARD,
    BACKWARD,
    SELECTIONS,
    FINITENESS,
    REDUCTIONS,
    COPIES,
    LAYOUTS,
    OTHER,
)
"""Each with what the compiler fused into it: BatchNorm's have ReLU and the shortcut's addition."""


def kind_of(module: Module, within: str, one: Instruction) -> str:
    """Return the kind of a kernel of the computation `within`."""
    from ddag_jax.training.step import UPDATE

    content = module.content(one)
    opcodes = {inner.opcode for inner in content}
    target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
    library = target[1].lower() if target else ""
    if "dot" in opcodes or "gemm" in library or "cublas" in library or "matmul" in library:
        return PRODUCTS
    if "convolution" in opcodes or "conv" in library:
        return CONVOLUTIONS
    if "is-finite" in opcodes:
        return FINITENESS
    names = [inner.op_name for inner in (one, *content)]
    if "select" in opcodes and any(f"/{UPDATE}/" in name for name in names):
        return SELECTIONS
    if any("normalise_batch" in name for name in names):
        return BACKWARD if any("transpose(" in name for name in names) else FORWARD
    if opcodes <= _MOVING:
        return LAYOUTS if _changes_layout(module, within, one) else COPIES
    return REDUCTIONS if "reduce" in opcodes else OTHER


def _changes_layout(module: Module, within: str, one: Instruction) -> bool:
    """Return whether a kernel that computes nothing puts values into another order."""
    inside = module.computations[one.called[0] if one.opcode == "fusion" else within]
    return any(
        inner.opcode == "transpose"
        or (inner.opcode == "copy" and _layout(inner) != _layout(inside[inner.operands[0]]))
        for inner in ([one] if one.opcode != "fusion" else inside.values())
    )


def _layout(one: Instruction) -> str:
    found = _TENSOR.search(one.type)
    return (found["layout"] or "") if found else ""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a kernel does, as far as it is counted."""

    name: str
    kind: str
    bytes: int
    result: str
    """Type of its result, without layout."""
    op_name: str


def kernels(text: str) -> list[Kernel]:
    """Return the kernels of an optimised HLO module, in the order in which they are launched."""
    module = Module.parse(text)
    return [
        Kernel(
            one.name,
            kind_of(module, within, one),
            moved(module, within, one),
            re.sub(r"\{[^}]*\}|/\*.*?\*/", "", one.type),
            one.op_name,
        )
        for within, one in module.launched()
    ]


# ----------------------------------------------------------------------------------- compiling


def compile_step(config: Config, chip: Chip, identities: int) -> dict[str, Any]:
    """Compile the train step for one GPU and return its figures, for JSON.

    Raises:
        UserError: the program does not compile for the chip.
    """
    import jax
    from jax.experimental import topologies

    from benchmarks.tpu_compile import train_program
    from ddag_jax.parallel import device_mesh

    described = topologies.get_topology_desc(
        platform="cuda", target_config=chip.description(), topology="1x1x1"
    )
    function, arguments = train_program(config, device_mesh(described.devices), identities)
    start = time.perf_counter()
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        fix = ""
        if "tile sizes" in str(error):
            fix = (
                "; without a GPU to try tiles on, set XLA_FLAGS=--xla_gpu_enable_triton_gemm=false"
            )
        raise UserError(f"{chip.name}: {str(error).splitlines()[0]}{fix}") from None
    seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
    found = kernels(compiled.as_text())
    limit = int(LAUNCH_SECONDS * chip.bandwidth)
    by_kind = {}
    for kind in KINDS:
        sizes = [one.bytes for one in found if one.kind == kind]
        small = sum(one < limit for one in sizes)
        by_kind[kind] = {"kernels": len(sizes), "small": small, "bytes": sum(sizes)}
    largest = sorted(found, key=lambda one: (-one.bytes, one.name))[:LARGEST]
    return {
        "chip": dataclasses.asdict(chip),
        "compile_s": seconds,
        "kernels": len(found),
        "small": sum(one.bytes < limit for one in found),
        "small_bytes": limit,
        "bytes": sum(one.bytes for one in found),
        "kinds": by_kind,
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        "largest": [dataclasses.asdict(one) for one in largest],
    }


# ------------------------------------------------------------------------------------ printing


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> int:
    """Run the command; write the results to `folder`. Return 0, or 2 after a UserError."""
    return run(lambda: _main(arguments, folder))


def _main(arguments: Sequence[str] | None, folder: Path) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_compile",
        description="Compile the train step for an NVIDIA GPU, without one, and count its kernels.",
    )
    parser.add_argument("--chip", choices=CHIPS, default="h100", help="the GPU (default: h100)")
    parser.add_argument(
        "--config", default="sysu_mm01", help="a Python file with get_config(), or a shipped name"
    )
    parser.add_argument(
        "--identities", type=int, default=8, metavar="N", help="in a batch, 2 or more (default: 8)"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="an earlier result, to print beside this one"
    )
    given = parser.parse_args(arguments)
    if given.identities < 2:
        parser.error(f"--identities {given.identities}: must be 2 or more, for the triplet loss")
    config = load_config(given.config)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, compute_dtype="bfloat16")
    )
    before = None if given.compare is None else _earlier(given.compare)
    plugin = prepare()
    machine = measure.machine()
    print(
        measure.describe(machine), plugin, f"\ncompiling for {CHIPS[given.chip].name} ...", sep="\n"
    )
    found = compile_step(config, CHIPS[given.chip], given.identities)
    print(f"compiled in {found['compile_s']:.0f} s; nothing ran on a GPU\n")
    print(_kinds(found, before))
    print(f"\nsmall: less than {found['small_bytes'] / 1e6:.1f} MB, what the memory moves in 2 us")
    print(f"\nthe largest {LARGEST}\n{_largest(found)}\n\nmemory\n{_memory(found, before)}")
    name = "gpu_compile" if given.chip == "h100" else f"gpu_compile_{given.chip}"
    result = {
        "config": given.config,
        "compute_dtype": config.model.compute_dtype,
        "identities": given.identities,
        "plugin": plugin,
        **found,
    }
    print("\nwritten:", measure.write(name, result, folder))


def _earlier(path: Path) -> dict[str, Any]:
    """Return the result in a file that this command wrote.

    Raises:
        UserError: it is none.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
        return {key: record[key] for key in ("kernels", "small", "bytes", "kinds", "memory")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--compare {path}: not a result of this command ({error!r}); name a gpu_compile.json"
        ) from None


def _kinds(found: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """Return a table of kernels and bytes by kind, of an earlier result too."""
    sides = {"": found} if before is None else {"before: ": before, "now: ": found}
    rows = []
    for kind in (*KINDS, "together"):
        row = [kind]
        for side in sides.values():
            figures = side if kind == "together" else side["kinds"].get(kind)
            row += (
                ["", "", ""]
                if figures is None
                else [
                    f"{figures['kernels']:,}",
                    f"{figures['small']:,}",
                    f"{figures['bytes'] / 1e9:.2f}",
                ]
            )
        rows.append(row)
    head = [f"{side}{what}" for side in sides for what in ("kernels", "small", "GB")]
    return measure.table(["", *head], rows)


def _largest(found: Mapping[str, Any]) -> str:
    rows = [
        [one["kind"], f"{one['bytes'] / 1e6:,.0f} MB", one["name"], one["op_name"][-70:]]
        for one in found["largest"]
    ]
    return measure.table(["", "read and written", "kernel", "JAX operation"], rows)


def _memory(found: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    sides = {"": found} if before is None else {"before": before, "now": found}
    rows = [
        [side, *(f"{size / 1e9:.2f} GB" for size in (*one["memory"].values(), _peak(one)))]
        for side, one in sides.items()
    ]
    return measure.table(["", *found["memory"], "together"], rows)


def _peak(figures: Mapping[str, Any]) -> int:
    return sum(figures["memory"].values())


if __name__ == "__main__":
    sys.exit(main())
