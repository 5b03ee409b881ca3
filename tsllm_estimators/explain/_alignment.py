"""How near CALF's two modalities are to each other."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from tsllm_estimators.explain._windows import check_method, model_of, network_and_windows
from tsllm_estimators.llm.words import principal_words
from tsllm_estimators.networks.base import Batch

_LEVELS = (np.arange(256) + 0.5) / 256  # of the quantiles that stand for a distribution


@dataclass(frozen=True)
class Alignment:
    """How far CALF's two modalities are from each other.

    Attributes
    ----------
    distances : pandas.Series
        Wasserstein distance between the distributions of time tokens, text tokens and word
        embeddings, per dimension and averaged; text tokens should be nearer to the words than
        time tokens are.
    attention : pandas.DataFrame
        Cross attention of the match module, variates by principal words, mean over the windows;
        each row sums to 1.
    explained_variance : pandas.Series
        Share of the variance of the word embeddings per principal word.
    """

    distances: pd.Series
    attention: pd.DataFrame
    explained_variance: pd.Series


def alignment(estimator: Any, series: Any = None) -> Alignment:
    """Measure what CALF's match module does on the windows of a series.

    Parameters
    ----------
    estimator : CALFModel or CALFForecaster
        Fitted, with a textual branch (``output_weight`` or ``feature_weight`` above 0).
    series : darts TimeSeries or DataFrame, optional
        Series to look at, in the units of the training; by default the training series.

    Raises
    ------
    ValueError
        If the estimator is not fitted, has no textual branch or uses covariates, or if the series
        is shorter than a context.

    Notes
    -----
    Source: CALF (arXiv 2403.07300), sections on the cross-modal match module and the analysis of
    the modality gap.
    """
    check_method(model_of(estimator), "calf", "CALFModel or CALFForecaster")
    network, windows, names = network_and_windows(estimator, series)
    if not hasattr(network, "match"):
        raise ValueError(
            "estimator has no textual branch to look at: output_weight and feature_weight are 0."
        )
    with torch.no_grad():
        time, _ = network.eval().time_tokens(Batch(past_target=windows))
        text, attention = network.text_tokens(time, need_weights=True)
    words = network.load_backbone().word_embeddings  # before training, as the match module saw it
    parts = {"time tokens": time.flatten(0, 1), "text tokens": text.flatten(0, 1), "words": words}
    quantiles = {k: np.quantile(v.float().cpu().numpy(), _LEVELS, axis=0) for k, v in parts.items()}
    pairs = [("time tokens", "text tokens"), ("time tokens", "words"), ("text tokens", "words")]
    distances = {pair: np.abs(quantiles[pair[0]] - quantiles[pair[1]]).mean() for pair in pairs}
    n_words = attention.shape[-1]
    variance = principal_words(words, n_words).explained_variance.numpy()
    columns = pd.RangeIndex(n_words, name="principal word")
    return Alignment(
        distances=pd.Series(distances, name="Wasserstein distance"),
        attention=pd.DataFrame(
            attention.mean(0).cpu().numpy(), index=pd.Index(names, name="variate"), columns=columns
        ),
        explained_variance=pd.Series(variance, index=columns, name="explained variance"),
    )


def plot_alignment(found: Alignment, top: int = 30) -> Any:
    """Draw the distances, and the attention to the ``top`` most attended words."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.2), layout="constrained", width_ratios=[1, 2]
    )
    labels = ["\nto ".join(pair) for pair in found.distances.index]
    left.barh(labels, found.distances.to_numpy(), color="tab:blue")
    left.set(xlabel="Wasserstein distance", title="Distance of the distributions")
    shown = found.attention[found.attention.mean().nlargest(top).index]
    image = right.imshow(shown, aspect="auto", cmap="viridis")
    right.set_yticks(range(len(shown)), [str(name) for name in shown.index])
    right.set_xticks(range(len(shown.columns)), shown.columns, rotation=90, fontsize=7)
    right.set(xlabel="principal word", title="Cross attention")
    figure.colorbar(image, ax=right)
    return figure
