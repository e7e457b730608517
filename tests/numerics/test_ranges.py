import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.scheme import CALIBRATION_METHODS, Calibration
from autoq.numerics.affine import Affine
from autoq.numerics.histogram import TensorStatistics
from autoq.numerics.moments import Moments
from autoq.numerics.ranges import METHODS, clip_range

FROM_STATISTICS = tuple(method for method in CALIBRATION_METHODS if method != "dynamic")
CALIBRATIONS = [
    Calibration(method=method, percentile=99.9 if method == "percentile" else None) for method in FROM_STATISTICS
]
RNG = np.random.default_rng(7)
NORMAL = RNG.normal(size=20_000).astype(np.float32)
DATA = {
    "normal": NORMAL,
    "relu": np.maximum(NORMAL, 0),
    "negative": -(np.abs(NORMAL) ** 2),
    "gelu": np.where(NORMAL > 0, 3 * NORMAL, -0.17 * np.abs(np.sin(NORMAL))).astype(np.float32),
    "outlier": np.append(NORMAL, np.float32(60)),
    "shifted": NORMAL + 8,
    "laplace": RNG.laplace(size=20_000).astype(np.float32),
}


def true_error(x: np.ndarray, low: float, high: float, signed: bool) -> float:
    affine = Affine.of_range(low, high, "int8" if signed else "uint8")
    return float(np.mean((affine.dequantize(affine.quantize(x)).astype(np.float64) - x) ** 2))


def chosen(x: np.ndarray, method: str, *, signed: bool, percentile: float | None = None) -> tuple[float, float]:
    return clip_range(TensorStatistics.of(x), Calibration(method=method, percentile=percentile), signed=signed)


def test_every_method_of_the_grammar_is_in_the_table():
    assert set(METHODS) == set(FROM_STATISTICS)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30),
    st.sampled_from(CALIBRATIONS),
    st.booleans(),
    st.sampled_from([1.0, 1e-38, 1e30]),
)
def test_a_range_lies_within_what_was_seen(values, calibration, signed, unit):
    x = (np.array(values) * unit).astype(np.float32)
    statistics = TensorStatistics.of(x[: len(x) // 2], batch=0).merge(TensorStatistics.of(x[len(x) // 2 :], batch=1))
    low, high = clip_range(statistics, calibration, signed=signed)
    assert x.min() <= low <= high <= x.max()


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=str)
@pytest.mark.parametrize("value", [0.0, 3.5, -2.25, 1e-45])
def test_a_constant_is_its_own_range(calibration, value):
    value = float(np.float32(value))
    assert clip_range(TensorStatistics.of([value] * 4), calibration, signed=False) == (value, value)


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=str)
def test_nothing_seen_is_refused(calibration):
    with pytest.raises(ValueError, match="no value was observed"):
        clip_range(TensorStatistics.empty(), calibration, signed=False)


def test_minmax_is_exact():
    assert chosen(np.array([-0.1, 0.7], np.float32), "minmax", signed=False) == (np.float32(-0.1), np.float32(0.7))


def test_ema_by_hand_and_in_batch_order():
    batches = {0: [-1.0, 1.0], 1: [-2.0, 3.0], 2: [0.0, 2.0]}
    parts = [TensorStatistics.of(values, batch=batch) for batch, values in batches.items()]
    # low: -1 -> -1.1 -> -0.99; high: 1 -> 1.2 -> 1.28
    for order in ([0, 1, 2], [2, 0, 1]):
        statistics = parts[order[0]].merge(parts[order[1]]).merge(parts[order[2]])
        assert clip_range(statistics, Calibration(method="ema"), signed=False) == pytest.approx((-0.99, 1.28))


def keeps(x: np.ndarray, threshold: float, share: float, width: float) -> bool:
    """Whether ``threshold`` has ``share`` of ``x`` below it, give or take the values within a bin of it."""
    return np.mean(x < threshold - width) <= share <= np.mean(x <= threshold + width)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("percentile", [60.0, 90.0, 99.9, 99.999])
