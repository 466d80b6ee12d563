"""Compile the train step and the embedding for a slice of Cloud TPU, on a machine without TPU.

    python -m benchmarks.tpu_compile                     16 chips, v5e:4x4
    python -m benchmarks.tpu_compile --topology v5e:8x8  another slice
    python -m benchmarks.tpu_compile --scaling           1, 16, 64 and 256 chips, in turn
    python -m benchmarks.tpu_compile --config debug      a small network, to try it

The programs are those of train.py and evaluate.py, at 1 and at 8 identities per chip, with
convolutions in bfloat16. Needs libtpu, which contains the compiler: `make setup` installs it beside
the other packages, in .venv/libtpu, where this command finds it. Needs neither a TPU nor a network.
Prints the compiler's figures of each program and a summary of chips, memory and collectives; writes
results/tpu_compile.json, or tpu_scaling.json. A full-size step compiles in two to three minutes on
two idle cores; --scaling takes an hour on busy ones.

Nothing is measured on a TPU. The time of a step is the compiler's estimate of its operations in
cycles, which omits some (the gradient of pooling, the loop over the crops), plus the time of all
collectives at the chip's published rate, without latency.
"""

import argparse
import collections
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import measure
from ddag_jax.cli.main import run
from ddag_jax.config import Config
from ddag_jax.errors import UserError
from ddag_jax.io.config_file import load_config

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from ddag_jax.training.state import TrainState

CLASSES = 395
"""Training identities of SYSU-MM01: the width of the classifier, and the largest batch."""
STEPS = 696
"""Steps of an epoch: constants of the schedule, irrelevant to the compiler."""
LOADS = (1, 8)
"""Identities per chip."""
LIBTPU = Path(sys.prefix) / "libtpu"
"""The folder into which `make setup` installs libtpu. It is apart from the other packages, since
jax would look for a TPU wherever it can import libtpu."""
SCALING = ("v5e:1x1", "v5e:4x4", "v5e:8x8", "v5e:16x16")

# Published figures of a TPU v5e chip.
FLOPS_PER_SECOND = 197e12
"""In bfloat16."""
HBM_BYTES_PER_SECOND = 819e9
LINK_BYTES_PER_SECOND = 200e9
"""From a chip to all its neighbours, 1600 Gbit/s."""
CYCLES_PER_SECOND = 1.5e9
"""The rate at which four 128 x 128 matrix units give FLOPS_PER_SECOND."""

# jax reads the first; libtpu reads the others when it is loaded, to describe the first slice.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # do not query a cloud's metadata server
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # avoids a warning; the topology decides
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no TPU to reserve for one process
    "TPU_LOG_DIR": "disabled",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # programs of a described slice cannot be loaded
}


