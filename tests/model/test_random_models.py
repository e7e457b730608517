"""Random small models under random policies: every candidate is a sound model that means the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from autoq.core.form import FORM_NAMES
from autoq.core.scheme import Scheme
from autoq.model.forms import FORMS
from autoq.runtime.executed import LayerNames
from autoq.runtime.pairs import DEFECT, left_pairs
from tests.models import Net, check, distance, in_forms, lowered, run, run_optimized, run_unfused

SCHEMES = [
    "float32",
    "float16",
    "w8",
    "w4",
    "w4-gptq",
    "w2-tensor",
    "w8a8@minmax",
    "w8a8-tensor@mse",
    "w4a8-gptq@percentile99.9",
    "w2a8@entropy",
    "w3a8@mse",
    "w8a8@ema",
    "w4-bc",
    "w4a8-gptq-bc@percentile99.9",
    "w8a8-bc-smooth0.5@minmax",
]
GENTLE = ("float32", "float16", "w8", "w8a8@minmax")
WIDTHS = ("float32", "w8", "w8a8@minmax", "w8a16@minmax", "w8a16@ema")

Shape = tuple[int, int, int]  # channels, height, width
Step = Callable[["_Model"], None]


class _Model:
    """Grows a graph over images; ``draw`` makes every choice."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.net = Net(seed=draw(st.integers(0, 99)))
        self.fixed = draw(st.booleans())
        self.pool: list[tuple[str, Shape]] = []
        for name in ("x", "y")[: draw(st.integers(1, 2))]:
            self.pool.append((self.net.input(2 if self.fixed else "rows", 4, 6, 6, name=name), (4, 6, 6)))

    def pick(self) -> tuple[str, Shape]:
        # Mostly the newest, for depth; at times an older one, for branches.
        back = self.draw(st.sampled_from([1, 1, 1, 2, 3]))
        return self.pool[-min(back, len(self.pool))]

    def push(self, tensor: str, shape: Shape) -> None:
        self.pool.append((tensor, shape))

    def conv(self) -> None:
        x, (c, h, w) = self.pick()
        out, kernel = self.draw(st.sampled_from([(4, 3), (6, 1), (16, 3), (c, 3)]))
        groups = self.draw(st.sampled_from([1, c, 2 if c % 2 == 0 else 1])) if out == c else 1
        y = self.net.conv(x, c, out, kernel, bias=self.draw(st.booleans()), group=groups)
        self.push(self.activated(y), (out, h, w))

    def activated(self, y: str) -> str:
        kinds = ["", "Relu", "Relu", "Clip", "LeakyRelu", "Tanh", "HardSwish", "HardSigmoid", "SiLU"]
        kind = self.draw(st.sampled_from(kinds))
        if kind == "Clip":
            low = self.draw(st.sampled_from([0, -1]))
            return str(self.net.add("Clip", y, self.net.constant(np.float32(low)), self.net.constant(np.float32(1))))
        if kind == "SiLU":
            return str(self.net.add("Mul", y, self.net.add("Sigmoid", y)))
        return str(self.net.add(kind, y)) if kind else y

    def join(self) -> None:
        (x, shape), op = self.pick(), self.draw(st.sampled_from(["Add", "Mul", "Concat"]))
        others = [tensor for tensor, other in self.pool if other == shape]
        y = self.draw(st.sampled_from(others))
        if op == "Concat":
            self.push(self.net.add("Concat", x, y, axis=1), (2 * shape[0], *shape[1:]))
        else:
            self.push(self.activated(self.net.add(op, x, y)), shape)

    def gate(self) -> None:
        n, (x, shape) = self.net, self.pick()
        y = n.add("GlobalAveragePool", x)
        if self.draw(st.booleans()):  # squeeze-excite
            y = n.conv(self.activated(n.conv(y, shape[0], 4, 1)), 4, shape[0], 1)
        gate = self.draw(st.sampled_from(["Sigmoid", "HardSigmoid"]))
        self.push(n.add("Mul", x, n.add(gate, y)), shape)

    def enlarge(self) -> None:
        x, (c, h, w) = self.pick()
        if h * w < 50:
            weight = self.net.weight(c, 3, 2, 2)
            self.push(self.activated(self.net.add("ConvTranspose", x, weight, strides=[2, 2])), (3, 2 * h, 2 * w))

    def shuffle(self) -> None:
        n, (x, (c, h, w)) = self.net, self.pick()
        if c % 2 == 0:
            y = n.add("Transpose", n.add("Reshape", x, n.ints(0, 2, c // 2, h, w)), perm=[0, 2, 1, 3, 4])
            self.push(n.add("Reshape", y, n.ints(0, c, h, w)), (c, h, w))

    def move(self) -> None:
        n, (x, (c, h, w)) = self.net, self.pick()
        op = self.draw(
            st.sampled_from(["Slice", "Pad", "Transpose", "MaxPool", "AveragePool", "Split", "Reshape", "Resize"])
        )
        if op == "Slice" and h > 2:
            self.push(n.add(op, x, n.ints(1), n.ints(h), n.ints(2)), (c, h - 1, w))
        elif op == "Pad":
            mode = self.draw(st.sampled_from(["constant", "edge"]))
            self.push(n.add(op, x, n.ints(0, 1, 0, 0, 0, 0, 0, 1), mode=mode), (c + 1, h, w + 1))
        elif op == "Transpose":
            self.push(n.add(op, x, perm=[0, 1, 3, 2]), (c, w, h))
        elif op in ("MaxPool", "AveragePool") and min(h, w) > 2:
            self.push(self.activated(n.add(op, x, kernel_shape=[2, 2])), (c, h - 1, w - 1))
        elif op == "Split" and c > 1:
            first, second = n.add(op, x, n.ints(1, c - 1), outputs=2, axis=1)
            self.push(first, (1, h, w))
            self.push(second, (c - 1, h, w))
        elif op == "Reshape":
            self.push(n.add(op, x, n.ints(0, w, h, c)), (w, h, c))
        elif op == "Resize" and h * w < 50:
            self.push(n.add(op, x, "", n.constant(np.array([1, 1, 2, 1], np.float32)), mode="nearest"), (c, 2 * h, w))

    def shortcut(self) -> None:
        n, (x, (c, h, w)) = self.net, self.pick()
        if min(h, w) > 2:
            ends = [2**31 - 1, 2**63 - 1]
            y = n.add("Slice", x, n.ints(0, 0), n.ints(*ends), n.ints(2, 3), n.ints(2, 1))
            shape = (c, (h + 1) // 2, w)
            if self.draw(st.booleans()):
                y, shape = n.add("Pad", y, n.ints(0, 1, 0, 0, 0, 2, 0, 0)), (c + 3, *shape[1:])
            self.push(y, shape)

    def attend(self) -> None:
        """Channels are heads, rows of the image tokens."""
        n, (x, shape) = self.net, self.pick()
        key = self.draw(st.sampled_from([tensor for tensor, other in self.pool if other == shape]))
        scores = n.add(
            "Mul", n.add("MatMul", x, n.add("Transpose", key, perm=[0, 1, 3, 2])), n.constant(np.float32(0.3))
        )
        self.push(n.add("MatMul", n.add("Softmax", scores, axis=-1), key), shape)

    def norm(self) -> None:
        n, (x, shape) = self.net, self.pick()
        y = n.add("Add", x, self.draw(st.sampled_from([tensor for tensor, other in self.pool if other == shape])))
        self.push(n.add("LayerNormalization", y, n.weight(shape[2]), n.weight(shape[2]), axis=-1), shape)

    def head(self) -> str:
        x, (c, h, w) = self.pick()
        y = self.net.add("Reshape", x, self.net.ints(0, c * h * w))
        if self.draw(st.booleans()):
            y = self.net.add(
                "Relu", self.net.add("Gemm", y, self.net.weight(c * h * w, 8, scale=0.1), self.net.weight(8))
            )
        else:
            y = self.net.add("MatMul", y, self.net.weight(c * h * w, 8, scale=0.1))
        return str(self.net.add("Add", self.net.add("MatMul", y, self.net.weight(8, 8)), self.net.weight(8)))


@st.composite
def models(draw: st.DrawFn, *, with_places: bool = False) -> onnx.ModelProto:
    """A model of 3 to 9 steps with up to four outputs; ``with_places`` for forms of the graph, to be rewritten."""
    model = _Model(draw)
    model.conv()
    for _ in range(draw(st.integers(2, 8))):
        steps = [model.conv, model.conv, model.join, model.gate, model.move, model.move, model.enlarge, model.shuffle]
        places = [model.shortcut, model.attend, model.norm] if with_places else []
        draw(st.sampled_from(steps + places))()
    outputs = {model.head()} if draw(st.booleans()) else set()
    outputs.add(model.pool[-1][0])
    outputs.add(draw(st.sampled_from(model.pool))[0])
    net = model.net
    outputs = (outputs - {"x", "y"}) | {net.conv("x", 4, 4)}
    return net.model(*sorted(outputs))


@settings(max_examples=40)
@given(models(), st.data())
def test_random_model_under_random_policies(model: onnx.ModelProto, data: st.DataObject) -> None:
    rng = np.random.default_rng(1)
    feeds = {value.name: rng.standard_normal((2, 4, 6, 6)).astype(np.float32) for value in model.graph.input}
    subject = lowered(model, SCHEMES, feeds)
    exact = subject.float32()
    for schemes in (SCHEMES, GENTLE):
        chosen = {}
        for layer in subject.layers:
            chosen[layer.name] = subject.possible(layer, Scheme.parse(data.draw(st.sampled_from(schemes))))
        policy = subject.canonical(chosen)
        assert subject.canonical(dict(policy)) == policy
        candidate = subject.build(policy)
        assert candidate == subject.build(policy)
        _names_are_unique(check(candidate))
        outputs, _, counts = run_optimized(candidate, feeds)
        unfused = run_unfused(candidate, feeds)
        assert outputs.keys() == exact.keys()
        for name, output in outputs.items():
            assert np.isfinite(output).all() and output.shape == exact[name].shape
            # A tie that the fused kernel rounds the other way is one step of 255, and may grow through later layers.
            assert distance(output, unfused[name]) < 0.06, f"{name} under {policy.to_text()}"
            if schemes is GENTLE:
                assert distance(output, exact[name]) < 0.15, f"{name} under {policy.to_text()}"
        active = [layer for layer in subject.layers if policy[layer.name].activation is not None]
        convs = sum(layer.op_type == "Conv" for layer in active)
        products = counts["QGemm"] + counts["QLinearMatMul"] + counts["MatMulIntegerToFloat"]
        assert (counts["QLinearConv"], products) == (convs, len(active) - convs), f"{counts} under {policy.to_text()}"
        names = [
            LayerNames(
                layer=layer.name,
                node=layer.node,
                weight=layer.weight,
                outputs=(layer.output, subject.lowering.placer.stored(subject.graph.nodes[layer.node])),
            )
            for layer in active
        ]
        assert not [str(one) for one in left_pairs(candidate, names) if one.reason == DEFECT], policy.to_text()


@settings(max_examples=25)
@given(models(with_places=True), st.data())
def test_random_model_in_every_form(model: onnx.ModelProto, data: st.DataObject) -> None:
    """Each form by itself and all together: as written, a candidate computes what it computes without them."""
    rng = np.random.default_rng(1)
    feeds = {value.name: rng.standard_normal((2, 4, 6, 6)).astype(np.float32) for value in model.graph.input}
    scheme = data.draw(st.sampled_from(["float32", "w8", "w8a8@minmax", "w4a8-gptq@percentile99.9"]))
    subject = lowered(model, [scheme], feeds)
    plain = subject.build(scheme)
    expected = run_unfused(plain, feeds)
    exact = tuple(name for name, form in FORMS.items() if form.tolerance == 0)
    for forms in (*((name,) for name in FORM_NAMES), exact, FORM_NAMES):
        candidate = in_forms(subject, forms).build(scheme)
        if candidate == plain:
            continue
        _names_are_unique(check(candidate))
        for name, output in run_unfused(candidate, feeds).items():
            if set(forms) <= set(exact):
                assert np.array_equal(output, expected[name]), f"{name} in {forms}"
            # The last bits of a float may be those that decide how one is rounded to 8 bits.
            assert distance(output, expected[name]) < (1e-4 if "a8" not in scheme else 0.06)
        for name, output in run(candidate, feeds).items():
            assert distance(output, expected[name]) < (1e-4 if "a8" not in scheme else 0.06), f"{name} in {forms}"


@settings(max_examples=25)
@given(models(), st.data())
def test_random_model_of_two_widths(model: onnx.ModelProto, data: st.DataObject) -> None:
    """16 bits beside 8 and floats mean what they say to stock ONNX Runtime; throughout, next to nothing is lost."""
    rng = np.random.default_rng(1)
    feeds = {value.name: rng.standard_normal((2, 4, 6, 6)).astype(np.float32) for value in model.graph.input}
    subject = lowered(model, WIDTHS, feeds, integer_products=data.draw(st.booleans()))
    chosen = {layer.name: Scheme.parse(data.draw(st.sampled_from(WIDTHS))) for layer in subject.layers}
    mixed = subject.canonical({layer.name: subject.possible(layer, chosen[layer.name]) for layer in subject.layers})
    assert subject.canonical(dict(mixed)) == mixed
    wide = subject.policy("w8a16@minmax")
    for policy in (mixed, wide):
        candidate = subject.build(policy)
        _names_are_unique(check(candidate))
        outputs, unfused = run(candidate, feeds), run_unfused(candidate, feeds)
        for name, output in outputs.items():
            assert np.isfinite(output).all()
            assert distance(output, unfused[name]) < 0.06, f"{name} under {policy.to_text()}"
    plain = {name: Scheme.parse("w8") if scheme.activation else scheme for name, scheme in wide.items()}
    for name, exact in run(subject.build(subject.canonical(plain)), feeds).items():
        # A HardSigmoid stays in 8 bits: of its output, and of what it gates.
        assert distance(outputs[name], exact) < 0.01, name


def _names_are_unique(model: onnx.ModelProto) -> None:
    graph = model.graph
    tensors = [value.name for value in (*graph.input, *graph.initializer)]
    tensors += [name for node in graph.node for name in node.output if name]
    assert len(set(tensors)) == len(tensors)
    nodes = [node.name for node in graph.node if node.name]  # those that lowering adds need none
    assert len(set(nodes)) == len(nodes)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert {tensor.name for tensor in graph.initializer} <= used, "stored for nothing"
