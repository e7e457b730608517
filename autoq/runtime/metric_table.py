"""The scikit-learn metrics that a job can name: what each reads of a model's output, and which direction is better.

A name is that of a function in :mod:`sklearn.metrics` (``log_loss``) or of a scikit-learn scorer (``f1_macro``,
``neg_log_loss``). Nothing here imports scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from autoq.core.objectives import Direction
from autoq.errors import MetricError
from autoq.spec.checking import nearest, show

Reads = Literal["labels", "scores", "probabilities", "values"]
"""labels: the arg-max over classes. scores: what ranks rows or classes. probabilities: of each class.
values: the output as it is (regression, relevance)."""

_TABLE: dict[tuple[Reads, Direction], str] = {
    ("labels", "maximize"): """
        accuracy_score balanced_accuracy_score f1_score fbeta_score precision_score recall_score jaccard_score
        matthews_corrcoef cohen_kappa_score adjusted_mutual_info_score adjusted_rand_score completeness_score
        fowlkes_mallows_score homogeneity_score mutual_info_score normalized_mutual_info_score rand_score
        v_measure_score""",
    ("labels", "minimize"): "hamming_loss zero_one_loss",
    ("scores", "maximize"): "roc_auc_score average_precision_score top_k_accuracy_score",
    ("probabilities", "maximize"): "d2_log_loss_score d2_brier_score",
    ("probabilities", "minimize"): "log_loss brier_score_loss",
    ("values", "maximize"): """
        r2_score explained_variance_score d2_absolute_error_score d2_pinball_score d2_tweedie_score
        ndcg_score dcg_score label_ranking_average_precision_score""",
    ("values", "minimize"): """
        max_error mean_absolute_error mean_absolute_percentage_error mean_gamma_deviance mean_pinball_loss
        mean_poisson_deviance mean_squared_error mean_squared_log_error mean_tweedie_deviance median_absolute_error
        root_mean_squared_error root_mean_squared_log_error coverage_error label_ranking_loss""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedMetric:
    """``sign * function(targets, read(outputs), **kwargs)``; ``function`` is a name in :mod:`sklearn.metrics`."""

    function: str
    reads: Reads
    direction: Direction
    sign: Literal[1, -1] = 1
    kwargs: dict[str, Any] = field(default_factory=dict)


def known_metrics() -> dict[str, NamedMetric]:
    """Every name a job can use."""
    return dict(_KNOWN)


def find_metric(name: str) -> NamedMetric:
    """The metric of that name; raises :class:`MetricError` with the nearest known name."""
    if name not in _KNOWN:
        raise MetricError(
            f"metric.name: no scikit-learn metric {show(name)}{nearest(name, _KNOWN)}. Known are scikit-learn's "
            "scorers and metric functions, such as accuracy, f1_macro, roc_auc, log_loss, r2, mean_squared_error; "
            "or give function: file.py:name"
        )
    return _KNOWN[name]


def _functions() -> dict[str, NamedMetric]:
    return {
        name: NamedMetric(function=name, reads=reads, direction=direction)
        for (reads, direction), names in _TABLE.items()
        for name in names.split()
    }


def _scorers() -> dict[str, NamedMetric]:
    """scikit-learn's scorers, whose names are made by rule: a score less its suffix, a loss negated, an average."""
    found: dict[str, NamedMetric] = {}
    for name, metric in _functions().items():
        if metric.direction == "maximize":
            found[name.removesuffix("_score")] = metric
        else:
            short = name.removesuffix("_loss") if name == "brier_score_loss" else name
            found[f"neg_{short}"] = NamedMetric(function=name, reads=metric.reads, direction="maximize", sign=-1)
    for name in ("f1", "precision", "recall", "jaccard"):
        for average in ("macro", "micro", "weighted", "samples"):
            found[f"{name}_{average}"] = NamedMetric(
                function=f"{name}_score", reads="labels", direction="maximize",
                kwargs={"pos_label": None, "average": average},
            )  # fmt: skip
    for scheme in ("ovr", "ovo"):
        for suffix, extra in (("", {}), ("_weighted", {"average": "weighted"})):
            found[f"roc_auc_{scheme}{suffix}"] = NamedMetric(
                function="roc_auc_score", reads="scores", direction="maximize", kwargs={"multi_class": scheme, **extra}
            )
    return found


_KNOWN = _functions() | _scorers()
