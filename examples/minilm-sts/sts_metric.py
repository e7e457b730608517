"""The metric of ``job.yaml``: how well the model orders sentence pairs by likeness."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr


def paired_cosine_spearman(outputs: dict[str, np.ndarray], targets: np.ndarray) -> float:
    """Spearman's rank correlation between cosine similarity and people's scores, in [-1, 1]; higher is better.

    ``outputs["sentence_embedding"]`` is float32 [2n, d], unit length; rows 2i and 2i+1 are the sentences of pair i.
    ``targets`` is float [2n] and gives each pair's score twice.
    """
    first, second = outputs["sentence_embedding"].reshape(len(targets) // 2, 2, -1).swapaxes(0, 1)
    similarity = np.einsum("nd,nd->n", first, second)
    return float(spearmanr(similarity, targets[::2]).statistic)