def test_percentile_keeps_the_share_it_names(name, percentile):
    x, share = DATA[name], percentile / 100
    width = TensorStatistics.of(x).histogram.width
    low, high = chosen(x, "percentile", signed=False, percentile=percentile)
    if x.min() >= 0:
        assert low == x.min() and keeps(x, high, share, width)
    elif x.max() <= 0:
        assert high == x.max() and keeps(x, low, 1 - share, width)
    else:
        assert keeps(x, low, (1 - share) / 2, width) and keeps(x, high, (1 + share) / 2, width)
        low, high = chosen(x, "percentile", signed=True, percentile=percentile)
        assert keeps(np.abs(x), max(-low, high), share, width)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_mse_is_as_good_as_a_dense_search_on_the_values(name, signed):
    x = DATA[name]
    low, high = chosen(x, "mse", signed=signed)
    shares = np.linspace(0.05, 1.0, 20)
    span_low, span_high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if signed:
        best = min(
            true_error(
                x, max(-s * max(-span_low, span_high), span_low), min(s * max(-span_low, span_high), span_high), True
            )
            for s in shares
        )
    else:
        lows = shares * span_low if span_low < 0 else [0.0]
        highs = shares * span_high if span_high > 0 else [0.0]
        best = min(true_error(x, a, b, False) for a in lows for b in highs)
    assert true_error(x, low, high, signed) <= 1.01 * best


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ["normal", "gelu", "laplace", "shifted"])
def test_the_expected_error_is_the_error_of_the_values(name, signed):
    x = DATA[name]
    moments = Moments(TensorStatistics.of(x).histogram)
    for share in (0.3, 0.7, 1.0):
        low, high = share * min(float(x.min()), 0.0), share * float(x.max())
        expected = moments.error(low / moments.peak, high / moments.peak, signed=signed)[0] * moments.peak**2
        assert expected == pytest.approx(true_error(x, low, high, signed), rel=0.05)


def naive_divergence(p_counts: np.ndarray, left: int, right: int, levels: int) -> float:
    """D(P || Q) of one window, written out bin by bin."""
    window = p_counts[left:right].copy()
    p = window.copy()
    p[0] += p_counts[:left].sum()
    p[-1] += p_counts[right:].sum()
    q = np.zeros(len(window))
    levels = min(levels, len(window))  # each bin is a level at most
    for level in range(levels):
        start, stop = len(window) * level // levels, len(window) * (level + 1) // levels
        occupied = [i for i in range(start, stop) if p[i] > 0]
        for i in occupied:
            q[i] = window[start:stop].sum() / len(occupied)
    if window.sum() < p_counts.sum() / 2 or (q[p > 0] == 0).any():
        return np.inf
    p, q = p / p.sum(), q / window.sum()
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize(
    ("signed", "name"), [(False, "relu"), (True, "relu"), (False, "normal"), (True, "gelu"), (False, "gelu")]
)
def test_entropy_agrees_with_a_bin_by_bin_search(signed, name):
    x = DATA[name][:4000]
    statistics = TensorStatistics.of(x, bins_per_side=512)
    histogram = statistics.histogram
    counts, n = histogram.counts.astype(float), 512
    counts[n] = min(counts[n], counts[n + 1])
    both = x.min() < 0
    levels = 127 if signed and not both else 255
    occupied = np.flatnonzero(histogram.counts) - n
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    candidates = {}
    for i in range(max(-first, last), 1, -1):
        left, right = (-i if both else 0), i
        if both and not signed:
            left, right = max(left, first), min(right, last)
        candidates[i] = naive_divergence(counts, left + n, right + n, levels)
    low, high = clip_range(statistics, Calibration(method="entropy"), signed=signed)
    best = min(candidates.values())
    threshold = max(-low, high) / histogram.width
    if threshold == int(threshold):
        assert candidates[int(threshold)] == pytest.approx(best, abs=1e-9)
    else:
        assert candidates[max(-first, last)] == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("peak", [10, 60, 500])
def test_entropy_cuts_lone_outliers_however_far(peak):
    for signed in (False, True):
        low, high = chosen(np.append(NORMAL, np.float32(peak)), "entropy", signed=signed)
        assert low == NORMAL.min() or low < -2.5
        assert 2.5 < high < 5.5


def test_entropy_keeps_a_body_away_from_zero():
    low, high = chosen(DATA["shifted"], "entropy", signed=False)
    assert low == DATA["shifted"].min() and high > 11


def test_an_outlier_moves_mse_and_percentile_less_than_minmax():
    x = DATA["outlier"]
    wide = chosen(x, "minmax", signed=True)
    for method, percentile in (("mse", None), ("percentile", 99.9)):
        low, high = chosen(x, method, signed=True, percentile=percentile)
        assert high < wide[1]
        assert true_error(x[:-1], low, high, True) < true_error(x[:-1], *wide, True)
