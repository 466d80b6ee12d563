"""Search of a gallery block by block finds what sorting all similarities finds."""

from pathlib import Path

import jax
import numpy as np
import pytest

from ddag_jax.errors import UserError
from ddag_jax.serving.nearest import top_k


def unit_rows(rows: int, channels: int, seed: int, dtype: type = np.float32) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, channels), dtype=np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(dtype)


def sorted_products(query: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    similarity = query.astype(np.float64) @ gallery.astype(np.float64).T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, order, axis=1), order


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("queries", [1, 17])
def test_it_is_the_sorted_inner_products_whatever_the_block(dtype: type, queries: int) -> None:
    """On the tests' eight devices, so that 3,000 rows are one block or three of them."""
    query, gallery = unit_rows(queries, 64, 0), unit_rows(3000, 64, 1, dtype)
    similarity, row = top_k(query, gallery, 20)
    expected, order = sorted_products(query, gallery, 20)
    assert (similarity.dtype, row.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(row, order)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    for block_rows in (1, 130, 384):
        again = top_k(query, gallery, 20, block_rows=block_rows)
        np.testing.assert_array_equal(again[0], similarity)
        np.testing.assert_array_equal(again[1], row)


def test_one_device_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = unit_rows(3, 32, 0), unit_rows(1500, 32, 1, np.float16)
    many = top_k(query, gallery, 9, block_rows=128)
    assert len(jax.devices()) == 8
    from ddag_jax import parallel

    mesh = parallel.device_mesh(jax.devices()[:1])
    monkeypatch.setattr("ddag_jax.serving.nearest.device_mesh", lambda: mesh)
    for one, other in zip(top_k(query, gallery, 9, block_rows=128), many, strict=True):
        np.testing.assert_array_equal(one, other)


def test_equal_rows_are_in_the_gallerys_order() -> None:
    gallery = unit_rows(2500, 48, 0)
    places = np.sort(np.random.default_rng(1).permutation(2500)[:300])
    gallery[places] = gallery[0]
    similarity, row = top_k(gallery[:1], gallery, 300, block_rows=128)
    assert len(set(similarity[0, 1:-1].tolist())) == 1
    np.testing.assert_array_equal(row[0], np.union1d([0], places)[:300])


@pytest.mark.parametrize("rows", [1, 5])
def test_a_gallery_of_fewer_rows_gives_them_all_and_no_padding(rows: int) -> None:
    """Padding is of zeros, which are more similar to a query than opposite rows."""
    query = unit_rows(2, 16, 0)
    gallery = -np.repeat(query[:1], rows, axis=0)
    similarity, row = top_k(query, gallery, 10)
    assert similarity.shape == (2, rows)
    np.testing.assert_array_equal(row, [list(range(rows))] * 2)
    np.testing.assert_allclose(similarity[0], -1, rtol=1e-6)


@pytest.mark.parametrize("offset", [0, 3])
def test_a_memory_map_is_searched_as_its_array_is(tmp_path: Path, offset: int) -> None:
    """Also at an odd place in the file, as in an archive."""
    query, gallery = unit_rows(2, 24, 0), unit_rows(3000, 24, 1, np.float16)
    (tmp_path / "rows").write_bytes(bytes(offset) + gallery.tobytes())
    for mode in ("r", "c"):
        mapped = np.memmap(tmp_path / "rows", np.float16, mode, offset, gallery.shape)
        expected = gallery
        if mode == "c":  # with a change that is in memory only
            mapped[7] = expected = query[0].astype(np.float16)
            expected = gallery.copy()
            expected[7] = mapped[7]
        for part in (slice(None), slice(5, None, 2)):
            for found, wanted in zip(
                top_k(query, mapped[part], 5, block_rows=128),
                top_k(query, expected[part], 5, block_rows=128),
                strict=True,
            ):
                np.testing.assert_array_equal(found, wanted)


def test_pages_of_a_memory_map_are_given_back(tmp_path: Path) -> None:
    """All but those of the last blocks, which are an eighth of the file each."""
    status = Path("/proc/self/smaps")
    if not status.exists():
        pytest.skip("only Linux tells which pages are resident")
    file = tmp_path / "rows"
    file.write_bytes(bytes(64 * 2**20))
    mapped = np.memmap(file, np.float16, "r", shape=(2**19, 64))
    top_k(unit_rows(1, 64, 0), mapped, 1, block_rows=2**13)
    lines = status.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.endswith(str(file)))
    resident = next(line for line in lines[place:] if line.startswith("Rss:"))
    assert int(resident.split()[1]) <= 2**15  # kB: half of the file


GOOD = unit_rows(2, 4, 0)


@pytest.mark.parametrize(
    ("query", "gallery", "k", "message"),
    [
        (GOOD, GOOD, 0, "k: 0 must be at least 1"),
        (GOOD[:0], GOOD, 1, r"query: is float32 of shape \(0, 4\)"),
        (GOOD, GOOD[:0], 1, r"gallery: is float32 of shape \(0, 4\)"),
        (GOOD.astype(np.float64), GOOD, 1, "query: is float64"),
        (GOOD, GOOD.astype(int), 1, "gallery: is int64"),
        (GOOD, GOOD[:, :3], 1, "query: has 4 channels, the gallery 3"),
        (GOOD, GOOD * np.float32("nan"), 1, "not finite"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    query: np.ndarray, gallery: np.ndarray, k: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        top_k(query, gallery, k)
