"""What the network is shown: one that counts on, and what must hold of the windows it saw.

Series count their own steps, from 1000 times their number on, so that each window tells which
steps of which series it is about, however it came about.
"""

from dataclasses import dataclass

import pandas as pd
import torch

from tsllm_estimators.llm.vocabulary import POSITION
from tsllm_estimators.networks.base import Forecast

L, H = 4, 3  # context and horizon


@dataclass
class Window:
    """What the network was told of a window; ``end`` is the last step of its context."""

    series: int
    end: int
    trained: bool
    stamps: list
    description: str | None
    past: list
    future: list


class Spy:
    """Stands in for the network's ``forward``."""

    shift = 0  # steps between the context and the forecast

    def __init__(self):
        self._windows = []

    def of(self, action):
        """Return what ``action`` returns, and the windows that it showed."""
        self._windows = []
        result = action()
        assert self._windows
        return result, self._windows

    def forward(self, network, batch):
        """Take down what the batch says, and count on from its last value."""
        said = [None, *(network.texts.vocabulary.entries if network.config.texts_read else ())]

        def read(codes, row):
            return [] if codes is None else [said[code] for code in codes[row].tolist()]

        def columns(codes, row):
            return (
                [] if codes is None else [[said[c] for c in one.tolist()] for one in codes[row].T]
            )

        last = batch.past_target[:, -1:]
        for row, value in enumerate(last[:, 0, 0].tolist()):
            description = None if batch.static_texts is None else said[batch.static_texts[row]]
            self._windows.append(
                Window(
                    *divmod(round(value), 1000),
                    network.training,
                    read(batch.stamps, row),
                    description,
                    columns(batch.past_texts, row),
                    columns(batch.future_texts, row),
                )
            )
        steps = torch.arange(1, 1 + network.shapes.horizon).to(last).unsqueeze(1)
        counted = last + steps + self.shift + 0 * sum(p.sum() for p in network.parameters())
        return Forecast(counted.unsqueeze(-1).repeat(1, 1, 1, len(network.shapes.parameters)))


def says(stamp, time):
    """Return whether a stamp says something of a time, and nothing wrong."""
    week = time.isocalendar()
    names = ("year", "quarter", "month", "day", "hour", "minute", "second")
    true = {name: getattr(time, name) for name in names}
    true |= {"week": week.week, "weekday": time.weekday()}
    said = {name: value for name, value in stamp._asdict().items() if value is not None}
    if "week" in said:
        true["year"] = week.year
    return bool(said) and said.items() <= true.items()


def check(windows, times, shift=0, foreseen=None):
    """Assert that all that windows are told is true; return which they are about.

    Parameters
    ----------
    windows : list of Window
    times : index, or a list or dict of one for each series
    shift : int
        Steps between the context and the forecast.
    foreseen : int, optional
        The last step that was observed: after it, texts of the past are empty.

    Returns
    -------
    list of tuple
        The distinct (series, last step of the context).
    """
    for one in windows:
        own = times[one.series] if isinstance(times, list | dict) else times
        context = range(one.end + 1 - L, one.end + 1)
        ahead = range(one.end + 1 + shift, one.end + 1 + shift + H)
        for stamp, step in zip(one.stamps[L:], ahead, strict=True):
            if isinstance(own, pd.DatetimeIndex | pd.PeriodIndex):
                time = own[step] if isinstance(own, pd.DatetimeIndex) else own[step].start_time
                assert says(stamp, time), (one, step)
            else:
                assert stamp == POSITION, (one, step)
        for column in one.future:
            assert list(map(_number, column)) == [_known(p) for p in [*context, *ahead]], one
        last = one.end if foreseen is None else foreseen
        for column in one.past:
            assert list(map(_number, column)) == [_known(p) if p <= last else None for p in context]
    return sorted({(one.series, one.end) for one in windows})


def _number(text):
    return None if text is None else int(text.split()[1])


def _known(position):
    return None if position < 0 else position  # before a series that is too short


def ends(*ranges, number=0):
    """Return what :func:`check` returns of windows of one series with these last steps."""
    return sorted((number, end) for one in ranges for end in one)
