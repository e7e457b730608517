"""One point's polish with a real evaluator: what is held out, what decides, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoq.core.policy import Policy
from autoq.core.result import Failure
from autoq.core.scheme import Scheme
from autoq.errors import TrialError
from autoq.runtime.ort import open_session, run_batches
from autoq.search.evaluate import Evaluator
from autoq.search.executor import attempted
from autoq.search.groundwork import lay_groundwork
from autoq.search.polish_point import PolishItem, PolishResult, PolishWork, halves, polish_point
from autoq.setting import Setting, read_setting, workload_of
from autoq.spec.job import load_job
from tests.small_job import write_job


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return read_setting(load_job(write_job(tmp_path_factory.mktemp("polish"))))


@pytest.fixture(scope="module")
def evaluator(setting: Setting) -> Evaluator:
    lowering = lay_groundwork(setting.model, setting.candidates, setting.calibration, setting.inputs, cache_dir=None)
    return Evaluator(workload_of(setting, lowering))


@pytest.fixture
def work(setting: Setting) -> PolishWork:
    return PolishWork(kind="sequential", inputs=setting.calibration.inputs, unit=1)


def item(evaluator: Evaluator, scheme: str, seconds: float = 100) -> PolishItem:
    names = [layer.name for layer in evaluator.lowering.layers]
    policy = evaluator.lowering.canonical(Policy.uniform(names, Scheme.parse(scheme)))
    return PolishItem(policy=policy, deadline=time.time() + seconds)


def done(found: PolishResult | Failure) -> PolishResult:
    assert isinstance(found, PolishResult), found
    return found


def test_the_new_file_is_scored_as_it_would_ship(evaluator: Evaluator, work: PolishWork, setting: Setting) -> None:
    wanted = item(evaluator, "w4-gptq")
    found = done(polish_point(evaluator, work, wanted))
    assert found.scored is not None and not found.why
    assert hashlib.sha256(found.scored.model).hexdigest() == found.scored.sha256
    # By hand: its accuracy on the search split, and its divergence from float32 on every fourth calibration row.
    split = setting.search
    (y,) = run_batches(open_session(found.scored.model), split.inputs, 100).values()
    assert found.scored.metric == (y.argmax(axis=1) == split.targets).mean()
    x = setting.calibration.inputs["x"][3::4]
    logits = [
        next(iter(run_batches(open_session(model), {"x": x}, 16).values())).astype(np.float64)
        for model in (setting.model.path, evaluator.lowering.build(wanted.policy), found.scored.model)
    ]
    exact, before, after = (np.log(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)) for z in logits)
    distances = [(np.exp(exact) * (exact - other)).sum(axis=1).mean() for other in (before, after)]
    np.testing.assert_allclose(found.held_out, distances, rtol=1e-4)
    assert found.held_out[1] < found.held_out[0]
    assert found.measure == "KL divergence"


def test_a_polish_that_does_not_help_on_rows_held_out_keeps_the_file(evaluator: Evaluator, work: PolishWork) -> None:
    """Rows to fit that are nothing like those held out: whatever is learnt from them is wrong."""
    x = work.inputs["x"].copy()
    x[np.arange(len(x)) % 4 != 3] = 30.0
    found = done(polish_point(evaluator, dataclasses.replace(work, inputs={"x": x}), item(evaluator, "w8a8@minmax")))
    assert found.scored is None and found.why
    assert found.held_out[1] >= found.held_out[0] or "no layer came nearer" in found.why


def test_labels_are_never_seen(evaluator: Evaluator, work: PolishWork) -> None:
    """Without targets the search split cannot be scored, but all before that is the same."""
    unlabelled = Evaluator(dataclasses.replace(evaluator.workload, targets=None))
    found = polish_point(unlabelled, work, item(evaluator, "w4-gptq"))
    assert isinstance(found, Failure) and "targets" in found.message


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_rows(evaluator: Evaluator, work: PolishWork, rows: int) -> None:
    few = dataclasses.replace(work, inputs={"x": work.inputs["x"][:rows]})
    wanted = item(evaluator, "w4-gptq")
    if rows == 1:
        found = attempted(polish_point, evaluator, few, wanted)
        assert isinstance(found, Failure)
        assert found.message == "1 calibration rows are too few: some must be held out, and there is one"
        return
    found = done(polish_point(evaluator, few, wanted))
    assert found.scored is None or found.held_out[1] < found.held_out[0]


def test_an_operator_that_no_other_part_knows(tmp_path: Path, setting: Setting, evaluator: Evaluator) -> None:
    """The runtime runs it, and that is all that stage one needs: here an Einsum after the last layer."""
    model = onnx.ModelProto.FromString(evaluator.workload.model)
    output = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Einsum", [output], ["turned"], "odd", equation="nk->nk"))
    model.graph.output[0].name = "turned"
    odd = Evaluator(dataclasses.replace(evaluator.workload, model=model.SerializeToString()))
    work = PolishWork(kind="sequential", inputs=setting.calibration.inputs, unit=1)
    assert done(polish_point(odd, work, item(odd, "w4-gptq"))).scored is not None


def test_no_time_left(evaluator: Evaluator, work: PolishWork) -> None:
    with pytest.raises(TrialError, match="ran out") as caught:
        polish_point(evaluator, work, item(evaluator, "w4-gptq", seconds=-1))
    assert caught.value.reason == "timeout"


@given(rows=st.integers(1, 70), unit=st.integers(1, 9), fixed=st.booleans())
def test_units_stay_whole(rows: int, unit: int, fixed: bool) -> None:
    work = PolishWork(kind="sequential", inputs={"x": np.arange(rows)}, unit=unit, fixed=fixed)
    if rows // unit < 2:
        with pytest.raises(TrialError, match="too few"):
            halves(work)
        return
    fit, held = ([batch["x"] for batch in part] for part in halves(work))
    for batch in (*fit, *held):
        assert len(batch) == unit if fixed else len(batch) % unit == 0
        assert len(batch) <= max(32, unit)
        assert (batch.reshape(-1, unit)[:, 0] % unit == 0).all()
    seen = np.concatenate([*fit, *held])
    assert sorted(seen) == list(range(rows // unit * unit))
    units, out = rows // unit, sum(map(len, held)) // unit
    assert out == max(1, units // 4)


def test_two_runs_give_the_same_bytes(evaluator: Evaluator, work: PolishWork) -> None:
    files = {done(polish_point(evaluator, work, item(evaluator, "w4a8-gptq@minmax"))).held_out for _ in range(2)}
    assert len(files) == 1