def prepare() -> None:
    """Set the environment, and make libtpu importable. Call this before jax is imported.

    Raises:
        UserError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        sys.path.append(str(LIBTPU))
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"libtpu, the TPU compiler, is missing in this environment and in {LIBTPU}: install it"
            ' with "make setup" (Linux on x86-64) or pip install "jax[tpu]"'
        )
    os.environ.update(ENVIRONMENT)


def slice_mesh(topology: str) -> "Mesh":
    """Return the mesh of the chips of a slice such as "v5e:4x4", ordered as on the slice itself.

    Raises:
        UserError: there is no such slice.
    """
    import jax
    from jax.experimental import topologies

    from ddag_jax.parallel import device_mesh

    if not re.fullmatch(r"v5e:\d+x\d+", topology):
        raise UserError(f"--topology {topology}: give a slice of v5e, such as v5e:4x4")
    # A host has 2 x 2 chips, except in a slice of one.
    host = {"chips_per_host_bounds": (1, 1, 1)} if topology == "v5e:1x1" else {}
    try:
        description = topologies.get_topology_desc(topology, "tpu", **host)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology {topology}: {str(error).splitlines()[0]}") from None
    # Ordered by process, as on the slice.
    return device_mesh(sorted(description.devices, key=lambda chip: (chip.process_index, chip.id)))


# ----------------------------------------------------------------------------------- programs


def abstract_state(config: Config, mesh: "Mesh") -> "TrainState":
    """Return shapes and dtypes of the training state, replicated over the mesh."""
    import jax

    from ddag_jax.methods.build import build_method
    from ddag_jax.parallel import AXIS, replicated_shapes
    from ddag_jax.training.build import build_optimizer, initial_state

    method = build_method(config.model, CLASSES, AXIS)

    def start() -> "TrainState":
        return initial_state(config, method, build_optimizer(config, STEPS), jax.random.key(0))

    state: TrainState = replicated_shapes(jax.eval_shape(start), mesh)
    return state


def train_program(config: Config, mesh: "Mesh", identities: int) -> tuple[Any, tuple[Any, ...]]:
    """Return the mapped (and jitted) step of train.py and the shapes of its arguments, for a batch
    of `identities`."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from ddag_jax.methods.build import build_method
    from ddag_jax.parallel import AXIS, map_train_step, replicated_shapes
    from ddag_jax.training.build import build_optimizer, build_train_step
    from ddag_jax.training.flat import state_forms
    from ddag_jax.types import Batch

    sharded = NamedSharding(mesh, PartitionSpec(AXIS))
    size = config.data.image_height, config.data.image_width, 3
    images: Any = jax.ShapeDtypeStruct(
        (identities, config.training.images_per_identity, *size), jnp.uint8, sharding=sharded
    )
    labels: Any = jax.ShapeDtypeStruct((identities,), jnp.int32, sharding=sharded)
    method, optimizer = (
        build_method(config.model, CLASSES, AXIS),
        build_optimizer(config, STEPS),
    )
    step = map_train_step(build_train_step(config, method, optimizer, STEPS, AXIS), mesh)
    for_step, _ = state_forms(mesh)
    state = replicated_shapes(jax.eval_shape(for_step, abstract_state(config, mesh)), mesh)
    return step, (state, Batch(images, images, labels))


def embed_program(config: Config, mesh: "Mesh") -> tuple[Any, tuple[Any, ...]]:
    """Return the mapped (and jitted) embedding of evaluate.py and the shapes of its arguments."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from ddag_jax.evaluation.embed import make_embed
    from ddag_jax.methods.build import build_method
    from ddag_jax.parallel import AXIS, map_embed

    images = jax.ShapeDtypeStruct(
        (embedded_images(config, mesh.size), config.data.image_height, config.data.image_width, 3),
        jnp.uint8,
        sharding=NamedSharding(mesh, PartitionSpec(AXIS)),
    )
    state = abstract_state(config, mesh)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    embed = make_embed(build_method(config.model, CLASSES), flip=config.evaluation.flip)
    return map_embed(embed, mesh), (variables, images, "visible")


def embedded_images(config: Config, chips: int) -> int:
    """Return the batch size of evaluate.py: evaluation.batch_size, rounded up to a multiple of
    `chips`."""
    return -(-config.evaluation.batch_size // chips) * chips


# -------------------------------------------------------------------------------- collectives


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program; XLA may combine several tensors in one."""

    kind: str
    """all-reduce, all-gather, ..."""
    tensors: tuple[tuple[str, int, str], ...]
    """Shape ("f32[2,64]"), bytes of the result on one chip, and purpose of each tensor."""

    @property
    def bytes(self) -> int:
        """Bytes of the result on one chip."""
        return sum(size for _, size, _ in self.tensors)


KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf" = (?P<type>.+?) (?P<kind>{KINDS})(?:-start)?\(")
_TENSOR = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
# Fusions that overlap with a gather repeat its instruction; those copies are not counted.
_REPEATED = re.compile(r'"async_collective_fusion_config":\{"flag_start":"\d')


Purpose = Callable[[str, str, str], str]
"""Returns the purpose of a tensor, given the collective's kind, the tensor's shape, and the JAX
operation behind the collective ("" where XLA combined several)."""


def collectives(hlo: str, purpose: Purpose) -> list[Collective]:
    """Return all collectives of an optimised HLO module (`compiled.as_text()`), in the order of the
    text.

    >>> hlo = "%a = (f32[2,64]{1,0}, bf16[]) all-reduce(%b, %c), to_apply=%add"
    >>> collectives(hlo, lambda kind, shape, name: kind)[0].tensors
    (('f32[2,64]', 512, 'all-reduce'), ('bf16[]', 2, 'all-reduce'))
    """
    found = []
    for line in hlo.splitlines():
        match = _COLLECTIVE.search(line)
        if match is None or _REPEATED.search(line):
            continue
        kind, tensors = match["kind"], []
        named = re.search(r'op_name="([^"]*)"', line)
        for dtype, sizes in _TENSOR.findall(match["type"]):
            shape = f"{dtype}[{sizes}]"
            width = 1 if dtype == "pred" else int(dtype.lstrip("bsuf")) // 8
            what = purpose(kind, shape, named[1] if named else "")
            tensors.append((shape, width * _count(shape), what))
        found.append(Collective(kind, tuple(tensors)))
    return found


