"""What texts, the calendar and static covariates do to LeMoLE's forecast."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from tsllm_estimators.explain._intervention import Shown, forecast, shown_to_lemole
from tsllm_estimators.networks.base import Batch

_MEASURES = ("gamma", "beta", "effect", "variation")


@torch.no_grad()
def modulation_table(
    estimator: Any,
    series: Any = None,
    X: Any = None,
    past_covariates: Any = None,
    future_covariates: Any = None,
) -> pd.DataFrame:
    """Measure how strongly texts, the calendar and static covariates modulate LeMoLE's forecast.

    Parameters
    ----------
    estimator, series, X, past_covariates, future_covariates
        As in :func:`expert_contributions`.

    Returns
    -------
    DataFrame
        One row for each step of the horizon, from 1. The first level of the columns is what
        modulates: ``"static"`` (description and static covariates), ``"dynamic"`` (calendar and
        texts together), and of the latter ``"calendar"`` and each of your columns of text, as
        ``"text:<name>"``. The second level is what is measured, means over windows and variates:

        - ``gamma``, of abs(gamma - 1), without a unit, and ``beta``, of abs(beta): the modulation
          itself;
        - ``effect``, the absolute change of the point forecast when this modulation is neutral;
        - ``variation``, the same when it has its mean over the windows instead.

        Like beta, the latter two are in the unit in which the network sees a window: the
        deviation of the window with ``normalization="instance"``, else that of the training data.

    Raises
    ------
    ValueError
        As :func:`expert_contributions`, and if nothing modulates the forecast: ``text="none"``
        without static covariates.

    Notes
    -----
    Source: LeMoLE (arXiv 2412.00053), section on the conditioning by texts.

    Only ``variation`` says that it matters which text there is. A modulation that is the same for
    all windows (one description) has effect, but no variation: it could as well be a part of the
    experts. ``gamma`` and ``beta`` are what the last convolution is given, and it may ignore them.
    """
    shown = shown_to_lemole(estimator, series, X, past_covariates, future_covariates)
    network, sources = shown.network, _sources(shown)
    if not sources:
        raise ValueError(
            "estimator has nothing that modulates its forecast: text='none' and no static "
            "covariates."
        )
    n_windows = sum(len(batch.past_target) for batch in shown.batches)
    means: dict[nn.Module, Tensor] = {}
    for batch in shown.batches:
        for module, values in _modulations(network, batch, sources).items():
            total = values.mean(1, keepdim=True) * (len(batch.past_target) / n_windows)
            means[module] = means[module] + total if module in means else total

    found: dict[tuple[str, str], Tensor] = {}
    for batch in shown.batches:
        share = len(batch.past_target) / n_windows
        told, as_it_is = _modulations(network, batch, sources), forecast(network, batch)
        for name, modules in sources.items():
            strength = torch.stack([told[module] for module in modules]).sum(0)
            gamma, beta = _of_location(network, strength).abs().mean((1, 2))
            neutral = forecast(network, batch, dict.fromkeys(modules, torch.zeros_like))
            constant = forecast(network, batch, {m: _constant(means[m]) for m in modules})
            changes = [(as_it_is - other).abs().mean((0, 2)) for other in (neutral, constant)]
            for measure, values in zip(_MEASURES, [gamma, beta, *changes], strict=True):
                found[name, measure] = found.get((name, measure), 0.0) + share * values
    table = pd.DataFrame({key: values.numpy() for key, values in found.items()})
    table.index = pd.RangeIndex(1, len(table) + 1, name="step")
    return table.rename_axis(columns=["modulation", "measure"])


def _sources(shown: Shown) -> dict[str, list[nn.Module]]:
    """Return which parts of the network modulate, by what they read."""
    network, sources = shown.network, {}
    if network.has_static:
        sources["static"] = [network.static]
    if network.has_dynamic:
        own = [*network.past_texts, *network.future_texts]
        past, future = (shown.text_columns[kind] for kind in ("past", "future"))
        # a column may be known of the past in one copy, and ahead in the other
        names = [f"{name} (past)" if name in future else name for name in past] + future
        sources["dynamic"] = [network.stamps, *own]
        sources["calendar"] = [network.stamps]
        sources |= {name: [module] for name, module in zip(names, own, strict=True)}
    return sources


def _modulations(
    network: Any, batch: Batch, sources: dict[str, list[nn.Module]]
) -> dict[nn.Module, Tensor]:
    """Return gamma - 1 and beta that each part gives for the windows of a batch."""
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, out: Tensor) -> Tensor:
        found[module] = out
        return out

    modules = {module for own in sources.values() for module in own}
    forecast(network, batch, {module: partial(keep, module) for module in modules})
    return found


def _constant(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda out: values.expand_as(out)


def _of_location(network: Any, modulation: Tensor) -> Tensor:
    """Return the part (2, b, c, H) of a modulation (2, b, c g, H) that the point forecast has."""
    group = network.groups[network.shapes.location]
    return modulation.unflatten(2, (-1, network.n_groups))[:, :, :, group]
