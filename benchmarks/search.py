"""Compare the search of a large gallery on the CPU with faiss.IndexFlatIP: results, time, memory.

    python -m benchmarks.search --faiss-python PATH    a Python that has numpy and faiss-cpu
    python -m benchmarks.search                        faiss of this environment, if any
    python -m benchmarks.search --rows 2000 --channels 64 --queries 1 3    to try it

The gallery is random float16 rows of unit length in a temporary file (4 GB for 1,000,000 x 2,048).
Ours reads it through a memory map in every search; the file is in the page cache, where the machine
has the memory. faiss holds the same rows in float32 (8 GB), which it reads before the clock starts.
Each side is a process with the same number of threads, and they search in turn. The results are the
same if the k similarities agree within TOLERANCE and the ids do wherever a similarity differs from
its neighbours, and from what is left out, by more than that. Peak memory is that of each process
with imports; pages of the memory map count, and so does what faiss takes while its index grows.
Prints a table and writes results/search.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.train_step import threads

TOLERANCE = 1e-6
"""Largest difference of two similarities that is rounding: sums of 2,048 products in float32."""
TARGET = 1.5

FAISS = """
import json, sys, time
import faiss, numpy
file, _, channels, threads = sys.argv[1], *map(int, sys.argv[2:])
faiss.omp_set_num_threads(threads)
index = faiss.IndexFlatIP(channels)
with open(file, "rb") as gallery:
    while len(part := numpy.fromfile(gallery, numpy.float16, 16384 * channels)):
        index.add(part.reshape(-1, channels).astype(numpy.float32))
print(json.dumps(faiss.__version__), flush=True)
for line in sys.stdin:
    queries, found, k = json.loads(line)
    query = numpy.load(queries)
    start = time.perf_counter()
    similarity, row = index.search(query, k)
    seconds = time.perf_counter() - start
    numpy.savez(found, similarity=similarity, row=row)
    peak = next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith("VmHWM"))
    print(json.dumps([seconds, peak / 1024]), flush=True)
"""
"""The other side: needs nothing of ours, so that it runs in an environment of its own."""

OURS = """
import json, sys, time
from ddag_jax.cli import environment
environment.prepare()
import numpy
from benchmarks import measure
from ddag_jax.serving.nearest import top_k
file, rows, channels, threads = sys.argv[1], *map(int, sys.argv[2:])
gallery = numpy.memmap(file, numpy.float16, "r", shape=(rows, channels))
print(json.dumps("ours"), flush=True)
for line in sys.stdin:
    queries, found, k = json.loads(line)
    query = numpy.load(queries)
    start = time.perf_counter()
    similarity, row = top_k(query, gallery, k)
    seconds = time.perf_counter() - start
    numpy.savez(found, similarity=similarity, row=row)
    print(json.dumps([seconds, measure.peak_of("self")]), flush=True)
