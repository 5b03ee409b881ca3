"""Forecasters as directories to share."""

import inspect
import os
from typing import Any

from tsllm_estimators.llm.fine_tuning import plain_adapter
from tsllm_estimators.sktime._engine import read_forecaster
from tsllm_estimators.sktime._texts import plain_description

# What belongs to a machine or to a place, and what from_pretrained sets itself.
_LEFT_BEHIND = {"checkpoint", "device", "fit_strategy", "trainer_kwargs", "verbose"}


class Shareable:
    """Saving to and loading from directories without pickle."""

    def save_pretrained(self: Any, directory: str | os.PathLike) -> None:
        """Save what was learned as a directory to share, without pickle.

        It holds ``config.json``, ``model.safetensors``, ``adapters/`` in PEFT's own format and a
        model card; neither data nor frozen weights. ``checkpoint=`` and ``from_pretrained`` of
        both faces read it.

        Parameters
        ----------
        directory : str or path
            Is created.

        Raises
        ------
        ValueError
            If the forecaster has neither been fitted nor pretrained.
        """
        engine = getattr(self, "_engine", None) or getattr(self, "pretrained_model_", None)
        if engine is None and self.is_fitted:
            raise ValueError(
                "save_pretrained needs one model, found one for each instance in forecasters_; "
                "save these, or use broadcasting=False."
            )
        if engine is None:
            raise ValueError(
                "save_pretrained needs a fitted or pretrained forecaster, found one without "
                "weights; call fit or pretrain first."
            )
        arguments = {k: v for k, v in self.get_params(deep=False).items() if k not in _LEFT_BEHIND}
        if "adapter" in arguments:
            arguments["adapter"] = plain_adapter(arguments["adapter"])
        if "description" in arguments:
            arguments["description"] = plain_description(arguments["description"])
        if arguments["missing_marker"] is not None:  # numpy's numbers are none of JSON's
            arguments["missing_marker"] = float(arguments["missing_marker"])
        engine.save_pretrained(directory, arguments)

    @classmethod
    def from_pretrained(cls: Any, directory: str | os.PathLike, **arguments: Any) -> Any:
        """Return a forecaster that forecasts with the weights of a directory, without training.

        ``fit`` then only takes the series to forecast. It is a new forecaster whose ``checkpoint``
        is the directory: it can be cloned and tuned, and ``fit_strategy`` chooses what ``fit``
        trains.

        Parameters
        ----------
        directory : str or path
            Written by ``save_pretrained`` of either face.
        **arguments
            Arguments of the constructor that are to differ.

        Raises
        ------
        OSError
            If the directory is none of ours or damaged.
        ValueError
            If it holds another method.
        """
        known = inspect.signature(cls.__init__).parameters
        saved = read_forecaster(cls._model_class(), directory)["forecaster"]
        saved = {k: v for k, v in saved.items() if k in known and k not in _LEFT_BEHIND}
        ours = {"checkpoint": os.fspath(directory), "fit_strategy": "zero-shot"}
        return cls(**{**saved, **ours, **arguments})
