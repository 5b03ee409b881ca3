"""What windows retrieve from LLM-TS Net's pool of prompts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from tsllm_estimators.explain._windows import (
    N_WINDOWS,
    check_method,
    model_of,
    network_and_windows,
)
from tsllm_estimators.networks.base import Batch
from tsllm_estimators.networks.retrieval import diversity, warn_of_collapse


@dataclass(frozen=True)
class PromptRetrievals:
    """What windows retrieve.

    Attributes
    ----------
    prompts : DataFrame
        Places in the pool, the best first: a row for each window and
        series, a column for each of the K ranks.
    weights : DataFrame
        Their weights, of the same shape; a row sums to 1.
    use : Series
        Share of each of the W entries in all that was retrieved.
    diversity : float
        Exponential of the entropy of ``use`` over W: 1 if all entries are retrieved alike, 1 / W
        if it is only one.
    """

    prompts: pd.DataFrame
    weights: pd.DataFrame
    use: pd.Series
    diversity: float


def prompt_retrievals(estimator: Any, series: Any = None) -> PromptRetrievals:
    """Return which prompts each window of a series retrieves.

    Parameters
    ----------
    estimator : LLMTSNetModel or LLMTSNetForecaster
        Fitted, with ``prompts=True``.
    series : darts TimeSeries or DataFrame, optional
        Series to look at, in the units of the training; by default the training series. As many
        as 256 of its windows, evenly spread, are looked at.

    Returns
    -------
    PromptRetrievals

    Raises
    ------
    ValueError
        If the estimator is no fitted LLM-TS Net or has no prompts, or if the series is shorter
        than a context.

    Warns
    -----
    PromptCollapseWarning
        If nearly every window retrieves the same entries.

    Notes
    -----
    Source: LLM-TS Net (arXiv 2408.14387), dynamic prompting. Covariates are no part of what is
    looked up.
    """
    model = model_of(estimator)
    check_method(model, "llm_ts_net", "LLMTSNetModel or LLMTSNetForecaster")
    if not model.model.network.config.prompts:
        raise ValueError("estimator has no prompts to look at: it was made with prompts=False.")
    network, windows, columns = network_and_windows(estimator, series, target_only=True)
    with torch.no_grad():
        found = [network.eval().retrieve(Batch(past_target=w)) for w in windows.split(N_WINDOWS)]
    indices = torch.cat([one.indices for one in found])  # (n, c, K)
    weights = torch.cat([one.weights for one in found])
    use = network.pool.use(indices)
    warn_of_collapse(use, network.config.top_k)
    index = pd.MultiIndex.from_product([range(len(indices)), columns], names=["window", "series"])
    ranks = pd.RangeIndex(1, indices.shape[2] + 1, name="rank")
    return PromptRetrievals(
        prompts=pd.DataFrame(indices.flatten(0, 1).cpu().numpy(), index, ranks),
        weights=pd.DataFrame(weights.flatten(0, 1).float().cpu().numpy(), index, ranks),
        use=pd.Series(use.float().cpu().numpy(), name="use").rename_axis("prompt"),
        diversity=diversity(use),
    )


def plot_retrievals(found: PromptRetrievals) -> Any:
    """Draw which prompts are in use, and which one each window retrieves first.

    Parameters
    ----------
    found : PromptRetrievals
        Of :func:`prompt_retrievals`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    import matplotlib.pyplot as plt

    best = found.prompts[1].unstack("window", sort=False)  # series in their own order
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=[1, 2]
    )
    colors = plt.get_cmap("viridis")(np.linspace(0, 1, len(found.use)))
    left.bar(found.use.index, found.use, color=colors)
    left.axhline(1 / len(found.use), color="grey", linestyle="--")
    left.set(xlabel="prompt", ylabel="share of what is retrieved")
    left.set_title(f"Use of the pool: diversity {found.diversity:.2f}", fontsize=10)
    image = right.imshow(
        best, aspect="auto", cmap="viridis", vmin=0, vmax=len(found.use) - 1, interpolation="none"
    )
    if len(best) <= 20:
        right.set_yticks(range(len(best)), best.index)
    right.set(xlabel="window", ylabel="series")
    right.set_title("The prompt that a window retrieves first", fontsize=10)
    figure.colorbar(image, ax=right, label="prompt")
    return figure