"""


class Side:
    """A process that searches the gallery for queries, one search after another."""

    def __init__(self, python: str, program: str, words: Sequence[object], folder: Path) -> None:
        self._found = folder / "found.npz"
        self._process = subprocess.Popen(
            [python, "-c", program, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._answer()
        self.peak: float | None = None

    def search(self, queries: Path, k: int) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the seconds, the similarities and the rows."""
        assert self._process.stdin is not None
        print(json.dumps([str(queries), str(self._found), k]), file=self._process.stdin, flush=True)
        seconds, self.peak = self._answer()
        with np.load(self._found) as found:
            return seconds, found["similarity"], found["row"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a side of the comparison ended early; its error is above")
        return json.loads(line)


def unit_rows(rows: int, channels: int, random: np.random.Generator) -> np.ndarray:
    found = random.standard_normal((rows, channels), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def write_gallery(file: Path, rows: int, channels: int) -> None:
    """Write random float16 rows of unit length, a block at a time."""
    random = np.random.default_rng(0)
    with file.open("wb") as out:
        for start in range(0, rows, 8192):
            unit_rows(min(8192, rows - start), channels, random).astype(np.float16).tofile(out)


def same(
    ours: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[float, int]:
    """Return the largest difference of a similarity, and the number of ids that rounding swapped.

    Args:
        ours: similarities and rows, [q, k].
        other: the same of the other side.

    Raises:
        SystemExit: the results differ by more than rounding.
    """
    largest = float(np.abs(ours[0] - other[0]).max())
    if not largest <= TOLERANCE:
        raise SystemExit(f"similarities differ by {largest:.3g}; the bound is {TOLERANCE:g}")
    swapped = ours[1] != other[1]
    # A place may be swapped with a neighbour as similar; the last one with what is left out.
    gaps = -np.diff(other[0], axis=1) > 2 * TOLERANCE
    alone = np.ones_like(swapped)
    alone[:, 1:] &= gaps
    alone[:, :-1] &= gaps
    alone[:, -1] = False
    if (swapped & alone).any():
        raise SystemExit(f"{int((swapped & alone).sum())} ids differ where similarities do not tie")
    return largest, int(swapped.sum())


def main(arguments: Sequence[str] | None = None, folder: Path = measure.RESULTS) -> None:
    """Run the command; write the results to `folder`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search",
        description="Compare the search of a large gallery on the CPU with faiss.IndexFlatIP",
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the gallery")
    parser.add_argument("--channels", type=int, default=2048, help="of a row")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16, 100, 1000])
    parser.add_argument("--k", type=int, default=10, help="rows to find for each query")
    parser.add_argument("--rounds", type=int, default=3, help="searches of each side")
    parser.add_argument(
        "--faiss-python", metavar="PATH", help="a Python that has faiss (default: this one)"
    )
    given = parser.parse_args(arguments)
    python = given.faiss_python or sys.executable
    probe = [python, "-c", "import faiss"]
    has_faiss = subprocess.run(probe, stderr=subprocess.DEVNULL).returncode == 0
    if given.faiss_python and not has_faiss:
        raise SystemExit(f"--faiss-python {python}: cannot import faiss; install faiss-cpu there")

    print(measure.describe(measure.machine()), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        file = temporary / "gallery"
        write_gallery(file, given.rows, given.channels)
        words = [file, given.rows, given.channels, threads()]
        sides = {"ours": Side(sys.executable, OURS, words, temporary)}
        if has_faiss:
            sides["faiss"] = Side(python, FAISS, words, temporary)
        random = np.random.default_rng(1)
        rows, searches = [], {}
        try:
            for queries in given.queries:
                query = temporary / "query.npy"
                np.save(query, unit_rows(queries, given.channels, random))
                record = compare(sides, query, given.k, given.rounds)
                searches[str(queries)] = record
                ratio, swapped = record.get("ratio"), record.get("swapped")
                rows.append(
                    [
                        f"{queries:,}",
                        *(str(record["times"].get(side, "-")) for side in ("ours", "faiss")),
                        "-" if ratio is None else f"{ratio:.2f}",
                        "-" if swapped is None else f"{record['largest_difference']:.1g}",
                        "-" if swapped is None else str(swapped),
                    ]
                )
        finally:
            for side in sides.values():
                side.close()
    peaks = {name: side.peak for name, side in sides.items()}
    size = f"{given.rows:,} x {given.channels:,}"
    print(f"{size} float16, k = {given.k}, {threads()} threads; median (lowest to highest)")
    head = ["queries", "ours", "faiss", "ours / faiss", "difference", "swapped"]
    print(measure.table(head, rows))
    print(
        "peak memory: "
        + ", ".join(f"{n} {'unknown' if p is None else f'{p:,.0f} MiB'}" for n, p in peaks.items())
    )
    if has_faiss:
        print(f"target {TARGET}, faiss {sides['faiss'].version}, the same results")
    setting = {"rows": given.rows, "channels": given.channels, "k": given.k, "threads": threads()}
    result = {**setting, "searches": searches, "peak_mib": peaks}
    print("written:", measure.write("search", result, folder))


def compare(sides: dict[str, Side], query: Path, k: int, rounds: int) -> dict[str, Any]:
    """Search with both sides in turn, after one search each that is not timed; compare them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            taken, *both = side.search(query, k)
            found[name] = both[0], both[1]
            if turn:
                seconds[name].append(taken)
    times = {name: measure.Times(tuple(taken)) for name, taken in seconds.items()}
    record: dict[str, Any] = {"times": times}
    if "faiss" in sides:
        record["largest_difference"], record["swapped"] = same(found["ours"], found["faiss"])
        record["ratio"] = times["ours"].median / times["faiss"].median
    return record


if __name__ == "__main__":
    main()
