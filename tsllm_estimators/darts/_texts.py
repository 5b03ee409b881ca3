"""Texts beside darts' numbers: columns of codes, and the digits that datasets carry of them.

A covariate holds numbers, so a text is a code: of the process in the user's column (see
:func:`text_covariates`), of the network's vocabulary in what its batches hold. The latter is
written as digits below 128, which every precision holds exactly.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from darts import TimeSeries
from darts.utils.utils import generate_index, n_steps_between
from torch import Tensor

from tsllm_estimators._calendar import stamps_of
from tsllm_estimators.llm.vocabulary import (
    POSITION,
    Span,
    Vocabulary,
    column_codes,
    column_entries,
    column_texts,
)

PREFIX = "text:"
#: Columns of the sktime face, in place of a series' own calendar and description.
CALENDAR, DESCRIPTION = "calendar:stamps", "description:text"
_METADATA = "texts"
_BASE, _N_DIGITS = 128, 3


def text_covariates(
    texts: Iterable[str | None], times: Any, name: str = "text", dtype: Any = np.float32
) -> TimeSeries:
    """Return a covariate series whose values stand for texts.

    Pass it as ``future_covariates`` (known ahead: announced events, holidays, a weather forecast)
    or as ``past_covariates`` (known up to the start of the forecast), alone or stacked with other
    covariates. :func:`covariate_texts` reads it back.

    Parameters
    ----------
    texts : iterable of str
        One for each time; None, NaN and an empty text stand for no text.
    times : TimeSeries or index
        A series with the same times, or a DatetimeIndex or RangeIndex.
    name : str
        Name of the component, which becomes ``"text:<name>"``.
    dtype : numpy float type
        Of the values, that of the other covariates.

    Returns
    -------
    TimeSeries
        Integers below 2^24. The texts travel in its ``metadata``, which darts keeps when a series
        is cut or pickled, and loses when it is stacked behind another one: then only the process
        that made it knows them.

    Raises
    ------
    TypeError, ValueError
        If a text is none, there are not as many as times, or ``dtype`` is too coarse.

    Examples
    --------
    >>> import pandas as pd
    >>> from tsllm_estimators.darts import covariate_texts, text_covariates
    >>> days = pd.date_range("2026-05-01", periods=3)
    >>> events = text_covariates(["public holiday", "", "strike"], days, name="event")
    >>> list(events.components), covariate_texts(events, "event")
    (['text:event'], ['public holiday', '', 'strike'])
    """
    if isinstance(texts, str):
        raise TypeError(f"texts: expected a list of texts, found the text {texts!r}.")
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(
            f"dtype must be float32 or float64, found {np.dtype(dtype).name!r}, which cannot hold "
            "the codes of texts; a target of another precision takes them, too."
        )
    known = [_text(text, name, step) for step, text in enumerate(texts)]
    times = times.time_index if isinstance(times, TimeSeries) else times
    if len(known) != len(times):
        raise ValueError(f"texts: expected one for each of {len(times)} times, found {len(known)}.")
    codes = column_codes(known)
    return TimeSeries(
        times,
        codes[:, np.newaxis].astype(dtype),
        components=[PREFIX + name],
        metadata={_METADATA: {int(c): t for c, t in zip(codes, known, strict=True) if t}},
    )


def covariate_texts(series: TimeSeries, name: str = "text") -> list[str]:
    """Return the texts of a component that :func:`text_covariates` made, "" where there is none."""
    component = name if name.startswith(PREFIX) else PREFIX + name
    entries, positions = _column(series, component)
    return [str(entries[position] or "") for position in positions]


def _text(text: Any, name: str, step: int) -> str:
    if isinstance(text, str):
        return str(text)  # not a subclass, which darts would not load
    differs = text is None or text != text  # as NaN and NaT do; of pandas.NA it is pandas.NA
    if differs is not text and not (isinstance(differs, bool | np.bool_) and differs):
        raise TypeError(
            f"texts of {name!r}: expected a text or None, found {text!r} of type "
            f"{type(text).__name__} at step {step}."
        )
    return ""


def _column(series: TimeSeries, component: str) -> tuple[list[Hashable], np.ndarray]:
    codes = series[component].values(copy=False)[:, 0]
    return column_entries(component, codes, (series.metadata or {}).get(_METADATA, {}))


def is_text(component: str) -> bool:
    """Return whether a component stands for texts."""
    return component.startswith(PREFIX) or component in (CALENDAR, DESCRIPTION)


def text_columns(covariates: Sequence[TimeSeries] | None) -> list[str]:
    """Return the user's components of text, in order; all series have those of the first."""
    components = list(covariates[0].components) if covariates else []
    return [name for name in components if name.startswith(PREFIX)]


