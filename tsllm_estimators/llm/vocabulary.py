"""Texts as numbers: what a column of numbers carries in place of words."""

import threading
import zlib
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from tsllm_estimators.llm.calendar import Stamp, stamp_numbers, stamp_text, window_text

_N_CODES = 2**24  # float32 holds every integer below it


#: Stands for the place of a step in the window, where there is no calendar to tell.
POSITION = Stamp()


class Span(NamedTuple):
    """The calendar of a window: its first and its last stamp."""

    start: Stamp
    end: Stamp


def text_of(entry: str | Stamp | Span) -> str:
    """Return the text that a language model reads of an entry."""
    if isinstance(entry, str):
        return entry
    if entry == POSITION:
        return ""
    return stamp_text(entry) if isinstance(entry, Stamp) else window_text(*entry)


def numbers_of(entry: Stamp | Span) -> tuple[float, ...]:
    """Return the calendar numbers of an entry."""
    if isinstance(entry, Stamp):
        return stamp_numbers(entry)
    return stamp_numbers(entry.start) + stamp_numbers(entry.end)


class Vocabulary:
    """What a network has been shown, by code.

    Codes count from 1 and are never given anew; 0 stands for nothing: None or an empty text.

    Attributes
    ----------
    entries : list
        Texts, stamps and spans; the one of code i stands at i - 1.
    """

    def __init__(self) -> None:
        self.entries: list[Hashable] = []
        self._codes: dict[Hashable, int] = {}

    def __contains__(self, entry: Hashable) -> bool:
        return entry in self._codes

    def codes(self, entries: Iterable[Hashable]) -> np.ndarray:
        """Return the code of each entry, int64; new ones are added."""
        found = []
        with _lock:
            for entry in entries:
                code = self._codes.get(entry, 0) if entry else 0
                if entry and not code:
                    self.entries.append(entry)
                    code = self._codes[entry] = len(self.entries)
                found.append(code)
        return np.array(found, dtype=np.int64)


_columns: dict[int, Hashable] = {}  # of this process
_lock = threading.Lock()


def column_codes(entries: Iterable[Hashable]) -> np.ndarray:
    """Return a code for each entry that a column of float32 can carry through pipelines.

    The same text has the same code in every process, unless two texts of one process meet at the
    same hash; a code that nobody gave here is therefore found out, not taken for another text.

    Parameters
    ----------
    entries : iterable of str, Stamp or None
        None and empty texts have the code 0.

    Returns
    -------
    array
        float64, integers below 2^24.
    """
    codes: dict[Hashable, int] = {}
    found = []
    for entry in entries:
        if entry and entry not in codes:
            codes[entry] = _column_code(entry)
        found.append(codes[entry] if entry else 0)
    return np.array(found, dtype=np.float64)


def _column_code(entry: Hashable) -> int:
    text = str(entry) if isinstance(entry, str) else repr(entry)
    code = zlib.crc32(text.encode()) % _N_CODES
    with _lock:
        while code == 0 or _columns.setdefault(code, entry) != entry:
            code = (code + 1) % _N_CODES
    return code


def column_texts(codes: np.ndarray) -> dict[int, str]:
    """Return the texts of those codes that this process gave to any."""
    distinct = np.unique(np.nan_to_num(codes)).astype(int).tolist()
    found = {code: _columns.get(code) for code in distinct}
    return {code: text for code, text in found.items() if isinstance(text, str)}


def column_entries(
    name: str, codes: np.ndarray, known: Mapping[int, str]
) -> tuple[list[Hashable], np.ndarray]:
    """Return the distinct entries of a column of codes, and where each of them stands.

    Parameters
    ----------
    name : str
        Of the column, for messages.
    codes : array
        Shape (t,); NaN counts as 0.
    known : mapping of int to str
        Texts that travel with the column, which go before those of this process.

    Returns
    -------
    entries : list
        Distinct entries; None for 0.
    positions : array
        Position in ``entries`` of each step, shape (t,).

    Raises
    ------
    ValueError
        If a code is none that this process knows.
    """
    distinct, positions = np.unique(np.nan_to_num(codes), return_inverse=True)
    entries: list[Hashable] = []
    for code in distinct.tolist():
        entry = known.get(int(code)) or _columns.get(int(code))
        if code and (entry is None or code != int(code)):
            raise ValueError(
                f"{name}: expected codes of texts, found {code:.12g}, which stands for no text in "
                "this process. Make the column with text_covariates, do not scale it, and stack it "
                "in front of other covariates: darts keeps the texts of the first one only."
            )
        entries.append(entry if code else None)
    return entries, positions
