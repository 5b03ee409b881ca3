"""Look into fitted estimators of either face: tables first, plots on top."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from tsllm_estimators._validate import check_choice
from tsllm_estimators.adapters.routing import (
    MAX_COMMONEST,
    RoutingRecord,
    Usage,
    record_routing,
)
from tsllm_estimators.llm.prompts import PROMPT_KINDS, alter_prompt
from tsllm_estimators.llm.words import principal_words
from tsllm_estimators.networks.base import Batch

_WINDOWS = 256  # as many windows of the series, evenly spread, are looked at
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
        If the estimator has no textual branch or uses covariates, or if the series is shorter
        than a context.

    Notes
    -----
    Source: CALF (arXiv 2403.07300), sections on the cross-modal match module and the analysis of
    the modality gap.
    """
    network, windows, names = _network_and_windows(estimator, series)
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


def routing_table(estimator: Any, series: Any = None, by: str = "layer") -> pd.DataFrame:
    """Return what the routers of D-LoRA choose.

    Parameters
    ----------
    estimator : TimeLlamaModel or TimeLlamaForecaster
        Fitted, with ``adapter="dynalora"`` and a ``top_n``.
    series : darts TimeSeries or DataFrame, optional
        Series to look at, in the units of the training; by default the training series. Not for
        ``by="epoch"``, which looks at the training itself.
    by : {"layer", "window", "epoch"}
        One row for each layer; for each window and layer; or for each epoch of the last training
        and layer.

    Returns
    -------
    DataFrame
        One column for each module: by window whether it is on, else the share of the windows for
        which it is. By layer and epoch also ``entropy``, that of the activations among the
        modules in units of its largest value, and ``commonest``, the share of the windows with
        the commonest subset of modules.

    Raises
    ------
    ValueError
        If the estimator has no router or uses covariates, or if the series is shorter than a
        context.

    Notes
    -----
    Source: Time-LlaMA (arXiv 2502.13725), section 3.5.
    """
    check_choice("by", by, ("layer", "window", "epoch"))
    if by == "epoch":
        if series is not None:
            raise ValueError("series must be None with by='epoch': the training has its own.")
        history = _model(estimator).training_summary.get("routing")
        if history is None:
            raise ValueError("estimator has no router to look at, or has not been trained.")
        modules, epochs = history["modules"], history["epochs"]
        rows = [
            (
                epoch,
                layer,
                Usage(dict(zip(modules[layer], numbers[:-2], strict=True)), *numbers[-2:]),
            )
            for epoch, layers in enumerate(epochs)
            for layer, numbers in layers.items()
        ]
        index = pd.MultiIndex.from_tuples([row[:2] for row in rows], names=["epoch", "layer"])
        return _usage_table([used for *_, used in rows], index)
    record = _routing(estimator, series)
    if by == "layer":
        usage = record.usage()
        return _usage_table(usage.values(), pd.Index(usage, name="layer"))
    modules = record.modules()
    tables = {
        layer: pd.DataFrame(on.cpu().numpy(), columns=list(modules[layer]))
        for layer, on in record.active().items()
    }
    found = (
        pd.concat(tables, names=["layer", "window"])
        .swaplevel()
        .sort_index(level="window", sort_remaining=False, kind="stable")
    )
    return found.rename_axis(columns="module")


