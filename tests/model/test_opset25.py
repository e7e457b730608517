"""A candidate with 2-bit weights says opset 25, though its nodes were written for 21: is that honest?"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import defs

from autoq.model.operators import CARRY, INTEGER
from autoq.model.opset import INT2_IR_VERSION, INT2_OPSET, TARGET_OPSET, raise_opset
from tests.model.test_placement import CARRIED, COMPUTED, FORMS, _between
from tests.models import Net, lowered, run_optimized

# Words that the specification gained for what had been meant before: windows that start in the padding at the right end
# are left out under ceil_mode.
CLEARER_WORDS = {"AveragePool", "MaxPool"}


def schemas(opset: int) -> dict[str, defs.OpSchema]:
    found: dict[str, defs.OpSchema] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= opset:
            best = found.get(schema.name)
            if best is None or best.since_version < schema.since_version:
                found[schema.name] = schema
    return found


OLD, NEW = schemas(TARGET_OPSET), schemas(INT2_OPSET)
CHANGED = sorted(name for name in OLD if NEW[name].since_version != OLD[name].since_version)


def types(schema: defs.OpSchema, formal: defs.OpSchema.FormalParameter) -> set[str]:
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    return allowed.get(formal.type_str, {formal.type_str})


@pytest.mark.parametrize("name", CHANGED)
def test_changed_operators_mean_what_they_meant(name: str) -> None:
    """Between the two opsets operators gain types, optional inputs, and attributes that change nothing unless given."""
    old, new = OLD[name], NEW[name]
    assert not new.deprecated
    for attribute, given in old.attributes.items():
        kept = new.attributes[attribute]
        assert (kept.type, kept.required) == (given.type, given.required)
        assert kept.default_value.SerializeToString() == given.default_value.SerializeToString()
    # How Cast rounds to float8e8m0, what (De)QuantizeLinear writes and divides in: no candidate has these.
    gained = new.attributes.keys() - old.attributes.keys()
    assert gained <= {"round_mode", "output_dtype", "precision"}
    assert not any(new.attributes[attribute].required for attribute in gained)
    for before, after in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
        assert len(after) >= len(before)
        for ours, theirs in zip(before, after, strict=False):
            assert (ours.option, types(old, ours) - types(new, theirs)) == (theirs.option, set())
        assert all(more.option == defs.OpSchema.FormalParameterOption.Optional for more in after[len(before) :])


def test_no_operator_left() -> None:
    assert OLD.keys() <= NEW.keys()
    assert CHANGED, "the two opsets do differ"


@pytest.mark.parametrize(("op", "form"), FORMS)
def test_the_runtime_treats_both_alike(op: str, form: str) -> None:
    """The same kernels and the same values, bit for bit, under either number: fusions know operators by version."""
    model, feeds = _between({**CARRIED, **COMPUTED}[op][form])
    subject = lowered(model, ["w8a8@minmax", "w8"], feeds)
    for scheme in ("w8a8@minmax", "w8"):
        old = onnx.load_from_string(subject.build(scheme))
        new = onnx.ModelProto()
        new.CopyFrom(old)
        raise_opset(new, INT2_OPSET, INT2_IR_VERSION)
        results: list[tuple[dict[str, np.ndarray], Counter[str]]] = []
        for candidate in (old, new):
            onnx.checker.check_model(candidate, full_check=True)
            outputs, _, counts = run_optimized(candidate.SerializeToString(), feeds)
            results.append((outputs, counts))
        assert results[0][1] == results[1][1]
        for name, values in results[0][0].items():
            np.testing.assert_array_equal(results[1][0][name], values)


def test_windows_that_start_in_the_padding() -> None:
    """What the specification says more clearly now, the runtime did before."""
    assert CARRY.keys() | INTEGER.keys() >= CLEARER_WORDS
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 5)).astype(np.float32)
    for op in sorted(CLEARER_WORDS):
        values = []
        for opset, ir_version in ((TARGET_OPSET, 10), (INT2_OPSET, INT2_IR_VERSION)):
            net = Net()
            y = net.add(op, net.input(1, 2, 5, 5), kernel_shape=[2, 2], strides=[3, 3], pads=[0, 0, 1, 1], ceil_mode=1)
            outputs = run_optimized(net.model(y, opset=opset, ir_version=ir_version).SerializeToString(), {"x": x})[0]
            values.append(outputs[y])
        np.testing.assert_array_equal(*values)


def test_a_later_opset_is_not_lowered() -> None:
    net = Net()
    model = net.model(net.conv(net.input("rows", 3, 5, 5), 3, 4), opset=26, ir_version=13)
    raise_opset(model, INT2_OPSET, INT2_IR_VERSION)
    assert model.opset_import[0].version == 26
