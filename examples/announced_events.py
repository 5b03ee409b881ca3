r"""Forecast a shop whose demand moves with announced events, of which only words tell.

    python examples/announced_events.py

Makes the daily demand of a shop, in which sales, coupons, festivals, road works and strikes come
at irregular dates; all that is known of them is what their announcements say. Fits LeMoLE with the
announcements and with controls in their place, and backtests each on 40 weeks, in which half of
the announcements are worded as none was in the training. Then asks what the forecast would be if
another text were announced. Prints a table and draws a picture. The figures of five shops are in
``docs/results/announced_events.json``:

    python examples/announced_events.py --seeds 1 2 3 4 5 \
        --results docs/results/announced_events.json --output docs/images/announced_events.png
"""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from tsllm_estimators import LeMoLEForecaster

# sktime 1.2 warns of a coming default of its own
logging.captureWarnings(True)
logging.getLogger("py.warnings").setLevel(logging.ERROR)

#: Effect on a day's demand, how it is worded in the training, and how it is worded only later.
EVENTS = {
    "clearance sale": (
        0.6,
        [
            "Clearance sale, everything at half price",
            "Closing-out sale: 50 % off all items",
            "Big clearance, prices cut in half",
            "Half-price days on the whole range",
            "Huge sale, all prices reduced by 50 %",
            "Everything must go: half price on all goods",
        ],
        [
            "All goods cost half of what they used to",
            "Massive price cuts, the warehouse is being emptied",
            "Bargain days, 50 percent discount on everything in the store",
        ],
    ),
    "coupons": (
        0.25,
        [
            "10 % coupon in the local newspaper",
            "Small discount for customers with a coupon",
            "Coupon days, 10 % off one item",
            "Vouchers for a small rebate were sent to regular customers",
            "Loyalty card holders get a small discount",
            "A modest discount with the voucher from the newspaper",
        ],
        [
            "Regular customers receive a ten percent voucher",
            "Small rebate for members of the loyalty programme",
            "Newspaper coupon: a little off one purchase",
        ],
    ),
    "festival": (
        0.4,
        [
            "Street festival in the town centre",
            "Music festival on the market square",
            "Christmas market next to the shop",
            "Town fair with a parade",
            "Open-air concert downtown",
            "Carnival parade through the old town",
        ],
        [
            "Thousands of visitors expected at the city fair",
            "Folk festival with live bands downtown",
            "The town celebrates with stalls, music and fireworks",
        ],
    ),
    "road works": (
        -0.35,
        [
            "Road works in front of the shop",
            "The main street is closed for repairs",
            "Construction site blocks the access road",
            "Street closed because of a burst water pipe",
            "Roadworks: diversion around the town centre",
            "The car park is closed for construction",
        ],
        [
            "Access only by a detour, the road is being resurfaced",
            "Parking area blocked by construction work",
            "The street outside is dug up to lay new cables",
        ],
    ),
    "strike": (
        -0.55,
        [
            "Strike of the shop's staff, only one till is open",
            "Public transport strike, no buses and trams",
            "Walkout of the employees, short opening hours",
            "The union calls a one-day strike in retail",
            "Bus drivers on strike",
            "General strike in the city",
        ],
        [
            "Workers stop work, few tills are staffed",
            "Industrial action: buses and trams stay in the depot",
            "Employees walk out over pay",
        ],
    ),
}
CONTEXT, HORIZON = 28, 7
TRAIN, TEST = 1092, 280  # days
WHAT_IF = {
    "nothing": "",
    "a festival": "Music festival on the market square",
    "a sale": "Huge sale, all prices reduced by 50 %",
    "a strike": "Bus drivers on strike",
}

#: What is told, and arguments of the forecaster. The learning rate is that of a short training.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "announcements": ("announced", {}),
    "... as hashed words": ("announced", {"text_encoder": "hash"}),
    "... as learned words": ("announced", {"text_encoder": "learned"}),
    "... all worded alike": ("alike", {}),
    "... shuffled in time": ("shuffled", {}),
    'text="calendar"': ("announced", {"text": "calendar"}),
    'text="none"': ("announced", {"text": "none"}),
}
SETTINGS: dict[str, Any] = {
    "context_length": CONTEXT,
    "description": "Customers per day of a shop in the town centre",
    "lr": 5e-3,
}


