"""Bad input is an error that says what was expected and found; afterwards all is as before."""

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import darts_series, monthly, sine

CONTEXT, HORIZON = 12, 6
FH = list(range(1, HORIZON + 1))


@dataclass(frozen=True)
class Case:
    """What is done with an estimator that is fitted (``call``) or still to be made (``make``)."""

    name: str
    error: type | tuple[type, ...]
    message: str
    call: Any = None
    make: dict | None = None

    def __str__(self):
        return self.name


def holed(value, row=30, column=1):
    values = sine(60, 2).astype(float)
    values[row, column] = value
    return values


def empty(rows=slice(None)):
    values = sine(60, 2).astype(float)
    values[rows, 1] = np.nan
    return values


# darts ----------------------------------------------------------------------------------------


def series(values):
    return darts_series(values)


GOOD = series(sine(60, 2))
COVARIATES = series(sine(80, 1, seed=4))


def fit(**changes):
    return lambda model: model.fit(**{"series": GOOD, "future_covariates": COVARIATES, **changes})


def predict(n=HORIZON, **changes):
    return lambda model: model.predict(
        n, **{"series": GOOD, "future_covariates": COVARIATES, **changes}
    )


DARTS = [
    Case("nothing but NaN", ValueError, "component '1' of series 0 has no observation at all, 60",
         fit(series=series(empty()))),
    Case("infinite target", ValueError, "component '1' of series 0 is infinite at 30; replace",
         fit(series=series(holed(np.inf)))),
    Case("infinite context", ValueError, "component '1' of series 0 is infinite at 55; replace",
         predict(series=series(holed(-np.inf, row=55)))),
    Case("infinite covariate", ValueError, "future_covariates: component '0' of series 0 is inf",
         fit(future_covariates=COVARIATES * np.inf)),
    Case("empty context", ValueError, "no observation in the 12 steps from which the forecast at",
         predict(series=series(empty(slice(40, 60))))),
    Case("too short to train", ValueError, r"Expected min length: `18`, received max length: `17`",
         fit(series=GOOD[:17])),
    Case("too short to forecast", ValueError, r"12.*|too short", predict(series=GOOD[:11])),
    Case("another number of components", ValueError, "expected: `2`|equal number of components",
         predict(series=GOOD["0"])),
    Case("training on another number", ValueError, "dimensionality", fit(series=GOOD["0"])),
    Case("no future covariates", ValueError, "`future_covariates`.* must end at or after .*`85`",
         predict(future_covariates=None, series=series(sine(80, 2)))),
    Case("short future covariates", ValueError, "must end at or after time step `65`.*`61`",
         predict(future_covariates=COVARIATES[:62])),
    Case("other covariates", ValueError, "future_covariates.*`2`, expected: `1`",
         predict(future_covariates=COVARIATES.stack(COVARIATES))),
    Case("unexpected covariates", ValueError, "past_covariates",
         predict(past_covariates=COVARIATES)),
    Case("another precision", ValueError, "expected float32, .* found float64 in series 0; use",
         predict(series=GOOD.astype(np.float64))),
    Case("unknown argument", ValueError, r"\['colour'\]", make={"colour": "red"}),
    Case("no such backbone", OSError, r"backbone 'no/such' cannot be loaded.*Ways out.*directory",
         make={"backbone": "no/such"}),
    Case("no step of context", ValueError, "input_chunk_length must be an integer >= 1, found 0",
         make={"context": 0}),
    Case("half a step", TypeError, "output_chunk_length must be an integer >= 1, found 2.5",
         make={"horizon": 2.5}),
    Case("a word for a number", TypeError, "few_shot must be a number.* found 'half' of type str",
         make={"few_shot": "half"}),
    Case("no such normalisation", ValueError, r"normalization must be one of \['.*', None\]",
         make={"normalization": "batch"}),
    Case("no such checkpoint", OSError, r"expected a directory that save_pretrained wrote, found",
         make={"checkpoint": "elsewhere"}),
    Case("nothing to start from", ValueError, "needs weights to start from, found none; pass",
         make={"fit_strategy": "head"}),
]  # fmt: skip


@pytest.mark.parametrize("case", DARTS, ids=str)
def test_darts_models(method, case):
    model = method.darts(CONTEXT, HORIZON)
    model.fit(GOOD, future_covariates=COVARIATES)
    before = model.predict(HORIZON, series=GOOD, future_covariates=COVARIATES).values()
    sizes = {"context": CONTEXT, "horizon": HORIZON}
    call = case.call or (lambda _: method.darts(**{**sizes, **case.make}).fit(GOOD))
    with pytest.raises(case.error, match=case.message) as raised:
        call(model)
    assert type(raised.value) in (ValueError, TypeError, OSError, FileNotFoundError)
    after = model.predict(HORIZON, series=GOOD, future_covariates=COVARIATES).values()
    assert np.array_equal(after, before)


