"""What the tests share: the methods in small, data, and how to look at a signature."""

import inspect
from dataclasses import dataclass

import numpy as np
import pandas as pd

import tsllm_estimators
from tsllm_estimators.networks import NETWORKS, network_class


@dataclass(frozen=True)
class Method:
    """The three classes of a method, and the settings that make it small."""

    name: str
    network: type
    model: type
    forecaster: type

    def small(self, **changes):
        """Return settings of the network that both faces take, small enough for a test."""
        return {**self.known(backbone="tiny", d_ff=16, d_hidden=16, lm_steps=1), **changes}

    def known(self, **settings):
        """Return those of the settings that the method has."""
        return {k: v for k, v in settings.items() if k in self.network.Config.defaults()}

    @property
    def width(self):
        """Name of the argument that is a hidden width."""
        return next(iter(self.known(d_ff=0, d_hidden=0)))

    @property
    def dry(self):
        """Settings without any dropout."""
        language_model = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return {
            **self.known(head_dropout=0.0, dropout=0.0, lora_dropout=0.0),
            "backbone_kwargs": language_model,
        }

    @property
    def untold(self):
        """Settings without texts that darts' own tools, which know numbers only, cannot make."""
        return {"lemole": {"text": "static"}, "llm_ts_net": {"text": "none"}}.get(self.name, {})

    def darts(self, context=12, horizon=6, **changes):
        """Return a small darts model."""
        trainer = {"accelerator": "cpu", **changes.pop("pl_trainer_kwargs", {})}
        host = {"n_epochs": 2, "random_state": 0, "pl_trainer_kwargs": trainer}
        return self.model(context, horizon, **self.small(**{**host, **changes}))

    def sktime(self, **changes):
        """Return a small sktime forecaster."""
        host = {"max_steps": 4, "random_state": 0, "device": "cpu"}
        return self.forecaster(**self.small(**{**host, **changes}))


def _methods():
    forecasters = {
        cls._model_class().method: cls for cls in tsllm_estimators.all_estimators("sktime").values()
    }
    models = {cls.method: cls for cls in tsllm_estimators.all_estimators("darts").values()}
    return [Method(n, network_class(n), models[n], forecasters[n]) for n in NETWORKS]


METHODS = _methods()
#: Methods whose language model is fine-tuned, rather than read.
ADAPTED = [method for method in METHODS if "adapter" in method.network.Config.defaults()]
#: Those of them that run it to forecast: it can be left as it is, or something else stand in.
RUNNING = [method for method in ADAPTED if "lm_steps" not in method.network.Config.defaults()]


def sine(n=120, columns=1, period=12.0, seed=0):
    """Return noisy sines, shape (n, columns), float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(n)[:, np.newaxis]
    values = np.sin(2 * np.pi * (time / period + np.arange(columns) / 7))
    return (values + 0.05 * rng.standard_normal(values.shape)).astype(np.float32)


def monthly(n=60, columns=1, seed=0):
    """Return noisy sines as a frame with a monthly period index."""
    index = pd.period_range("2000-01", periods=n, freq="M")
    names = [f"v{i}" for i in range(columns)]
    return pd.DataFrame(sine(n, columns, seed=seed).astype(float), index=index, columns=names)


def darts_series(values):
    """Return values as a darts series, with the calendar of the periods if these are its index."""
    from darts import TimeSeries

    if isinstance(getattr(values, "index", None), pd.PeriodIndex):
        return TimeSeries(values.index.to_timestamp(), values.to_numpy(np.float32))
    return TimeSeries.from_values(np.asarray(values, dtype=np.float32))


def signature(cls):
    """Return the defaults of a constructor's arguments, by name."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self" and p.kind != p.VAR_KEYWORD}