def shop(
    seed: int, n_train: int = TRAIN, n_test: int = TEST, share_new: float = 0.5
) -> tuple[pd.Series, pd.DataFrame, pd.DataFrame]:
    """Return a shop's daily demand, its announcements, and what they stand for.

    Demand is a level that grows and drifts, times a weekly profile, times what the day's event
    does to it; noise has a deviation of 5 % of the level. An event lasts one to three days, and
    the next begins 3 to 18 days later. After the training, a share of them is worded anew.

    Returns
    -------
    demand : Series
        Customers per day.
    announcements : DataFrame
        Column ``announcement``: the text of each day, empty where nothing is on.
    truth : DataFrame
        Columns ``effect`` and ``new``: whether no announcement of the training is worded so.
    """
    rng = np.random.default_rng(seed)
    n_days = n_train + n_test
    text = np.full(n_days, "", dtype=object)
    effect, is_new = np.zeros(n_days), np.zeros(n_days, dtype=bool)
    day = int(rng.integers(3, 19))
    while day < n_days - 3:
        size, known, new = EVENTS[str(rng.choice(list(EVENTS)))]
        event = slice(day, day + int(rng.integers(1, 4)))
        is_new[event] = told_anew = day >= n_train and rng.random() < share_new
        text[event] = str(rng.choice(new if told_anew else known))
        effect[event] = size * rng.uniform(0.85, 1.15)
        day = event.stop + int(rng.integers(3, 19))
    weekly = np.resize([0.95, 0.9, 0.95, 1.0, 1.15, 1.35, 0.7], n_days)
    level = 400 * np.exp(rng.normal(0.0002, 0.004, n_days).cumsum())
    demand = level * (weekly * (1 + effect) + rng.normal(0, 0.05, n_days))
    days = pd.period_range("2022-01-03", periods=n_days, freq="D")
    return (
        pd.Series(demand.round(), days, name="customers"),
        pd.DataFrame({"announcement": text}, days),
        pd.DataFrame({"effect": effect, "new": is_new}, days),
    )


def told(kind: str, X: pd.DataFrame, n_train: int, seed: int) -> pd.DataFrame:
    """Return the announcements, or in their place the same text for each, or shuffled ones."""
    if kind == "alike":
        return X.where(X == "", "An event")
    if kind == "shuffled":
        parts = [X[:n_train], X[n_train:]]  # so that the training sees no new wording
        shuffled = pd.concat([part.sample(frac=1, random_state=seed) for part in parts])
        return shuffled.set_axis(X.index)
    return X


def backtest(
    forecaster: LeMoLEForecaster, y: pd.Series, X: pd.DataFrame, n_train: int
) -> pd.Series:
    """Fit once, on the first days; return the forecasts of the weeks after, one after another."""
    forecaster.fit(y[:n_train], X=X[:n_train], fh=list(range(1, HORIZON + 1)))
    weeks = []
    for begin in range(n_train, len(y), HORIZON):
        week = slice(begin, begin + HORIZON)
        weeks.append(forecaster.predict(X=X[week]))
        forecaster.update(y[week], X=X[week], update_params=False)
    return pd.concat(weeks)


def errors(y: pd.Series, forecast: pd.Series, truth: pd.DataFrame) -> dict[str, float]:
    """Return mean squared errors of weeks with an event and without, and of days of events."""
    squares = (forecast - y[forecast.index]).to_numpy() ** 2
    effect, is_new = truth.loc[forecast.index].to_numpy().T
    event = effect != 0
    weeks = event.reshape(-1, HORIZON).any(1).repeat(HORIZON)
    parts = {
        "weeks with events": weeks,
        "other weeks": ~weeks,
        "days, known wording": event & (is_new == 0),
        "days, new wording": event & (is_new == 1),
    }
    return {name: float(squares[part].mean()) for name, part in parts.items()}


def what_if(
    forecaster: LeMoLEForecaster, X_future: pd.DataFrame, step: int | list[int], text: str
) -> pd.Series:
    """Return the forecast if at a step, or at several, another text were announced."""
    X_future = X_future.copy()
    X_future.iloc[step, 0] = text
    return forecaster.predict(X=X_future)


def ask(
    forecaster: LeMoLEForecaster, y: pd.Series, X: pd.DataFrame, truth: pd.DataFrame
) -> tuple[dict[str, pd.Series], list[int]]:
    """Return forecasts around the first event with a new wording, and at which steps it is on.

    They begin two days before it, from a forecaster that has seen all before them: one of what was
    announced, and one for each other text.
    """
    begin = int(truth["new"].argmax()) - 2
    week = X[begin : begin + HORIZON]
    steps = np.flatnonzero(week["announcement"] == week["announcement"].iloc[2]).tolist()
    forecaster.fit(y[:begin], X=X[:begin], fh=list(range(1, HORIZON + 1)))
    forecasts = {"announced": forecaster.predict(X=week)}
    for name, text in WHAT_IF.items():
        forecasts[name] = what_if(forecaster, week, steps, text)
    return forecasts, steps


