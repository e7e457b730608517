"""Product quantization: what comes back, against scikit-learn's k-means and hand-made tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from autoq.numerics.product import ProductCodes, least_rows, product_codes, width
from autoq.numerics.weights import quantize_weight


def error(table: np.ndarray, found: np.ndarray) -> float:
    return float(((found - table) ** 2).sum() / (table**2).sum())


def table_of(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("columns", [1, 2, 3, 7, 8])
def test_what_is_stored(bits: int, columns: int) -> None:
    found = product_codes(table_of(600, columns), bits=bits)
    sub = width(bits)
    assert (found.codes.shape, found.codes.dtype) == ((600, -(-columns // sub)), np.uint8)
    assert (found.centroids.shape, found.centroids.dtype) == ((-(-columns // sub), 256, sub), np.int8)
    assert (found.scale.shape, found.scale.dtype) == ((600,), np.float32)
    by_hand = [
        [found.centroids[c // sub, found.codes[r, c // sub], c % sub] * found.scale[r] for c in range(columns)]
        for r in range(600)
    ]
    np.testing.assert_array_equal(found.dequantize(), np.array(by_hand, np.float32))


@pytest.mark.parametrize("bits", [4, 2])
def test_nothing_is_lost_of_rows_that_fit_the_codebooks(bits: int) -> None:
    """64 different rows, over and over at different lengths: centroids and scales hold them all but for rounding."""
    rng = np.random.default_rng(1)
    table = table_of(64, 12)[rng.integers(0, 64, 900)] * np.geomspace(0.01, 100, 900, dtype=np.float32)[:, None]
    restored = product_codes(table, bits=bits).dequantize()
    assert (np.abs(restored - table).max(axis=1) < 0.01 * np.abs(table).max(axis=1)).all()


@pytest.mark.parametrize("bits", [4, 2])
def test_scikit_learn_does_little_better(bits: int) -> None:
    from sklearn.cluster import KMeans

    table = table_of(6000, width(bits))
    table /= np.sqrt(np.mean(table**2, axis=1, keepdims=True))
    theirs = KMeans(256, n_init=1, max_iter=30, random_state=0).fit(table).inertia_ / (table**2).sum()
    assert error(table, product_codes(table, bits=bits).dequantize()) < 1.06 * theirs + 2e-4


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.85), (2, 0.75)])
def test_better_than_integers_of_as_many_bits(bits: int, gain: float) -> None:
    table = table_of(3000, 64) * np.random.default_rng(2).uniform(0.3, 3, (3000, 1)).astype(np.float32)
    integers = quantize_weight(table, bits=bits, axis=0).dequantize()
    assert error(table, product_codes(table, bits=bits).dequantize()) < gain * error(table, integers)


def test_every_row_has_the_same_say() -> None:
    """Short rows, as of frequent tokens, lose no greater share of themselves than long ones."""
    table = table_of(3000, 16)
    table[::3] *= 0.01
    lost = ((product_codes(table, bits=2).dequantize() - table) ** 2).sum(axis=1) / (table**2).sum(axis=1)
    assert lost[::3].mean() == pytest.approx(lost[1::3].mean(), rel=0.05)


@pytest.mark.parametrize("bits", [4, 2])
def test_odd_tables(bits: int) -> None:
    base = table_of(400, 6)
    sparse = base.copy()
    sparse[::2] = 0
    kinds = {
        "all zeros": np.zeros_like(base),
        "one value": np.full_like(base, -0.7),
        "rows of zeros": sparse,
        "few rows": base[:3],
        "one row": base[:1],
        "subnormal": base * np.float32(1e-41),
        "huge": base * np.float32(1e37),
        "far apart": base * np.geomspace(1e-30, 1e30, 400, dtype=np.float32)[:, None],
    }
    for name, table in kinds.items():
        found = product_codes(table, bits=bits)
        restored = found.dequantize()
        assert np.isfinite(restored).all() and (found.scale >= 0).all(), name
        np.testing.assert_array_equal(restored[~table.any(axis=1)], 0)
        if name in ("all zeros", "one value", "few rows", "one row"):
            np.testing.assert_allclose(restored, table, atol=0.01 * np.abs(table).max(), err_msg=name)
        elif name != "subnormal":
            lost = ((restored.astype(np.float64) - table) ** 2).sum(axis=1)
            assert (lost <= 0.6 * (table.astype(np.float64) ** 2).sum(axis=1)).all(), name


def test_what_cannot_be_is_refused() -> None:
    table = table_of(5, 4)
    with pytest.raises(ValueError, match="4 or 2 bits, not 8"):
        product_codes(table, bits=8)
    with pytest.raises(ValueError, match="a table of rows"):
        product_codes(table[None], bits=4)
    for bad in (np.nan, np.inf):
        table[3, 1] = bad
        with pytest.raises(ValueError, match="row 3 hold a NaN or an infinity"):
            product_codes(table, bits=4)


@pytest.mark.parametrize("bits", [4, 2])
def test_where_codebooks_stop_being_the_larger_part(bits: int) -> None:
    def parts(rows: int) -> tuple[int, int]:
        found: ProductCodes = product_codes(table_of(rows, 8), bits=bits)
        return found.codes.nbytes, found.centroids.nbytes

    codes, books = parts(least_rows(bits))
    assert codes == books
    codes, books = parts(least_rows(bits) - 1)
    assert codes < books


def test_threads_change_nothing(printed_on_threads: Callable[[str], set[bytes]]) -> None:
    program = (
        "import numpy as np; from autoq.numerics.product import product_codes; "
        "p = product_codes(np.random.default_rng(0).standard_normal((9000, 8)).astype('float32'), bits=2); "
        "print(p.codes.tobytes().hex(), p.centroids.tobytes().hex())"
    )
    assert len(printed_on_threads(program)) == 1
