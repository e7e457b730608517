"""Cross-layer equalization against the paper's closed form, and what it must leave alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autoq.numerics.equalize import LARGEST, Knot, equalizing_scales


def dense(values: np.ndarray) -> np.ndarray:
    """A layer of one group, ``[outputs, inputs]``."""
    return np.abs(values)[None].astype(np.float64)


def test_two_layers_as_in_the_paper() -> None:
    """s_i = sqrt(r1_i r2_i) / r2_i (equation 11), up to the common factor that is left out."""
    first, second = np.array([[4.0, 1.0], [0.25, 0.5], [1.0, 0.0]]), np.array([[1.0, 2.0, 0.25], [0.5, 1.0, 0.125]])
    r1, r2 = np.array([4.0, 0.5, 1.0]), np.array([1.0, 2.0, 0.25])
    expected = np.sqrt(r1 * r2) / r2
    (found,) = equalizing_scales({"a": dense(first), "b": dense(second)}, [Knot(writers=("a",), readers=("b",))])
    np.testing.assert_allclose(found, expected / np.exp(np.log(expected).mean()), rtol=1e-3)
    ratio = (r1 / found) / (r2 * found)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_a_depthwise_chain_settles() -> None:
    """1x1, depthwise, 1x1: at both joints the channels' ranges on both sides are in one proportion."""
    rng = np.random.default_rng(0)
    magnitudes = {
        "expand": dense(rng.lognormal(0, 1.5, (6, 4))),
        "depthwise": rng.lognormal(0, 1.5, (6, 1, 1)),
        "project": dense(rng.lognormal(0, 1.5, (3, 6))),
    }
    knots = [Knot(writers=("expand",), readers=("depthwise",)), Knot(writers=("depthwise",), readers=("project",))]
    one, two = equalizing_scales(magnitudes, knots)
    expand = magnitudes["expand"][0].max(axis=1) / one
    depthwise = magnitudes["depthwise"][:, 0, 0] * one / two
    project = magnitudes["project"][0].max(axis=0) * two
    for left, right in ((expand, depthwise), (depthwise, project)):
        np.testing.assert_allclose(left / right, (left / right)[0], rtol=2e-3)


def test_a_residual_sum_has_one_scale() -> None:
    """Two writers and two readers, one of which writes as well: geometric means meet, and it ends."""
    rng = np.random.default_rng(1)
    magnitudes = {name: dense(rng.lognormal(0, 1, (5, 5))) for name in ("in", "block", "out")}
    (found,) = equalizing_scales(magnitudes, [Knot(writers=("in", "block"), readers=("block", "out"))])
    block = magnitudes["block"][0] * found / found[:, None]
    wrote = np.log([magnitudes["in"][0].max(axis=1) / found, block.max(axis=1)]).mean(axis=0)
    reads = np.log([block.max(axis=0), magnitudes["out"][0].max(axis=0) * found]).mean(axis=0)
    np.testing.assert_allclose(wrote - reads, (wrote - reads)[0], atol=2e-3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans())
def test_ranges_never_spread(seed: int, channels: int, zeros: bool) -> None:
    """The sum of the logarithmic spreads of both layers' channels does not grow; zeros and limits are kept."""
    rng = np.random.default_rng(seed)
    first, second = rng.lognormal(0, 2, (channels, 3)), rng.lognormal(0, 2, (2, channels))
    if zeros:
        first[0] = 0
    knot = Knot(writers=("a",), readers=("b",))
    (found,) = equalizing_scales({"a": dense(first), "b": dense(second)}, [knot])
    assert (found >= 1 / LARGEST).all() and (found <= LARGEST).all()
    live = first.max(axis=1) > 0
    assert (found[~live] == 1).all()
    if live.sum() > 1:

        def spread(scale: np.ndarray) -> float:
            logs = np.log([first.max(axis=1)[live] / scale, second.max(axis=0)[live] * scale])
            return float(np.ptp(logs, axis=1).max())

        assert spread(found[live]) <= spread(np.ones(int(live.sum()))) + 1e-3


def test_a_least_scale_is_kept() -> None:
    first, second = np.array([[1e-8], [1.0]]), np.array([[1.0, 1.0]])
    (free,) = equalizing_scales({"a": dense(first), "b": dense(second)}, [Knot(writers=("a",), readers=("b",))])
    (held,) = equalizing_scales(
        {"a": dense(first), "b": dense(second)},
        [Knot(writers=("a",), readers=("b",), least=np.array([0.25, 0.0]))],
    )
    assert free[0] / free[1] < 1.01e-4
    assert held.tolist() == [0.25, 1.0], "nor do the others move away from it instead"


def test_nothing_to_go_by() -> None:
    """All zeros, or no knots."""
    (found,) = equalizing_scales(
        {"a": np.zeros((1, 2, 2)), "b": np.ones((1, 2, 2))}, [Knot(writers=("a",), readers=("b",))]
    )
    assert (found == 1).all()
    assert equalizing_scales({}, []) == []