STATISTICS, GRADIENTS, FEATURES = "BN statistics", "gradients", "pooled features"
LABELS, LOSSES, EMBEDDINGS = "labels", "losses", "embeddings"
PURPOSES = (STATISTICS, GRADIENTS, FEATURES, LABELS, LOSSES, EMBEDDINGS)
UNKNOWN = "unknown"


def train_purposes(state: "TrainState", images: int) -> Purpose:
    """Return the purposes of a train step's collectives: statistics and pooled features are
    exchanged once forward and, their gradients, once backward.

    Args:
        state: training state; shapes suffice.
        images: number of images in the whole batch, of all views.
    """
    import jax

    def spelled(*sizes: int) -> str:
        return f"f32[{','.join(map(str, sizes))}]"

    parameters = {spelled(*leaf.shape) for leaf in jax.tree.leaves(state.params)}
    statistics = {spelled(2, leaf.shape[0]) for leaf in jax.tree.leaves(state.batch_stats)}
    features = images * state.batch_stats["neck"]["mean"].shape[0]

    def purpose(kind: str, shape: str, name: str) -> str:
        # Features are recognised by their size alone, since the compiler may gather along another
        # axis, or sum arrays that are zero elsewhere. A parameter may have the same size: then the
        # operation's name, that of the step's average, decides.
        if shape == "f32[]":
            return LOSSES
        if shape in parameters and (name.endswith("shard_map/psum") or _count(shape) != features):
            return GRADIENTS
        if shape in statistics:
            return STATISTICS
        return {("f32", features): FEATURES, ("s32", images): LABELS}.get(
            (shape.split("[")[0], _count(shape)), UNKNOWN
        )

    return purpose


def embed_purposes(state: "TrainState", images: int) -> Purpose:
    """Return the purposes of an embedding's collectives: every process gets the rows of all
    `images`."""
    rows = images * state.batch_stats["neck"]["mean"].shape[0]
    return lambda kind, shape, name: EMBEDDINGS if _count(shape) == rows else UNKNOWN


def _count(shape: str) -> int:
    """Return the number of elements of a shape such as "f32[2,64]"."""
    return math.prod(map(int, re.findall(r"\d+", shape.split("[")[1])))


def sent_bytes(collective: Collective, chips: int) -> float:
    """Return the least bytes that a chip sends: all but its own share, twice for an all-reduce."""
    whole = {"all-reduce": 2, "reduce-scatter": chips}.get(collective.kind, 1) * collective.bytes
    return whole * (chips - 1) / chips


# ----------------------------------------------------------------------------------- compiling


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiler's figures of one program, each for one chip."""

    name: str
    """train or embed."""
    topology: str
    chips: int
    load: int
    """Identities per chip (train) or images per chip (embed)."""
    identities: int
    """In a batch, over all chips; 0 for embed."""
    images: int
    """In a step, over all chips."""
    compile_seconds: float
    flops: float
    bytes_accessed: float
    """Read and written by its operations, in HBM or in on-chip memory."""
    cycles: int
    """Sum of the compiler's estimates, over the operations that have one."""
    optimal_seconds: float
    """As the compiler gives it. Meaningless where negative: operations without an estimate count
    -1."""
    arguments: int
    """Bytes of HBM, as are the next three."""
    outputs: int
    """Without those that reuse an argument's memory."""
    temporaries: int
    code: int
    collectives: tuple[Collective, ...]

    @property
    def hbm(self) -> int:
        """Total bytes of HBM."""
        return self.arguments + self.outputs + self.temporaries + self.code

    @property
    def sent(self) -> float:
        """Least bytes that a chip sends in a step."""
        return sum(sent_bytes(collective, self.chips) for collective in self.collectives)

    @property
    def seconds(self) -> float:
        """Estimated time of a step: the compiler's for its operations, plus all collectives."""
        return self.cycles / CYCLES_PER_SECOND + self.sent / LINK_BYTES_PER_SECOND

    @property
    def compile_only(self) -> bool:
        """Whether the batch has more identities than SYSU-MM01."""
        return self.identities > CLASSES

    def bytes_for(self, purpose: str) -> int:
        """Return the bytes of collectives with this purpose."""
        return sum(
            size
            for collective in self.collectives
            for _, size, what in collective.tensors
            if what == purpose
        )

    def operations_for(self, purpose: str) -> int:
        """Return the number of collectives with this purpose."""
        return sum(
            purpose in {what for *_, what in collective.tensors} for collective in self.collectives
        )


