"""Large-language-model forecasting methods as ordinary sktime and darts estimators.

Importing the package imports neither torch nor a framework: the public names below are
resolved on first use (PEP 562).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FACES = {
    "darts": ("CALFModel", "LLMTSNetModel", "LeMoLEModel", "TimeLlamaModel"),
    "sktime": ("CALFForecaster", "LLMTSNetForecaster", "LeMoLEForecaster", "TimeLlamaForecaster"),
}
_PUBLIC = {**_FACES, "adapters": ("DynaLoraConfig", "LoraAmrConfig")}
_HOME = {name: f"{__name__}.{part}" for part, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", "all_estimators", *sorted(_HOME)]


def all_estimators(face: str | None = None) -> dict[str, type]:
    """Return the estimator classes of this package, by name.

    Parameters
    ----------
    face : {"darts", "sktime"}, optional
        Only the classes of this face; both faces by default.

    Returns
    -------
    dict of str to type

    Raises
    ------
    ValueError
        If ``face`` is not one of the two.
    """
    if face is not None and face not in _FACES:
        raise ValueError(f"face must be one of {sorted(_FACES)} or None, found {face!r}.")
    faces = _FACES.values() if face is None else [_FACES[face]]
    names = sorted(name for names in faces for name in names)
    return {name: getattr(import_module(_HOME[name]), name) for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