def draw(
    y: pd.Series, X: pd.DataFrame, forecasts: dict[str, pd.Series], table: pd.DataFrame, path: Path
) -> None:
    """Draw what was asked, and the errors of each run."""
    first = forecasts["announced"].index[0]
    days = pd.period_range(first - 2 * HORIZON, first + HORIZON - 1)
    announced = X["announcement"][days]
    labels = [f"forecast: “{announced[first + 2]}”"]
    labels += [f"what if: “{text}”" if text else "what if: nothing" for text in WHAT_IF.values()]
    plt.switch_backend("agg")  # no window
    figure, axes = plt.subplot_mosaic(
        [["asked", "asked"], ["weeks with events", "days, new wording"]],
        figsize=(9, 7),
        height_ratios=[1.2, 1],
        layout="constrained",
    )
    top, half = axes["asked"], pd.Timedelta(hours=12)
    for day in announced.index[announced != ""].to_timestamp():
        top.axvspan(day - half, day + half, 0, 0.64, color="tab:blue", alpha=0.1, lw=0)
    top.axvline(first.to_timestamp() - half, 0, 0.64, color="0.6", lw=1, ls=":")
    top.plot(days.to_timestamp(), y[days], color="0.2", marker="o", ms=3.5, label="customers")
    colours = ["tab:orange", "0.6", "tab:purple", "tab:green", "tab:red"]
    for (name, forecast), colour, label in zip(forecasts.items(), colours, labels, strict=True):
        style = {"lw": 2.5} if name == "announced" else {"ls": "--", "lw": 1.4, "zorder": 1}
        top.plot(forecast.index.to_timestamp(), forecast, color=colour, label=label, **style)
    top.set(ylabel="customers per day", title="An announcement in words that the training lacks")
    top.xaxis.set_major_formatter(mdates.DateFormatter("%d %b"))
    low, high = top.get_ylim()
    top.set(xlim=(days[0].to_timestamp() - half, days[-1].to_timestamp() + half))
    top.set_ylim(low, high + 0.55 * (high - low))  # for the legend
    top.legend(loc="upper left", frameon=False, fontsize=9)
    top.text(0.01, 0.02, "blue: days with an event", transform=top.transAxes, color="tab:blue")
    for name in ("weeks with events", "days, new wording"):
        panel = axes[name]
        colours = ["tab:orange", *["0.75"] * (len(table) - 1)]
        bars = panel.barh(table.index, table[name], color=colours)
        panel.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=9)
        panel.invert_yaxis()
        panel.margins(x=0.18)
        panel.set(xticks=[], title=f"MSE: {name}")
        panel.spines["bottom"].set_visible(False)
    axes["days, new wording"].set_yticks([])
    for panel in axes.values():
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def store(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add the rows that are not there yet to a file of results."""
    sys.path.append(str(Path(__file__).parent / "benchmarks"))
    from _store import Results

    results = Results(path)
    for row in rows:
        key = {name: row[name] for name in ("run", "seed", "told", "settings")}
        if key not in results:
            results.add(key, {"mse": row["mse"]})


def main(arguments: list[str] | None = None) -> tuple[pd.DataFrame, dict[str, pd.Series]]:
    """Run everything; print and return the table, and return what was asked for the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    output = Path(__file__).parent / "output" / "announced_events.png"
    parser.add_argument("--output", type=Path, default=output, help="where to write the picture")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="one shop for each")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--results", type=Path, help="a JSON file to store the errors in")
    parser.add_argument("--small", action="store_true", help="few days and steps, hashed words")
    options = parser.parse_args(arguments)
    settings, n_train, n_test, share_new = SETTINGS, TRAIN, TEST, 0.5
    if options.small:
        settings = {**SETTINGS, "text_encoder": "hash", "max_steps": 150}
        n_train, n_test, share_new = 728, 140, 0.2

    begin = time.perf_counter()
    shops = {seed: shop(seed, n_train, n_test, share_new) for seed in options.seeds}
    rows = []
    for run in options.runs:
        kind, changes = RUNS[run]
        for seed, (y, X, truth) in shops.items():
            forecaster = LeMoLEForecaster(**{**settings, **changes}, random_state=seed)
            forecast = backtest(forecaster, y, told(kind, X, n_train, seed), n_train)
            row = {"run": run, "seed": seed, "told": kind, "settings": {**settings, **changes}}
            rows.append({**row, "mse": errors(y, forecast, truth)})
    if options.results:
        store(options.results, rows)
    table = pd.DataFrame([row["mse"] for row in rows], [row["run"] for row in rows])
    table = table.groupby(level=0, sort=False).mean()
    print(f"mean squared errors, mean of {len(shops)} shops")
    print(table.to_string(float_format="{:,.0f}".format))

    y, X, truth = shops[options.seeds[0]]
    forecaster = LeMoLEForecaster(**settings, random_state=options.seeds[0])
    forecasts, steps = ask(forecaster, y, X, truth)
    days = forecasts["announced"].index[steps]
    text = X["announcement"][days[0]]
    print(f"\nannounced for {len(days)} days from {days[0]}, not worded so before: {text!r}")
    means = {name: forecast[days].mean() for name, forecast in forecasts.items()}
    print(f"customers per day: forecast {means.pop('announced'):.0f}, came {y[days].mean():.0f}")
    print("what if there were", ", ".join(f"{name}: {mean:.0f}" for name, mean in means.items()))
    draw(y, X, forecasts, table, options.output)
    print(f"picture: {options.output}, {time.perf_counter() - begin:.0f} s in all")
    return table, forecasts


if __name__ == "__main__":
    main()
