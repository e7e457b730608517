"""Metrics by name against scikit-learn's own, metrics by function, and the bootstrap."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from autoq.errors import AutoqError, JobError, MetricError, TrialError
from autoq.runtime.data import load_split
from autoq.runtime.metric import DEFAULT_TIMEOUT_S, Metric, bootstrap_metric, bootstrap_paired, resolve_metric
from autoq.runtime.metric_table import known_metrics
from autoq.runtime.ort import input_specs, open_session, run_batches
from autoq.spec.job import load_job

RNG = np.random.default_rng(1)
N, C = 200, 5
LOGITS = (RNG.normal(size=(N, C)) * 2).astype(np.float32)
Y = np.where(RNG.random(N) < 0.6, LOGITS.argmax(1), RNG.integers(0, C, N)).astype(np.uint8)
BINARY_Y = Y % 2
BINARY_LOGITS = (RNG.normal(size=(N, 2)) + np.eye(2)[BINARY_Y]).astype(np.float32)
TRUE = RNG.normal(size=N)
PREDICTED = (TRUE + 0.1 * RNG.normal(size=N)).astype(np.float32)


def metric(folder: str | Path = ".", **section: Any) -> Metric:
    return Metric.from_spec(section, folder)


def value(name: str, output: np.ndarray, targets: np.ndarray, **section: Any) -> float:
    return metric(name=name, **section)({"out": output}, targets)


def function(folder: Path, body: str) -> Metric:
    (folder / "m.py").write_text(f"import numpy as np\n\ndef score(outputs, targets):\n    {body}\n")
    return metric(folder, function="m.py:score")


# --- scikit-learn's metrics


def test_the_table_agrees_with_scikit_learns_scorers() -> None:
    """Private attributes are read here only: a scikit-learn that moves them breaks this test and no search."""
    known = known_metrics()
    unsupported = {"positive_likelihood_ratio", "neg_negative_likelihood_ratio"}
    for name in set(sk.get_scorer_names()) - unsupported:
        scorer = sk.get_scorer(name)
        ours = known[name]
        average = scorer._kwargs if scorer._kwargs != {"average": "binary"} else {}  # the functions' own default
        assert (ours.function, ours.sign, ours.kwargs) == (scorer._score_func.__name__, scorer._sign, average), name
        assert ours.direction == "maximize"
    for name, ours in known.items():
        assert callable(getattr(sk, ours.function)), name


def test_accuracy_is_the_plain_formula_to_the_last_digit() -> None:
    for rows in (1, 3, 7, 199, 200):
        expected = float((LOGITS[:rows].argmax(-1) == Y[:rows]).mean())
        assert value("accuracy", LOGITS[:rows], Y[:rows]) == expected
        assert value("accuracy", LOGITS[:rows], Y[:rows, None]) == expected
    assert value("accuracy", LOGITS, Y, kwargs={"normalize": False}) == (LOGITS.argmax(-1) == Y).sum()


@pytest.mark.parametrize(
    ("name", "direction", "expected"),
    [
        ("accuracy_score", "maximize", lambda p: sk.accuracy_score(Y, p)),
        ("balanced_accuracy", "maximize", lambda p: sk.balanced_accuracy_score(Y, p)),
        ("f1_macro", "maximize", lambda p: sk.f1_score(Y, p, average="macro")),
        ("matthews_corrcoef", "maximize", lambda p: sk.matthews_corrcoef(Y, p)),
        ("zero_one_loss", "minimize", lambda p: sk.zero_one_loss(Y, p)),
    ],
)
def test_metrics_of_labels(name: str, direction: str, expected: Any) -> None:
    assert metric(name=name).direction == direction
    assert value(name, LOGITS, Y) == pytest.approx(expected(LOGITS.argmax(1)), abs=1e-15)


@pytest.mark.parametrize("shape", ["logits", "probabilities", "nearly"])
def test_metrics_of_probabilities_take_either(shape: str) -> None:
    p = softmax(LOGITS.astype(np.float64), axis=1)
    given = {"logits": LOGITS, "probabilities": p, "nearly": p * RNG.uniform(0.95, 1.05, (N, 1))}[shape]
    assert value("log_loss", given, Y) == pytest.approx(sk.log_loss(Y, p), rel=1e-6)
    assert value("neg_log_loss", given, Y) == pytest.approx(-sk.log_loss(Y, p), rel=1e-6)
    assert value("roc_auc_ovr", given, Y) == pytest.approx(sk.roc_auc_score(Y, p, multi_class="ovr"), abs=1e-12)
    assert value("top_k_accuracy", given, Y, kwargs={"k": 2}) == sk.top_k_accuracy_score(Y, p, k=2)
    assert (metric(name="log_loss").direction, metric(name="neg_log_loss").direction) == ("minimize", "maximize")


def test_two_classes_as_two_columns_one_column_or_none() -> None:
    margin = (BINARY_LOGITS[:, 1] - BINARY_LOGITS[:, 0]).astype(np.float64)
    p = 1 / (1 + np.exp(-margin))
    for output in (BINARY_LOGITS, softmax(BINARY_LOGITS, axis=1), margin[:, None], margin, p):
        assert value("roc_auc", output, BINARY_Y) == pytest.approx(sk.roc_auc_score(BINARY_Y, margin), abs=1e-6)
        assert value("log_loss", output, BINARY_Y) == pytest.approx(sk.log_loss(BINARY_Y, p), rel=1e-5)
        assert value("average_precision", output, BINARY_Y) == pytest.approx(
            sk.average_precision_score(BINARY_Y, margin), abs=1e-5
        )
    assert value("brier_score_loss", BINARY_LOGITS, BINARY_Y) == pytest.approx(
        sk.brier_score_loss(BINARY_Y, p), rel=1e-5
    )
    assert value("f1", BINARY_LOGITS, BINARY_Y) == sk.f1_score(BINARY_Y, BINARY_LOGITS.argmax(1))


def test_far_logits_do_not_tie() -> None:
    """A sigmoid of 40 is 1 in float64, and so is one of 50: they must still rank."""
    scores = np.array([50.0, 40.0, 45.0, 60.0])
    assert value("roc_auc", scores, np.array([1, 0, 0, 1])) == 1.0
    assert value("roc_auc", np.stack([-scores, scores], 1), np.array([1, 0, 0, 1])) == 1.0
    assert np.isfinite(value("log_loss", np.array([[1000.0, -1000.0], [0, 1]]), np.array([0, 1])))


def test_several_labels_to_a_row() -> None:
    truth = (RNG.random((N, C)) < 0.4).astype(np.int64)
    assert value("roc_auc", LOGITS, truth) == pytest.approx(sk.roc_auc_score(truth, LOGITS), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "direction", "expected"),
    [
        ("r2", "maximize", sk.r2_score),
        ("mean_squared_error", "minimize", sk.mean_squared_error),
        ("neg_mean_absolute_error", "maximize", lambda t, p: -sk.mean_absolute_error(t, p)),
        ("root_mean_squared_error", "minimize", sk.root_mean_squared_error),
    ],
)
def test_metrics_of_values(name: str, direction: str, expected: Any) -> None:
    assert metric(name=name).direction == direction
    wanted = expected(TRUE, PREDICTED.astype(np.float64))
    for output, truth in ((PREDICTED, TRUE), (PREDICTED[:, None], TRUE), (PREDICTED, TRUE[:, None])):
        assert value(name, output, truth) == pytest.approx(wanted, rel=1e-12)
    cube = PREDICTED.reshape(25, 2, 4)
    assert value("mean_squared_error", cube, TRUE.reshape(25, 2, 4)) == pytest.approx(
        sk.mean_squared_error(TRUE, PREDICTED), rel=1e-6
    )


def test_a_class_at_every_position() -> None:
    tokens = RNG.normal(size=(6, 7, C)).astype(np.float32)
    truth = RNG.integers(0, C, (6, 7))
    assert value("accuracy", tokens, truth) == float((tokens.argmax(-1) == truth).mean())
    assert value("f1_macro", tokens, truth) == sk.f1_score(truth.ravel(), tokens.argmax(-1).ravel(), average="macro")
    planes = np.moveaxis(tokens, -1, 1)  # [n, classes, positions], as segmentation has it
    assert value("accuracy", planes, truth, axis=1) == value("accuracy", tokens, truth)
    assert value("log_loss", planes, truth, axis=1) == pytest.approx(value("log_loss", tokens, truth), rel=1e-12)
    with pytest.raises(MetricError, match="write axis: 1 if the classes lie there"):
        value("accuracy", planes, truth)


def test_outputs_that_are_labels_already() -> None:
    assert value("accuracy", LOGITS.argmax(1), Y) == value("accuracy", LOGITS, Y)


def test_which_output() -> None:
    outputs = {"first": LOGITS, "second": -LOGITS}
    assert metric(name="accuracy")(outputs, Y) == value("accuracy", LOGITS, Y)
    assert metric(name="accuracy", output="second")(outputs, Y) == value("accuracy", -LOGITS, Y)
    with pytest.raises(MetricError, match="no output 'secnd'; did you mean 'second'; it has first, second"):
        metric(name="accuracy", output="secnd")(outputs, Y)


def test_direction_can_be_said() -> None:
    assert metric(name="r2", direction="minimize").direction == "minimize"


@pytest.mark.parametrize(
    ("name", "output", "targets", "said"),
    [
        ("accuracy", LOGITS[:, :1], Y, "one column on axis 1, whose arg-max is always 0"),
        ("accuracy", LOGITS[:, 0], Y, "no axis -1 of classes beside its rows"),
        ("accuracy", LOGITS, np.eye(C)[Y], "class numbers, one for each row, not one-hot"),
        ("accuracy", LOGITS, Y[:-1], r"output is \[200, 5\] and the targets \[199\]"),
        ("accuracy", np.where(LOGITS > 5, np.nan, LOGITS), Y, "of 1000 values of the output are NaN"),
        ("accuracy", LOGITS, None, "no targets to compare with"),
        ("f1", LOGITS, Y, "metric 'f1' raised ValueError: Target is multiclass but average='binary'"),
        ("roc_auc", LOGITS, Y, "metric 'roc_auc' raised ValueError: multi_class must be in"),
        ("roc_auc", BINARY_LOGITS, np.zeros(N, int), "metric 'roc_auc' returned nan; it must be finite"),
        ("r2", LOGITS, TRUE, r"the output is \[200, 5\] and the targets \[200\]"),
        ("mean_squared_error", np.full(N, np.inf), TRUE, "raised ValueError: Input contains infinity"),
        ("log_loss", LOGITS, TRUE, "metric 'log_loss' raised ValueError"),
        ("log_loss", LOGITS.reshape(20, 10, C), Y[:20], "200 outputs and 20 targets"),
        ("accuracy", np.float32(3), Y, r"the output is \[\]"),
    ],
)
def test_what_a_named_metric_cannot_use(name: str, output: Any, targets: Any, said: str) -> None:
    with pytest.raises(MetricError, match=said):
        value(name, output, targets)


def test_unknown_names_and_arguments() -> None:
    with pytest.raises(MetricError, match="no scikit-learn metric 'acuracy'; did you mean 'accuracy'"):
        metric(name="acuracy")
    with pytest.raises(MetricError, match="no scikit-learn metric 'confusion_matrix'"):
        metric(name="confusion_matrix")
    with pytest.raises(MetricError, match="raised TypeError"):
        value("r2", PREDICTED, TRUE, kwargs={"zzz": 1})
    with pytest.raises(JobError, match="metric: give either name"):
        metric()


# --- the user's function


def test_the_sts_metric(bench: Path) -> None:
    spec = {"function": "sts_metric.py:paired_cosine_spearman"}
    sts = Metric.from_spec(spec, bench / "sts")
    assert (sts.name, sts.direction) == ("paired_cosine_spearman", "maximize")
    angles = np.linspace(0, 3, 50)
    pairs = np.stack([np.stack([np.ones(50), np.zeros(50)], 1), np.stack([np.cos(angles), np.sin(angles)], 1)], 1)
    outputs = {"sentence_embedding": pairs.reshape(100, 2).astype(np.float32)}
    assert sts(outputs, np.repeat(-angles, 2)) == pytest.approx(1.0)
    values = bootstrap_metric(sts, outputs, np.repeat(-angles, 2), 2, resamples=20, seed=0)
    assert values == pytest.approx(np.ones(20))  # only where pairs stay together


def test_a_metric_is_found_beside_the_job(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def score(outputs, targets):\n    return outputs['a'].sum()\n")
    values = {
        "version": 1,
        "name": "n",
        "model": {"path": "m"},
        "data": {name: {"path": f"{name}.npz"} for name in ("calibration", "search", "final")},
        "metric": {"function": "own.py:score", "direction": "minimize"},
        "hardware": "h",
    }
    found = resolve_metric(load_job(values, tmp_path))
    assert found.direction == "minimize"
    assert found({"a": np.ones(3, np.float32)}, None) == 3.0
    assert found == Metric.from_spec(load_job(values, tmp_path).to_dict()["metric"], tmp_path)


def test_metrics_travel_by_pickle(tmp_path: Path) -> None:
    import cloudpickle

    own = function(tmp_path, "return float((outputs['out'] * 2).sum())")
    for each in (own, metric(name="f1_macro", kwargs={"zero_division": 0})):
        for module in (pickle, cloudpickle):
            copy = module.loads(module.dumps(each))
            assert copy == each and copy.direction == each.direction
            assert copy({"out": LOGITS}, Y) == each({"out": LOGITS}, Y)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 'high'", r"metric 'score' returned 'high' \(a str\), not a number"),
        ("return None", "returned None"),
        ("return True", r"returned True \(a bool\)"),
        ("return np.array([0.5])", r"\(a ndarray\), not a number; end it with float"),
        ("return 1j", "not a number"),
        ("return float('nan')", "metric 'score' returned nan; it must be finite"),
        ("return np.float32('inf')", "returned inf"),
        ("return outputs['logits'].mean()", r"metric 'score' raised KeyError: 'logits' \(m.py, line 4\)"),
        ("raise ValueError('two\\nlines')", r"raised ValueError: two lines \(m.py, line 4\)"),
        ("return sys.exit(3)", "raised NameError"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("class E(BaseException): pass\n    raise KeyError", r"raised KeyError \(m.py, line 5\)"),
    ],
)
def test_functions_that_fail(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(MetricError, match=said):
        function(tmp_path, body)({"out": LOGITS}, Y)


def test_a_function_that_never_returns(tmp_path: Path) -> None:
    function(tmp_path, "while True: pass")
    slow = metric(tmp_path, function="m.py:score", timeout="0.2s")
    for each in (slow, pickle.loads(pickle.dumps(slow))):
        with pytest.raises(TrialError, match=r"'score' did not return within 0\.2 s; metric\.timeout") as caught:
            each({"out": LOGITS}, Y)
        assert caught.value.reason == "timeout"
    assert metric(tmp_path, function="m.py:score").choice.timeout is None  # the default, which is generous
    assert DEFAULT_TIMEOUT_S >= 600


@pytest.mark.parametrize(
    "body", ["return np.float32(0.5)", "return np.array(0.5)", "return 0.5", "return np.float64(0.5)"]
)
def test_every_kind_of_number(tmp_path: Path, body: str) -> None:
    got = function(tmp_path, body)({"out": LOGITS}, Y)
    assert type(got) is float and got == 0.5


def test_functions_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("LIMIT = 3\ndef score(o, t):\n    return 1\n")
    for name, said in (
        ("none.py:score", "metric.function: .*none.py: no such file"),
        ("m.py:scor", "m.py has no 'scor'; it has score"),
        ("m.py:LIMIT", "'LIMIT' in .* is a int, not a function"),
    ):
        with pytest.raises(MetricError, match=said):
            metric(tmp_path, function=name)
    (tmp_path / "m.py").write_text("import json\njson.loads('{')\n")
    with pytest.raises(MetricError, match=r"running .*m.py raised JSONDecodeError: .* \(m.py, line 2\)"):
        metric(tmp_path, function="m.py:score")


def test_loading_leaves_the_import_path_as_it_was(tmp_path: Path) -> None:
    before = list(sys.path)
    function(tmp_path, "return 1")
    with pytest.raises(AutoqError):
        (tmp_path / "m.py").write_text("1 / 0\n")
        metric(tmp_path, function="m.py:score")
    assert sys.path == before


def test_two_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "m.py").write_text(f"def score(o, t):\n    return {number}\n")
    first, second = (metric(tmp_path / str(number), function="m.py:score") for number in (1, 2))
    assert (first({}, None), second({}, None)) == (1.0, 2.0)


# --- the bootstrap


def test_the_bootstrap_spreads_as_theory_says() -> None:
    accuracy = metric(name="accuracy")
    values = bootstrap_metric(accuracy, {"out": LOGITS}, Y, 1, resamples=2000, seed=0)
    share = value("accuracy", LOGITS, Y)
    assert len(values) == 2000
    assert values.mean() == pytest.approx(share, abs=0.005)
    assert values.std() == pytest.approx(np.sqrt(share * (1 - share) / N), rel=0.07)  # the binomial's
    again = bootstrap_metric(accuracy, {"out": LOGITS}, Y, 1, resamples=2000, seed=0)
    assert np.array_equal(values, again)
    assert not np.array_equal(values, bootstrap_metric(accuracy, {"out": LOGITS}, Y, 1, resamples=2000, seed=1))


def test_groups_are_drawn_whole(tmp_path: Path) -> None:
    body = "x = outputs['out'].reshape(-1, 4); return float((x == x[:, :1] // 4 * 4 + np.arange(4)).all())"
    check = function(tmp_path, body)
    rows = np.arange(40.0)
    assert bootstrap_metric(check, {"out": rows}, rows, 4, resamples=60, seed=0).tolist() == [1.0] * 60
    assert 0.0 in bootstrap_metric(check, {"out": rows}, rows, 1, resamples=60, seed=0)


def test_models_share_their_resamples() -> None:
    accuracy = metric(name="accuracy")
    worse = LOGITS.copy()
    worse[:10] = -worse[:10]
    pair = bootstrap_paired(accuracy, [{"out": LOGITS}, {"out": worse}], Y, 1, resamples=300, seed=3)
    assert pair.shape == (2, 300)
    assert np.array_equal(pair[0], bootstrap_metric(accuracy, {"out": LOGITS}, Y, 1, resamples=300, seed=3))
    assert np.array_equal(pair[1], bootstrap_metric(accuracy, {"out": worse}, Y, 1, resamples=300, seed=3))
    assert (pair[0] - pair[1]).std() < pair[0].std()  # what pairing is for


def test_resamples_without_a_value_are_left_out() -> None:
    rare = np.zeros(N, int)
    rare[:2] = 1  # in e^-2 = 13 % of resamples there is no positive at all
    outputs = {"out": BINARY_LOGITS}
    values = bootstrap_metric(metric(name="roc_auc"), outputs, rare, 1, resamples=400, seed=0)
    assert 320 < len(values) < 370 and np.isfinite(values).all()
    with pytest.raises(MetricError, match=r"no value on any resample of the rows; the last: .*nan"):
        bootstrap_metric(metric(name="roc_auc"), outputs, np.zeros(N, int), 1, resamples=60, seed=0)


def test_a_slow_metric_gets_fewer_resamples() -> None:
    now = iter(range(10**6))
    slow = bootstrap_metric(
        metric(name="accuracy"), {"out": LOGITS}, Y, 1, seed=0, clock=lambda: float(next(now)), budget_s=20.0
    )
    assert len(slow) == 70  # the fewest, 50, whatever the clock says; then one second a resample up to 20
    full = bootstrap_metric(metric(name="accuracy"), {"out": LOGITS}, Y, 1, seed=0, clock=lambda: 0.0)
    assert len(full) == 1000 and np.array_equal(full[:70], slow)


def test_only_the_output_that_is_read_must_have_rows(tmp_path: Path) -> None:
    outputs = {"out": LOGITS, "state": np.zeros((3, 2))}
    assert len(bootstrap_metric(metric(name="accuracy"), outputs, Y, 1, resamples=50, seed=0)) == 50
    with pytest.raises(MetricError, match=r"differ in rows \(\[3, 200\]\)"):
        bootstrap_metric(function(tmp_path, "return 1"), outputs, Y, 1, resamples=50, seed=0)
    with pytest.raises(MetricError, match="200 rows are not whole groups of 3"):
        bootstrap_metric(metric(name="accuracy"), {"out": LOGITS}, Y, 3, seed=0)


def test_a_function_without_targets_can_be_resampled(tmp_path: Path) -> None:
    mean = function(tmp_path, "return outputs['out'].mean() if targets is None else 0 / 0")
    values = bootstrap_metric(mean, {"out": PREDICTED}, None, 1, resamples=500, seed=0)
    assert values.std() == pytest.approx(PREDICTED.std() / np.sqrt(N), rel=0.1)


# --- all of it on a real model


def test_resnet_scores_as_by_hand(bench: Path) -> None:
    """The job's data, the real runtime and the metric give, to the last digit, what plain NumPy and ONNX Runtime do."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    job = load_job(
        {
            "version": 1,
            "name": "n",
            "model": {"path": "resnet20.onnx"},
            "data": {
                "calibration": {"path": "train.npz", "limit": 2},
                "search": {"path": "val.npz", "slice": [300, 700]},
                "final": {"path": "val.npz", "slice": [700, 702]},
                "inputs": {"input": {"from": "x", "layout": "NHWC->NCHW", "scale": 255, "mean": mean, "std": std}},
                "target": "y",
            },
            "metric": {"name": "accuracy"},
            "hardware": "h",
        },
        bench / "cifar10",
    )
    session = open_session(job.model_path)
    split = load_split(job, "search", input_specs(session))
    scored = resolve_metric(job)(run_batches(session, split.inputs, job.data.batch), split.targets)

    archive = np.load(bench / "cifar10" / "val.npz")
    x, y = archive["x"][300:700], archive["y"][300:700]
    x = ((x.astype("f4") / 255 - np.array(mean, "f4")) / np.array(std, "f4")).transpose(0, 3, 1, 2)
    batches = [np.ascontiguousarray(x[start : start + 100]) for start in range(0, 400, 100)]
    logits = np.concatenate([session.run(None, {"input": batch})[0] for batch in batches])
    assert scored == float((logits.argmax(-1) == y).mean())
    assert 0.8 < scored < 0.95