# sktime ---------------------------------------------------------------------------------------


def frame(values=None, n=60):
    y = monthly(n, columns=2)
    if values is not None:
        y.iloc[:] = values
    return y


Y, X = frame(), monthly(80, seed=4).rename(columns={"v0": "price"})


def refit(y=Y, rows=X[:60], **params):
    return lambda f: f.clone().set_params(**params).fit(y, rows)


def forecast(fh=FH, rows=X[60:]):
    return lambda f: f.predict(fh, rows)


def update(y, rows, update_params=False):
    return lambda f: f.update(y, rows, update_params=update_params)


SKTIME = [
    Case("nothing but NaN", ValueError, "column 'v1' has no observation at all, 60 of 60",
         refit(frame(empty()))),
    Case("infinite", ValueError, "column 'v1' is infinite at 2002-07; replace",
         refit(frame(holed(np.inf)))),
    Case("infinite update", ValueError, "column 'v0' is infinite at 2005-01",
         update(monthly(66, columns=2)[60:] * np.inf, X[60:66])),
    Case("irregular", ValueError, "consecutive periods, found a step of 2",
         refit(Y.drop(Y.index[20]), X[:60].drop(Y.index[20]))),
    Case("gap before an update", ValueError, "found a step of 4 after 2004-12",
         update(monthly(66, columns=2)[63:], X[63:66])),
    Case("other columns in an update", ValueError,
         r"y: expected the columns \['v0', 'v1'\].* found \['v0'\]",
         update(monthly(66)[60:], X[60:66])),
    Case("no X", ValueError, r"X: expected the columns \['price'\].* found no X",
         forecast(rows=None)),
    Case("other X", ValueError, r"missing \['price'\], unknown \['cost'\]",
         forecast(rows=X[60:].rename(columns={"price": "cost"}))),
    Case("short X", ValueError, "each of the .* found none at 3 of them, the first is 2005-04",
         forecast(rows=X[60:63])),
    Case("objects in X", (ValueError, TypeError), "categor|must be (numeric|text), found",
         refit(rows=X[:60].astype(object))),
    Case("text in place of numbers", (ValueError, TypeError), "categor|numeric",
         forecast(rows=X[60:].astype(str))),
    Case("before the start", ValueError, "step -60 lies before the first of the 60 known points",
         forecast([-60])),
    Case("no such backbone", OSError, "backbone 'no/such' cannot be loaded.*Ways out",
         refit(backbone="no/such")),
    Case("unknown argument", (ValueError, TypeError), "colour", refit(colour="red")),
    Case("impossible context", ValueError, "context_length must be an integer >= 1 or None, found",
         refit(context_length=0)),
    Case("impossible horizon", TypeError, "horizon must be an integer >= 1 or None, found 'week'",
         refit(horizon="week")),
    Case("no limit", ValueError, "num_epochs, max_steps and max_time are all None; set one",
         refit(max_steps=None)),
    Case("no such checkpoint", OSError, "expected a directory that save_pretrained wrote",
         refit(checkpoint="elsewhere")),
    Case("checkpoint is a number", TypeError, "checkpoint must be a directory.* found 3 of type",
         refit(checkpoint=3)),
    Case("nothing to start from", ValueError, "needs weights to start from, found none; call",
         refit(fit_strategy="zero-shot")),
    Case("no such device", ValueError, "device must be one of", refit(device="tpu")),
]  # fmt: skip


@pytest.mark.parametrize("case", SKTIME, ids=str)
def test_sktime_forecasters(method, case):
    forecaster = method.sktime(context_length=CONTEXT, horizon=HORIZON).fit(Y, X[:60])
    before = forecaster.predict(FH, X[60:])
    with pytest.raises(case.error, match=case.message) as raised:
        case.call(forecaster)
    assert type(raised.value) in (ValueError, TypeError, OSError, FileNotFoundError)
    pd.testing.assert_frame_equal(forecaster.predict(FH, X[60:]), before, rtol=0)
    assert np.isfinite(forecaster.fit(Y, X[:60]).predict(FH, X[60:]).to_numpy()).all()


# files ----------------------------------------------------------------------------------------


def test_a_damaged_language_model_is_an_error(method, language_models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(language_models["bert"], folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"backbone .*model' cannot be loaded"):
        method.darts(backbone=str(folder)).fit(GOOD)
    (folder / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"backbone .*model' cannot be loaded"):
        method.sktime(backbone=str(folder)).fit(Y)
