"""What forecasts owe to the words of a prompt."""

import copy
from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch

from tsllm_estimators.explain._windows import in_batches, model_of, network_and_windows
from tsllm_estimators.llm.prompts import PROMPT_KINDS, alter_prompt


def prompt_sensitivity(
    estimator: Any, series: Any = None, kinds: Iterable[str] = PROMPT_KINDS, seed: int = 0
) -> pd.DataFrame:
    """Measure what a fitted estimator's forecasts owe to the words of its prompt.

    The estimator forecasts windows of a series as trained, and again with its prompt left empty,
    replaced by gibberish of as many word embeddings, and with its words shuffled. Where the errors
    are alike, the prompt's meaning does nothing. Cross attention to words knows no order: there the
    shuffled prompt is the real one, unlike in ``alignment="concat"``.

    Parameters
    ----------
    estimator : TimeLlamaModel or TimeLlamaForecaster
        Fitted, with a prompt (``alignment`` other than ``"none"``).
    series : darts TimeSeries or DataFrame, optional
        Series to forecast, in the units of the training; by default the training series, whose
        errors are those of a fit.
    kinds : iterable of {"real", "empty", "gibberish", "shuffled"}
        Which prompts to try.
    seed : int
        Seed of the gibberish and of the order.

    Returns
    -------
    DataFrame
        One row for each kind: ``mae`` and ``mse`` of the point forecast and ``change``, its mean
        absolute difference from that of the real prompt, in the units in which the model sees the
        series, and ``words``, the number of word embeddings of the prompt.

    Raises
    ------
    ValueError
        If the estimator is not fitted, has no prompt to change (LeMoLE's texts are looked at with
        :func:`modulation_table`) or uses covariates, or if the series is too short.

    Notes
    -----
    Source: Time-LlaMA (arXiv 2502.13725), the questions its ablation leaves open.
    """
    network = model_of(estimator).model.network
    if not hasattr(network, "set_prompt") or not network.prompts():
        raise ValueError("estimator has no prompt to change: it was made without one.")
    network, windows, _ = network_and_windows(estimator, series, with_target=True)
    network = copy.deepcopy(network).eval()
    real, length = network.prompt, network.shapes.context_length
    n_words = len(network.prompt_words)

    def forecast(kind: str) -> torch.Tensor:
        network.set_prompt(alter_prompt(real, kind, seed))
        if kind == "gibberish":  # which has more tokens than words
            network.prompt_words = network.prompt_words[:n_words]
        parameters = in_batches(network, windows[:, :length])
        return parameters[..., network.shapes.location]

    expected, target, rows = forecast("real"), windows[:, length:], {}
    for kind in kinds:
        found = forecast(kind)
        error = (found - target).cpu().double()
        rows[kind] = {
            "mae": error.abs().nanmean().item(),
            "mse": error.square().nanmean().item(),
            "change": (found - expected).abs().mean().item(),
            "words": len(network.prompt_words),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("prompt")