def plot_routing(estimator: Any, series: Any = None) -> Any:
    """Draw which modules the routers choose, and how varied their choice was in each epoch.

    Parameters
    ----------
    estimator, series
        As in :func:`routing_table`.
    """
    import matplotlib.pyplot as plt

    found, history = routing_table(estimator, series), routing_table(estimator, by="epoch")
    shares = found.drop(columns=["entropy", "commonest"])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=[2, 1]
    )
    image = left.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares.to_numpy()):
        color = "black" if share > 0.6 else "white"
        left.text(column, row, f"{share:.2f}", ha="center", va="center", color=color, fontsize=8)
    left.set_yticks(range(len(shares)), shares.index)
    left.set_xticks(range(shares.shape[1]), shares.columns, rotation=30, ha="right", fontsize=8)
    left.set_title("Share of the windows for which a module is on")
    figure.colorbar(image, ax=left)
    style = "o-" if history.index.get_level_values("epoch").nunique() < 30 else "-"
    for layer, rows in history.groupby("layer", sort=False):
        right.plot(rows.index.get_level_values("epoch"), rows["commonest"], style, label=layer)
    right.axhline(MAX_COMMONEST, color="grey", linestyle="--")
    right.set(xlabel="epoch", ylim=(0, 1), title="Share of the commonest subset")
    right.legend(fontsize=7)
    return figure


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
        If the estimator has no prompt or uses covariates, or if the series is too short.

    Notes
    -----
    Source: Time-LlaMA (arXiv 2502.13725), the questions its ablation leaves open.
    """
    network, windows, _ = _network_and_windows(estimator, series, with_target=True)
    if not network.prompts():
        raise ValueError("estimator has no prompt to change: it was made without one.")
    network = copy.deepcopy(network).eval()
    real, length = network.prompt, network.shapes.context_length
    n_words = len(network.prompt_words)

    def forecast(kind: str) -> torch.Tensor:
        network.set_prompt(alter_prompt(real, kind, seed))
        if kind == "gibberish":  # which has more tokens than words
            network.prompt_words = network.prompt_words[:n_words]
        parameters = _in_batches(network, windows[:, :length])
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


def _routing(estimator: Any, series: Any) -> RoutingRecord:
    """Return the decisions of the routers on windows of a series."""
    network, windows, _ = _network_and_windows(estimator, series)
    with record_routing() as record:
        _in_batches(network.eval(), windows)
    if not record.decisions:
        raise ValueError("estimator has no router to look at: it was made without one.")
    return record


def _usage_table(usage: Iterable[Usage], index: pd.Index) -> pd.DataFrame:
    rows = [{**used.shares, "entropy": used.entropy, "commonest": used.commonest} for used in usage]
    table = pd.DataFrame(rows, index=index)
    last = ["entropy", "commonest"]
    return table[[*table.columns.drop(last), *last]]


@torch.no_grad()
def _in_batches(network: Any, windows: torch.Tensor) -> torch.Tensor:
    """Return the parameters (b, H, c, p) that a network forecasts for windows (b, L, c)."""
    batches = [network(Batch(past_target=batch)).parameters for batch in windows.split(_WINDOWS)]
    return torch.cat(batches)


def _model(estimator: Any) -> Any:
    """Return the darts model of an estimator of either face."""
    return estimator._explainable(None)[0] if hasattr(estimator, "_engine") else estimator


def _network_and_windows(
    estimator: Any, series: Any, with_target: bool = False
) -> tuple[Any, torch.Tensor, Sequence[Any]]:
    """Return the network of an estimator of either face and windows (b, L, c) of a series.

    With targets, windows go on over the horizon.
    """
    if hasattr(estimator, "forecasters_"):
        raise ValueError(
            "estimator holds one forecaster for each series (broadcasting): look at one of its "
            "forecasters_."
        )
    if hasattr(estimator, "_engine"):
        model, values, names = estimator._explainable(series)
    else:
        model, series = estimator, estimator.training_series if series is None else series
        if series is None:
            raise ValueError("series must be given: the model has not kept a single one.")
        values, names = series.values(), list(series.components)
    network = model.model.network
    if network.covariates.n_tokens:
        raise ValueError(
            "estimator uses covariates, explain looks at models without; fit one on the target."
        )
    shapes = network.shapes
    length = shapes.context_length + (shapes.horizon if with_target else 0)
    if len(values) < length:
        raise ValueError(f"series must have {length} points or more, found {len(values)}.")
    windows = np.lib.stride_tricks.sliding_window_view(values, length, axis=0)
    windows = windows[:: max(1, len(windows) // _WINDOWS)].transpose(0, 2, 1)
    parameter = next(network.parameters())
    return network, torch.tensor(windows.copy()).to(parameter), names
