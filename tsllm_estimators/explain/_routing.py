"""What the routers of D-LoRA choose."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from tsllm_estimators._validate import check_choice
from tsllm_estimators.adapters.routing import (
    MAX_COMMONEST,
    RoutingRecord,
    Usage,
    record_routing,
)
from tsllm_estimators.explain._windows import in_batches, model_of, network_and_windows


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
        If the estimator is not fitted, has no router or uses covariates, or if the series is
        shorter than a context.

    Notes
    -----
    Source: Time-LlaMA (arXiv 2502.13725), section 3.5.
    """
    check_choice("by", by, ("layer", "window", "epoch"))
    if by == "epoch":
        if series is not None:
            raise ValueError("series must be None with by='epoch': the training has its own.")
        history = model_of(estimator).training_summary.get("routing")
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


def _routing(estimator: Any, series: Any) -> RoutingRecord:
    """Return the decisions of the routers on windows of a series."""
    if not model_of(estimator).model.network.has_router:
        raise ValueError("estimator has no router to look at: it was made without one.")
    network, windows, _ = network_and_windows(estimator, series)
    with record_routing() as record:
        in_batches(network.eval(), windows)
    return record


def _usage_table(usage: Iterable[Usage], index: pd.Index) -> pd.DataFrame:
    rows = [{**used.shares, "entropy": used.entropy, "commonest": used.commonest} for used in usage]
    table = pd.DataFrame(rows, index=index)
    last = ["entropy", "commonest"]
    return table[[*table.columns.drop(last), *last]]