def compile_slice(config: Config, topology: str) -> Iterator[Program]:
    """Compile the train step at each of LOADS, and the embedding, for one slice.

    Raises:
        UserError: there is no such slice, or a program does not fit into a chip's memory.
    """
    mesh = slice_mesh(topology)
    chips, training = mesh.size, config.training
    per_identity = training.views * training.images_per_identity
    for load in LOADS:
        identities = max(load * chips, 2)  # the triplet loss needs two
        images = identities * per_identity
        function, arguments = train_program(config, mesh, identities)
        named = {"load": identities // chips, "identities": identities, "images": images}
        purpose = train_purposes(arguments[0], images)
        yield _compile("train", topology, chips, named, function, arguments, purpose)
    images = embedded_images(config, chips)
    named = {"load": images // chips, "identities": 0, "images": images}
    function, arguments = embed_program(config, mesh)
    purpose = embed_purposes(abstract_state(config, mesh), images)
    yield _compile("embed", topology, chips, named, function, arguments, purpose)


def _compile(
    name: str,
    topology: str,
    chips: int,
    named: Mapping[str, int],
    function: Any,
    arguments: Sequence[Any],
    purpose: Purpose,
) -> Program:
    import jax

    print(f"\ncompiling {name} for {topology}, {named['images']:,} images ...", flush=True)
    start = time.perf_counter()
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{name}, {topology}: {str(error).splitlines()[0]}") from None
    seconds = time.perf_counter() - start
    memory, cost, hlo = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    scheduled = hlo[hlo.index("\nENTRY ") :]
    return Program(
        name,
        topology,
        chips,
        **named,
        compile_seconds=seconds,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        cycles=sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', scheduled))),
        optimal_seconds=cost["optimal_seconds"],
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        collectives=tuple(collectives(hlo, purpose)),
    )


# ------------------------------------------------------------------------------------ printing


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> int:
    """Run the command; write the results to `folder`. Return 0, or 2 after a UserError."""
    return run(lambda: _main(arguments, folder))


def _main(arguments: Sequence[str] | None, folder: Path) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_compile",
        description="Compile the train step and the embedding for a slice of TPU v5e, without one.",
    )
    parser.add_argument("--topology", default="v5e:4x4", help="the slice (default: v5e:4x4)")
    parser.add_argument(
        "--scaling", action="store_true", help=f"all of {', '.join(SCALING)} instead"
    )
    parser.add_argument(
        "--config", default="sysu_mm01", help="a Python file with get_config(), or a shipped name"
    )
    given = parser.parse_args(arguments)
    config = load_config(given.config)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, compute_dtype="bfloat16")
    )
    prepare()
    machine = measure.machine()
    print(measure.describe(machine), f"libtpu {importlib.metadata.version('libtpu')}", sep="\n")
    programs: list[Program] = []
    for topology in SCALING if given.scaling else [given.topology]:
        for program in compile_slice(config, topology):
            programs.append(program)
            print(f"{_title(program)}; compiled in {program.compile_seconds:.0f} s")
            print(_costs(program))
            if program.collectives:
                print(_collectives(program), flush=True)
    result = {
        "config": given.config,
        "compute_dtype": config.model.compute_dtype,
        "libtpu": importlib.metadata.version("libtpu"),
        "programs": [_record(program) for program in programs],
    }
    name = "tpu_scaling" if given.scaling else "tpu_compile"
    print("written:", measure.write(name, result, folder))
    print("\nsteps, estimated: nothing ran on a TPU")
    print(_steps(programs))
    print(
        "\nHBM of a chip; collectives of a step: their number, and bytes of their results on a chip"
    )
    print(_memory(programs))