def has_texts(covariates: Sequence[TimeSeries] | None) -> bool:
    """Return whether any component stands for texts."""
    return any(is_text(name) for name in (covariates[0].components if covariates else ()))


def with_texts(series: TimeSeries | None) -> TimeSeries | None:
    """Return covariates that carry their texts, also those that only this process knows."""
    if series is None:
        return None
    codes = [series[name].values(copy=False) for name in text_columns([series])]
    known = column_texts(np.concatenate(codes)) if codes else {}
    metadata = series.metadata or {}
    known |= metadata.get(_METADATA, {})
    return series.with_metadata({**metadata, _METADATA: known}) if known else series


class Digits:
    """Writes what a network reads of texts into covariates, as digits of codes.

    Parameters
    ----------
    read : set of {"stamps", "static", "columns"}
        What the network reads.
    vocabulary : Vocabulary
        Of the network.
    prompt : callable
        From ``description=``, a text or None, to the static text of a series.
    settings : mapping
        The arguments ``description``, ``stamps`` and ``dynamic`` of the network.
    length : int
        L, steps of a context.
    """

    def __init__(
        self,
        read: Iterable[str],
        vocabulary: Vocabulary,
        prompt: Callable[..., str],
        settings: Mapping[str, Any],
        length: int,
    ) -> None:
        self.read = frozenset(read)
        self.vocabulary = vocabulary
        self.prompt = prompt
        self.settings = settings
        self.length = length

    def past(
        self, series: Sequence[TimeSeries], covariates: Sequence[TimeSeries] | None, n_ahead: int
    ) -> list[TimeSeries] | None:
        """Return past covariates: those without text, then the digits of those with text.

        darts asks for them beyond the start of long forecasts. Texts are not read there: where
        there are only texts, there are none for ``n_ahead`` steps.
        """
        if covariates is None:
            return None
        written = []
        for target, own in zip(series, covariates, strict=True):
            times, codes = own.time_index, self._columns(own)
            known = n_steps_between(own.end_time(), target.end_time(), target.freq)
            missing = n_ahead - known
            if known >= 0 and missing > 0 and all(map(is_text, own.components)):
                times = _extended(own, missing)
                codes = [np.pad(code, (0, missing)) for code in codes]
            written.append(self._written(own, times, codes, target))
        return None if written[0] is None else written

    def future(
        self, series: Sequence[TimeSeries], covariates: Sequence[TimeSeries] | None, n_ahead: int
    ) -> list[TimeSeries] | None:
        """Return future covariates; where there are none, of ``n_ahead`` steps after a series."""
        written = []
        for number, target in enumerate(series):
            own = None if covariates is None else covariates[number]
            times = _extended(target, n_ahead) if own is None else own.time_index
            codes = []
            if "stamps" in self.read:
                codes.append(self._stamps(own, times, target.freq))
            if "static" in self.read:
                codes.append(self._static(own, target, len(times)))
            codes += self._columns(own)
            written.append(self._written(own, times, codes, target))
        return None if written[0] is None else written

    def _columns(self, covariates: TimeSeries | None) -> list[np.ndarray]:
        """Return the codes of the user's columns."""
        if covariates is None or "columns" not in self.read:
            return []
        names = text_columns([covariates])
        return [self._coded(*_column(covariates, name)) for name in names]

    def _stamps(self, covariates: TimeSeries | None, times: Any, freq: Any) -> np.ndarray:
        """Return the codes of the steps' stamps, or of the windows that end at them."""
        if covariates is not None and CALENDAR in covariates.components:
            entries, positions = _column(covariates, CALENDAR)
        else:
            stamps, positions = stamps_of(times, freq, dated=self.settings["stamps"] == "dated")
            entries = [POSITION if stamp is None else stamp for stamp in stamps]
        if self.settings["dynamic"] == "window":
            entries, positions = _spans(entries, positions, self.length)
        return self._coded(entries, positions)

    def _static(self, covariates: TimeSeries | None, target: TimeSeries, n: int) -> np.ndarray:
        """Return the code of the series' description, at each step."""
        if covariates is not None and DESCRIPTION in covariates.components:
            entries, _ = _column(covariates, DESCRIPTION)
            description = next((str(entry) for entry in entries if entry), None)
        else:
            description = self.settings["description"]
            if isinstance(description, Mapping):
                description = description.get(target.components[0])
        return np.repeat(self.vocabulary.codes([self.prompt(description=description)]), n)

    def _coded(self, entries: Sequence[Hashable], positions: np.ndarray) -> np.ndarray:
        codes = self.vocabulary.codes(entries)
        if len(self.vocabulary.entries) >= _BASE**_N_DIGITS:
            raise ValueError(
                f"covariates: a model can read {_BASE**_N_DIGITS - 1} distinct texts, found more; "
                "say less in each of them, or load the model anew."
            )
        return codes[positions]

    def _written(
        self, covariates: TimeSeries | None, times: Any, codes: list[np.ndarray], like: TimeSeries
    ) -> TimeSeries | None:
        """Return the covariates that are no texts, and the digits of codes (t,) after them."""
        values = [np.empty((len(times), 0, 1))]
        components = [] if covariates is None else covariates.components
        names = [name for name in components if not is_text(name)]
        if covariates is not None and names:
            kept = [not is_text(name) for name in components]
            values = [covariates.all_values(copy=False)[:, kept]]
        powers = _BASE ** np.arange(_N_DIGITS)
        for code in codes:
            digits = (code[:, np.newaxis] // powers % _BASE)[..., np.newaxis]
            values.append(np.repeat(digits, values[0].shape[2], axis=2))
        joined = np.concatenate(values, axis=1).astype(like.dtype)
        if not joined.shape[1]:
            return None
        names += [f"digit {number}" for number in range(joined.shape[1] - len(names))]
        return TimeSeries(times, joined, components=names, freq=like.freq, copy=False)


def n_digits(n_codes: int) -> int:
    """Return how many components carry codes."""
    return _N_DIGITS * n_codes


def n_numbers(n_components: int | None, n_codes: int) -> int:
    """Return how many components of a sample are no digits."""
    return (n_components or 0) - n_digits(n_codes)


def split_digits(values: Tensor | None, n_codes: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the covariates (b, t, k) that are no digits, and the codes (b, t, n) of the rest.

    Parameters
    ----------
    values : Tensor, optional
        Shape (b, t, k + digits of n codes).
    n_codes : int
        n, as many codes are written behind the covariates.
    """
    if values is None or not n_codes:
        return values, None
    n = values.shape[-1] - n_digits(n_codes)
    digits = values[..., n:].float().nan_to_num(nan=0.0).round()  # exact up to 2^24
    powers = float(_BASE) ** torch.arange(_N_DIGITS, device=values.device)
    # no matrix product, which mixed precision would round
    codes = (digits.unflatten(-1, (n_codes, _N_DIGITS)) * powers).sum(-1).long()
    return (values[..., :n] if n else None), codes


def without_texts(values: Tensor | None, n_codes: int) -> Tensor | None:
    """Return covariates (b, t, k + digits of n codes) whose texts are empty."""
    if values is None or not n_codes:
        return values
    n = values.shape[-1] - n_digits(n_codes)
    return torch.cat([values[..., :n], torch.zeros_like(values[..., n:])], -1)


def _extended(series: TimeSeries, n_ahead: int) -> Any:
    """Return the times of a series and of the steps after it."""
    if not n_ahead:
        return series.time_index
    return generate_index(series.start_time(), length=len(series) + n_ahead, freq=series.freq)


def _spans(
    stamps: list[Any], positions: np.ndarray, length: int
) -> tuple[list[Hashable], np.ndarray]:
    """Return the spans of the windows that end at each step, None where one starts too early."""
    pairs = np.stack([np.full_like(positions, -1), positions], 1)
    pairs[length - 1 :, 0] = positions[: len(positions) - length + 1]
    distinct, where = np.unique(pairs, axis=0, return_inverse=True)
    spans: list[Hashable] = []
    for start, end in distinct.tolist():
        first, last = stamps[start] if start >= 0 else None, stamps[end]
        if POSITION in (first, last):
            spans.append(POSITION)
        else:
            spans.append(Span(first, last) if first and last else None)
    return spans, where.reshape(-1)
