from itertools import product

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper

from autoq.core.scheme import WEIGHT_BITS
from autoq.numerics.gptq import compensate, descend, factorize, loss, uniform
from autoq.numerics.weights import WEIGHT_LEVELS, QuantizedWeight, quantize_weight


def second_moment(rng: np.random.Generator, inputs: int, samples: int | None = None) -> np.ndarray:
    """The second moment of correlated inputs."""
    x = rng.normal(size=(samples or 3 * inputs, inputs)) @ rng.normal(size=(inputs, inputs))
    return x.T @ x


def row_losses(weight: np.ndarray, quantized: QuantizedWeight, hessian: np.ndarray) -> np.ndarray:
    error = (weight.astype(np.float64) - quantized.dequantize()).reshape(len(weight), -1)
    return np.einsum("ok,kj,oj->o", error, hessian, error, optimize=True)


def optimal_brain_quantization(
    weight: np.ndarray, scale: float, hessian: np.ndarray, levels: tuple[int, int]
) -> np.ndarray:
    """Equations 2 and 3 of the GPTQ paper, one row, in the order given, with the inverse updated step by step."""
    weight, inverse = weight.copy(), np.linalg.inv(hessian)
    found = np.zeros_like(weight)
    for i in range(len(weight)):
        found[i] = np.clip(np.rint(weight[i] / scale), *levels)
        weight[i + 1 :] -= (weight[i] - scale * found[i]) / inverse[i, i] * inverse[i, i + 1 :]
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return found


@pytest.mark.parametrize("inputs", [1, 5, 40, 150, 300])
def test_lazy_blocks_equal_the_papers_equations(inputs):
    rng = np.random.default_rng(inputs)
    hessian = second_moment(rng, inputs)
    weight = rng.normal(size=(3, inputs))
    factors = factorize(hessian[None])
    order = factors.order[0]
    assert (np.diff(np.diag(hessian)[order]) <= 0).all()
    scale = np.array([[0.3, 0.4, 0.5]])
    ours = compensate(weight[:, order].T[None], scale, factors.lower, uniform(-8, 7))[0]
    for row in range(3):
        expected = optimal_brain_quantization(weight[row, order], scale[0, row], factors.damped[0], (-8, 7))
        np.testing.assert_array_equal(ours[:, row], expected)


def test_the_factor_is_that_of_the_inverse():
    hessian = second_moment(np.random.default_rng(0), 7)
    factors = factorize(hessian[None])
    upper = factors.lower[0].T
    np.testing.assert_allclose(upper, np.triu(upper))
    np.testing.assert_allclose(upper.T @ upper @ factors.damped[0], np.eye(7), atol=1e-8)
    order = factors.order[0]
    added = factors.damped[0] - hessian[np.ix_(order, order)]
    np.testing.assert_allclose(added, 0.01 * np.diag(hessian).mean() * np.eye(7), atol=1e-9)


@pytest.mark.parametrize("inputs", [6, 200])
def test_each_sweep_lowers_the_loss(inputs):
    rng = np.random.default_rng(0)
    hessian, weight = second_moment(rng, inputs)[None], rng.normal(size=(1, inputs, 9))
    scale = np.full((1, 9), 0.7)
    found = np.clip(np.rint(weight / scale[:, None]), -2, 1)
    losses = [loss(weight - found * scale[:, None], hessian)]
    for _ in range(4):
        found = descend(weight, scale, found, hessian, uniform(-2, 1))
        losses.append(loss(weight - found * scale[:, None], hessian))
    assert (np.diff(np.array(losses), axis=0) <= 1e-9 * losses[0]).all()
    assert losses[1].sum() < losses[0].sum()
    # No single level has a better value where a sweep changes nothing.
    while not np.array_equal(better := descend(weight, scale, found, hessian, uniform(-2, 1)), found):
        found = better
    final = loss(weight - found * scale[:, None], hessian)
    for i, level in product(range(min(inputs, 6)), (-2, -1, 0, 1)):
        moved = found.copy()
        moved[0, i] = level
        assert (loss(weight - moved * scale[:, None], hessian) >= final * (1 - 1e-9)).all()


@pytest.mark.parametrize("inputs", [1, 2, 3, 4])
def test_two_bits_against_every_possible_rounding(inputs):
    rng = np.random.default_rng(inputs)
    ours, optimum, plain = 0.0, 0.0, 0.0
    every = np.array(list(product(range(-2, 2), repeat=inputs)), float)
    for _ in range(40):
        hessian = second_moment(rng, inputs)
        weight = rng.normal(size=(5, inputs)).astype(np.float32)
        found = quantize_weight(weight, bits=2, axis=0, rounding="gptq", hessian=hessian)
        losses = row_losses(weight, found, hessian)
        nearest = row_losses(weight, quantize_weight(weight, bits=2, axis=0, hessian=hessian), hessian)
        assert (losses <= nearest * (1 + 1e-5) + 1e-9).all()
        for row, scale, lost in zip(weight, found.scale, losses, strict=True):
            errors = row - every * float(scale)
            best = float(np.einsum("ek,kj,ej->e", errors, hessian, errors).min())
            assert lost >= best * (1 - 1e-9)
            optimum += best
        ours += losses.sum()
        plain += nearest.sum()
    # Not always the optimum for its scale, but near it on the whole.
    assert ours <= 1.1 * optimum + 1e-6
    assert inputs == 1 or ours < 0.9 * plain


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from(WEIGHT_BITS),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
)
def test_never_worse_than_nearest(seed, inputs, samples, bits, per_tensor, dead):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, inputs)) * rng.exponential(size=inputs)  # often rank deficient
    x[:, :dead] = 0
    hessian = x.T @ x
    weight = rng.normal(size=(4, inputs)).astype(np.float32)
    axis = None if per_tensor else 0
    arguments = {"bits": bits, "axis": axis, "hessian": hessian}
    found = quantize_weight(weight, rounding="gptq", **arguments)
    losses = row_losses(weight, found, hessian)
    nearest = row_losses(weight, quantize_weight(weight, **arguments), hessian)
    if per_tensor:
        losses, nearest = losses.sum(), nearest.sum()
    scale = np.trace(hessian) * 1e-9
    assert (losses <= nearest * (1 + 1e-4) + scale).all()
    low, high = WEIGHT_LEVELS[bits]
    assert found.values.min() >= low and found.values.max() <= high and (found.scale > 0).all()