def _record(program: Program) -> dict[str, Any]:
    """Return a program and its derived figures for JSON."""
    derived = ("hbm", "sent", "seconds", "compile_only")
    return dataclasses.asdict(program) | {name: getattr(program, name) for name in derived}


def _title(program: Program) -> str:
    if program.name == "embed":
        return f"embed, {program.topology}: {program.load:,} images per chip"
    return (
        f"train, {program.topology}: {program.load} identities per chip, {program.identities:,}"
        f" and {program.images:,} images in a batch" + _mark(program)
    )


def _mark(program: Program) -> str:
    return " (compile-only)" if program.compile_only else ""


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


def _size(size: float) -> str:
    if size < 1e3:
        return f"{size:.0f} B"
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _costs(program: Program) -> str:
    """Return a table of a step's costs, each with the time that it alone would take."""
    rows = [
        (
            "arithmetic",
            f"{program.flops / 1e9:,.1f} GFLOP",
            _milliseconds(program.flops / FLOPS_PER_SECOND),
            "at 197 TFLOP/s",
        ),
        (
            "bytes accessed",
            _size(program.bytes_accessed),
            _milliseconds(program.bytes_accessed / HBM_BYTES_PER_SECOND),
            "at 819 GB/s, if all in HBM",
        ),
        (
            "estimated_cycles",
            f"{program.cycles / 1e6:,.1f} M",
            _milliseconds(program.cycles / CYCLES_PER_SECOND),
            "at 1.5 GHz, estimated by the compiler; some operations have no estimate",
        ),
        (
            "optimal_seconds",
            f"{program.optimal_seconds:,.4f}",
            "" if program.optimal_seconds < 0 else _milliseconds(program.optimal_seconds),
            "meaningless where negative: operations without an estimate count -1",
        ),
        (
            "collectives",
            f"{_size(program.sent)} sent",
            _milliseconds(program.sent / LINK_BYTES_PER_SECOND),
            "at 200 GB/s, without latency",
        ),
    ]
    return "\n".join(
        f"  {what:<17} {amount:>16} {seconds:>11}  {how}" for what, amount, seconds, how in rows
    )


def _collectives(program: Program) -> str:
    """Return all collectives, equal ones in one line."""
    lines = []
    for collective, count in collections.Counter(program.collectives).items():
        shapes = [shape for shape, *_ in collective.tensors]
        if len(shapes) > 3:
            shapes = [*shapes[:2], f"and {len(shapes) - 2} more"]
        what = dict.fromkeys(what for *_, what in collective.tensors)
        size = f"{count} x {collective.bytes:,}"
        lines.append(
            f"  {collective.kind:<11} {size:>15} bytes  {', '.join(what)}: {' '.join(shapes)}"
        )
    return "\n".join(lines)


def _steps(programs: Sequence[Program]) -> str:
    """Return a table of estimated times and rates; the last column compares the rate of a chip with
    that on the first slice at the same load."""
    rows, alone = [], dict[tuple[str, int], float]()
    for program in programs:
        rate = program.images / program.seconds
        first = alone.setdefault((program.name, program.load), rate / program.chips)
        rows.append(
            [
                f"{program.name}{_mark(program)}",
                f"{program.chips}",
                f"{program.load}",
                f"{program.images:,}",
                _milliseconds(program.seconds),
                f"{rate:,.0f}",
                f"{rate / program.chips:,.0f}",
                f"{rate / program.chips / first:.0%}",
            ]
        )
    head = ["", "chips", "load", "images", "step", "images/s", "per chip", "of the first"]
    return measure.table(head, rows)


def _memory(programs: Sequence[Program]) -> str:
    """Return a table of HBM and collectives."""
    rows = []
    for program in programs:
        carried = [
            f"{program.operations_for(purpose)}: {_size(program.bytes_for(purpose))}"
            if program.operations_for(purpose)
            else "-"
            for purpose in PURPOSES
        ]
        rows.append(
            [
                f"{program.name}{_mark(program)}",
                f"{program.chips}",
                f"{program.load}",
                *map(
                    _size,
                    (
                        program.arguments,
                        program.outputs,
                        program.temporaries,
                        program.code,
                        program.hbm,
                    ),
                ),
                *carried,
            ]
        )
    head = ["", "chips", "load", "arguments", "outputs", "temporaries", "code", "HBM", *PURPOSES]
    return measure.table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
