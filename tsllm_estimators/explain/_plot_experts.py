"""A picture of what drives LeMoLE's forecast."""

from typing import Any

import numpy as np
import pandas as pd

from tsllm_estimators.explain._experts import ExpertContributions


def plot_experts(found: ExpertContributions, modulation: pd.DataFrame | None = None) -> Any:
    """Draw what LeMoLE's forecast is made of, over the steps of the horizon.

    Parameters
    ----------
    found : ExpertContributions
        Of :func:`expert_contributions`.
    modulation : DataFrame, optional
        Of :func:`modulation_table`: adds what each modulation changes of the forecast.

    Returns
    -------
    matplotlib.figure.Figure
        The bands of the context large, single experts small, as their shares are not identified.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    n_below = 1 if modulation is None else 2
    figure = plt.figure(figsize=(9, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, n_below, height_ratios=[3, 2])
    main = figure.add_subplot(grid[0, :])
    _stack(main, found.by_band)
    main.set_title("Which steps of the context drive which step of the forecast")
    main.set_ylabel("share of contributions")

    below = figure.add_subplot(grid[1, 0])
    _stack(below, found.by_expert, alpha=1.0 if found.identified else 0.5)
    below.set_title("Experts" + ("" if found.identified else ": not identified"), fontsize=10)
    below.set_ylabel("share")
    if modulation is not None:
        right = figure.add_subplot(grid[1, 1])
        effects = modulation.xs("effect", axis=1, level="measure")
        varying = modulation.xs("variation", axis=1, level="measure")
        style = "o" if len(effects) == 1 else ""
        names = [str(name) for name in effects.columns]
        if not any(name.startswith("text:") for name in names):  # it is the calendar's
            names = [name for name in names if name != "dynamic"]
        for number, name in enumerate(names):
            color = f"C{number}"
            right.plot(effects.index, effects[name], f"{style}-", color=color, label=name)
            right.plot(varying.index, varying[name], f"{style}:", color=color)
        right.set_title("Change without a modulation (dotted: with its mean)", fontsize=10)
        right.set(xlabel="step of the forecast", ylabel="deviations", xlim=below.get_xlim())
        right.set_ylim(bottom=0)
        right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _stack(axes: Any, shares: pd.DataFrame, alpha: float = 1.0) -> None:
    """Stack shares over the steps, what is not of the context on top, in grey."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    *parts, _ = shares.columns
    colors = [*plt.get_cmap("viridis")(np.linspace(0.15, 0.9, len(parts))), "lightgrey"]
    edges = np.concatenate([shares.index - 0.5, shares.index[-1:] + 0.5])
    base = np.zeros(len(shares))
    for (name, column), color in zip(shares.items(), colors, strict=True):
        top = base + column.to_numpy()
        axes.stairs(top, edges, baseline=base, fill=True, color=color, alpha=alpha, label=name)
        base = top
    axes.set(xlabel="step of the forecast", xlim=edges[[0, -1]], ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    labels[-1] += ": texts, biases,\ncovariates" if alpha == 1.0 else ""
    axes.legend(handles[::-1], labels[::-1], fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