def test_dead_inputs_are_rounded_to_nearest():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8))
    x[:, [2, 5]] = 0
    weight = rng.normal(size=(3, 8)).astype(np.float32)
    found = quantize_weight(weight, bits=4, axis=0, rounding="gptq", hessian=x.T @ x)
    expected = np.clip(np.rint(weight / found.scale[:, None]), -8, 7)
    np.testing.assert_array_equal(found.values[:, [2, 5]], expected[:, [2, 5]])
    dead = quantize_weight(weight, bits=4, axis=0, rounding="gptq", hessian=np.zeros((8, 8)))
    np.testing.assert_array_equal(dead.values, np.clip(np.rint(weight / dead.scale[:, None]), -8, 7))


def test_an_indefinite_hessian_is_damped_until_it_is_not():
    hessian = np.array([[1.0, 3.0], [3.0, 1.0]])  # no second moment, but rounding may make one look so
    weight = np.array([[0.3, -0.7]], np.float32)
    assert np.isfinite(quantize_weight(weight, bits=4, axis=0, rounding="gptq", hessian=hessian).scale).all()


@pytest.mark.parametrize(("channels", "groups"), [(12, 12), (12, 3), (12, 1)])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_groups_are_rounded_as_if_alone(channels, groups, bits):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(channels, 2, 3, 3)).astype(np.float32)
    hessian = np.rint(np.stack([second_moment(rng, 18) for _ in range(groups)]) * 64)
    # The same power of two as the mean of each diagonal, so that scaling it to 1 is exact, together or alone.
    hessian[:, 0, 0] += 18 * 2.0**17 - np.trace(hessian, axis1=1, axis2=2)
    together = quantize_weight(weight, bits=bits, axis=0, rounding="gptq", hessian=hessian, groups=groups)
    share = channels // groups
    for group in range(groups):
        rows = slice(group * share, (group + 1) * share)
        alone = quantize_weight(weight[rows], bits=bits, axis=0, rounding="gptq", hessian=hessian[group])
        np.testing.assert_array_equal(together.values[rows], alone.values)
        np.testing.assert_allclose(together.scale[rows], alone.scale, rtol=1e-6)


def test_it_does_not_depend_on_the_units():
    rng = np.random.default_rng(0)
    weight, hessian = rng.normal(size=(4, 9)).astype(np.float32), second_moment(rng, 9)
    plain = quantize_weight(weight, bits=4, axis=0, rounding="gptq", hessian=hessian)
    # Powers of two: other factors would round the float32 weights anew.
    scaled = quantize_weight(weight * np.float32(2.0**100), bits=4, axis=0, rounding="gptq", hessian=hessian * 2.0**-60)
    np.testing.assert_array_equal(plain.values, scaled.values)
    np.testing.assert_array_equal(plain.scale * np.float32(2.0**100), scaled.scale)
    single = quantize_weight(weight, bits=4, axis=0, rounding="gptq", hessian=hessian.astype(np.float32))
    assert (single.values == plain.values).mean() > 0.9


def test_outputs_of_a_real_convolution_are_nearer(bench):
    """A 3x3 convolution of ResNet-20 on inputs that GPTQ has not seen."""
    model = onnx.load(bench / "cifar10" / "resnet20.onnx")
    weights = {t.name: t for t in model.graph.initializer}
    node = [n for n in model.graph.node if n.op_type == "Conv"][6]
    weight = numpy_helper.to_array(weights[node.input[1]])
    model.graph.output.add().name = node.input[0]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with np.load(bench / "cifar10" / "train.npz") as data:
        images = data["x"][:48].transpose(0, 3, 1, 2).astype(np.float32) / 255
    images = (images - np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]) / np.float32(0.226)
    activations = session.run([node.input[0]], {session.get_inputs()[0].name: images})[0]
    windows = sliding_window_view(activations, weight.shape[2:], axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)
    x = windows.reshape(len(images), -1, weight[0].size)
    seen, unseen = x[:32].reshape(-1, weight[0].size), x[32:].reshape(-1, weight[0].size)
    hessian = seen.T @ seen
    exact = unseen @ weight.reshape(len(weight), -1).T

    def output_error(rounding: str, bits: int) -> float:
        quantized = quantize_weight(weight, bits=bits, axis=0, rounding=rounding, hessian=hessian)
        return float(((unseen @ quantized.dequantize().reshape(len(weight), -1).T - exact) ** 2).mean() / exact.var())

    assert output_error("gptq", 4) < 0.5 * output_error("nearest", 4)
    assert output_error("gptq", 2) < 0.25 * output_error("nearest", 2)
    assert output_error("gptq", 8) < output_error("gptq", 4) < output_error("gptq", 2) < 0.2
