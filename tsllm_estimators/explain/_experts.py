"""Which steps of the context drive which step of LeMoLE's forecast."""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tsllm_estimators.explain._intervention import forecast, shown_to_lemole
from tsllm_estimators.networks.base import Batch
from tsllm_estimators.networks.blocks import normalize_window

_OTHER = "other"
_IDENTIFIED = "There is one expert, and its share is identified, like those of the bands."
_NOT_IDENTIFIED = (
    "Shares of single experts are not identified: an expert of a long lookback also sees the steps "
    "of the shorter ones, so the same forecasts can be written with other shares. Two trainings "
    "may differ in by_expert and forecast alike. Read by_band: how much the steps of a band of the "
    "context contribute follows from the forecasts alone."
)


@dataclass(frozen=True, repr=False)
class ExpertContributions:
    """What LeMoLE's forecast is made of, by band of the context and by expert.

    Attributes
    ----------
    by_band : pandas.DataFrame
        One row for each step of the horizon, from 1, and one column for each band of the context,
        between neighbouring lookbacks: ``"1-42 back"`` are the last 42 steps. Shares of the mean
        absolute contribution to the point forecast; each row sums to 1. ``"other"`` is what does
        not depend on the values of the context: biases, covariates and shifts by texts.
    by_expert : pandas.DataFrame
        The same by expert, named after its lookback. **Not identified**, see ``note``.
    identified : bool
        Whether ``by_expert`` follows from the forecasts, which it does for a single expert only.
    note : str
        What may be read from the two tables, and what not.
    """

    by_band: pd.DataFrame
    by_expert: pd.DataFrame
    identified: bool
    note: str

    def __repr__(self) -> str:
        title = "by_expert" if self.identified else "by_expert (not identified)"
        titles = {"by_band": self.by_band, title: self.by_expert}
        tables = [
            f"{name}\n{table.round(3).to_string(max_rows=12)}" for name, table in titles.items()
        ]
        return "\n\n".join([*tables, self.note])


def expert_contributions(
    estimator: Any,
    series: Any = None,
    X: Any = None,
    past_covariates: Any = None,
    future_covariates: Any = None,
) -> ExpertContributions:
    """Measure how much each band of the context contributes to each step of LeMoLE's forecast.

    Experts, their mixture and the modulation are linear in the context, so the forecast of a window
    is a sum: of what the steps of each band contribute, and of what the context does not matter
    for. Contributions are measured without the level and the unit of the window, on the windows
    of a series with their own texts, and averaged over windows and variates.

    Parameters
    ----------
    estimator : LeMoLEModel or LeMoLEForecaster
        Fitted.
    series : darts TimeSeries or DataFrame, optional
        Series to look at, in the units of the training; by default the training series, with its
        covariates (of several instances in sktime the first one; darts keeps a single series).
    X : DataFrame, optional
        sktime: what was passed as X in the training, if anything, at the steps of ``series``.
    past_covariates, future_covariates : darts TimeSeries, optional
        darts: the same.

    Returns
    -------
    ExpertContributions
        Shares without a unit, and what they are worth.

    Raises
    ------
    ValueError
        If the estimator is no fitted LeMoLE, if the series has less points than a context and a
        horizon or other columns than the training, or if its covariates are missing.

    Notes
    -----
    Source: LeMoLE (arXiv 2412.00053), section on the mixture of linear experts.

    Contributions of opposite signs cancel in the forecast, not in the shares. With
    ``normalization="instance"`` the values of a window sum to 0, so that a constant added to all
    weights changes nothing; weights are taken to sum to 0, too. A band beyond the longest lookback
    then has a small share: through the level of the window.
    """
    shown = shown_to_lemole(estimator, series, X, past_covariates, future_covariates)
    tables: dict[str, dict[str, Tensor]] = {"bands": {}, "experts": {}}
    for batch in shown.batches:
        found = contributions(shown.network, batch)
        for kind, table in tables.items():
            for name, values in found[kind].items():
                table[name] = table.get(name, 0.0) + values.abs().mean(2).sum(0)
    by_band, by_expert = (_shares(table) for table in tables.values())
    identified = len(shown.network.lookbacks) == 1
    return ExpertContributions(
        by_band=by_band.rename_axis(columns="band"),
        by_expert=by_expert.rename_axis(columns="expert"),
        identified=identified,
        note=_IDENTIFIED if identified else _NOT_IDENTIFIED,
    )


@torch.no_grad()
def contributions(network: Any, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """Return what makes up the point forecast of each window, twice: by band and by expert.

    Parameters
    ----------
    network : LeMoLE
    batch : Batch

    Returns
    -------
    dict of dict of Tensor
        ``"bands"`` and ``"experts"``, contributions (b, H, c) by name. The sum of either is the
        forecast of the window without its level and unit.
    """
    experts, mixing = network.experts, network.mixing
    window, _ = normalize_window(batch.past_target, network.unit, network.config.normalization)
    nothing = torch.zeros_like(window)
    at_rest = experts(nothing, mixing)  # biases

    def of_mixture(mixture: Tensor) -> Tensor:
        return forecast(network, batch, {experts: lambda _: mixture})

    without = of_mixture(torch.zeros_like(at_rest))
    other = {_OTHER: of_mixture(at_rest)}
    bands = {
        name: of_mixture(experts(part, mixing) - at_rest) - without
        for name, part in _bands(network, window)
    }
    alone = {
        name: of_mixture(expert(window, mixing) - expert(nothing, mixing)) - without
        for name, expert in _alone(network)
    }
    return {"bands": bands | other, "experts": alone | other}


def _bands(network: Any, window: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the parts (b, L, c) of windows that lie between neighbouring lookbacks, by name."""
    length = window.shape[1]
    ends = sorted({*network.lookbacks, length})
    for start, end in zip([0, *ends], ends, strict=False):
        part = torch.zeros_like(window)
        steps = slice(length - end, length - start)
        part[:, steps] = window[:, steps]
        if network.config.normalization == "instance":
            # the weights' mean acts on the sum of a window, which is 0: any mean does the same
            part = part - part.mean(1, keepdim=True)
        yield (f"{start + 1}-{end} back" if end > start + 1 else f"{end} back"), part


def _alone(network: Any) -> Iterator[tuple[str, Any]]:
    """Yield experts of which only one has weights, by name."""
    lookbacks = network.lookbacks
    counts, seen = Counter(lookbacks), Counter[int]()
    for number, lookback in enumerate(lookbacks):
        seen[lookback] += 1
        expert = copy.deepcopy(network.experts)
        for other, weight in enumerate(expert.weights):
            if other != number:
                weight.zero_()
        name = f"last {lookback}" + (f" ({seen[lookback]})" if counts[lookback] > 1 else "")
        yield name, expert


def _shares(table: dict[str, Tensor]) -> pd.DataFrame:
    values = {name: column.numpy() for name, column in table.items()}
    found = pd.DataFrame(values)
    found.index = pd.RangeIndex(1, len(found) + 1, name="step")
    return found.div(found.sum(axis=1), axis=0).fillna(0.0)
