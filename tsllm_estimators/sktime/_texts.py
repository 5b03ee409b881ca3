"""What a series itself tells in words: its calendar and its description, as codes."""

from collections.abc import Collection, Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from tsllm_estimators._calendar import stamps_of
from tsllm_estimators.llm.vocabulary import POSITION, column_codes


def series_texts(forecaster: Any, key: Hashable, index: pd.Index, freq: Any) -> np.ndarray:
    """Return the codes of the stamps of an index, and of the description of an instance.

    Parameters
    ----------
    forecaster : NetworkForecaster
        Whose ``stamps`` and ``description`` say what to tell.
    key : hashable
        Of the instance, None for a single series.
    index : pandas.Index
        Of the series and the steps after it.
    freq : offset or None
        Frequency of dates whose index carries none.

    Returns
    -------
    array
        Shape (t, 1), or (t, 2) where descriptions differ between instances.
    """
    stamps, positions = stamps_of(index, freq, dated=forecaster.stamps == "dated")
    codes = [column_codes(POSITION if s is None else s for s in stamps)[positions]]
    described = _descriptions(forecaster)
    if described is not None:
        codes.append(np.repeat(column_codes([described.get(str(key))]), len(index)))
    return np.stack(codes, 1)


def check_described(forecaster: Any, keys: Collection[Hashable]) -> None:
    """Raise ``ValueError`` if descriptions by instance cannot reach any instance."""
    described = _descriptions(forecaster)
    if described is None:
        return
    if forecaster.broadcasting:
        raise ValueError(
            "description must be one text where broadcasting=True, found a dict; a forecaster of "
            "each instance does not know its key. Use broadcasting=False."
        )
    if not any(str(key) in described for key in keys):
        raise ValueError(
            "description: expected one text, or texts by the keys of instances such as "
            f"{next(iter(keys))!r}, found the keys {list(forecaster.description)!r}."
        )


def plain_description(description: Any) -> Any:
    """Return a description whose keys, if it is a dict, are the texts that JSON makes of them."""
    if not isinstance(description, Mapping):
        return description
    return {str(key): text for key, text in description.items()}


def _descriptions(forecaster: Any) -> dict[str, str] | None:
    """Return the descriptions by instance, where they differ and are read."""
    if forecaster.text not in ("both", "static"):
        return None
    described = plain_description(forecaster.description)
    return described if isinstance(described, dict) else None
