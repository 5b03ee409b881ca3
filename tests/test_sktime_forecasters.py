"""The sktime forecasters: data in every shape, horizons of every kind, and back."""

import copy
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from sktime.datasets import load_airline
from sktime.forecasting.base import ForecastingHorizon
from support import monthly, sine

from tsllm_estimators.sktime._index import default_context, default_horizon
from tsllm_estimators.sktime._likelihoods import QUANTILES, quantiles_of


def indexed(kind, n=60, columns=1):
    """Return a frame with a calendar of some kind."""
    indices = {
        "period": lambda: pd.period_range("2000-01", periods=n, freq="M"),
        "datetime": lambda: pd.date_range("2000-01-01", periods=n, freq="D"),
        "datetime without freq": lambda: pd.DatetimeIndex(
            pd.date_range("2000-01-01", periods=n, freq="MS").to_list()
        ),
        "hourly": lambda: pd.date_range("2000-01-01", periods=n, freq="h"),
        "range": lambda: pd.RangeIndex(n),
        "integers from 1000": lambda: pd.RangeIndex(1000, 1000 + n),
        "period of 15 minutes": lambda: pd.period_range("2000-01-01", periods=n, freq="15min"),
        "two hours": lambda: pd.date_range("2000-01-01", periods=n, freq="2h", tz="Europe/Rome"),
        "business": lambda: pd.bdate_range("2000-01-03", periods=n),
    }
    names = [f"v{i}" for i in range(columns)]
    return pd.DataFrame(sine(n, columns).astype(float), index=indices[kind](), columns=names)


INDICES = [
    *("period", "datetime", "datetime without freq", "hourly", "range", "integers from 1000"),
    *("period of 15 minutes", "two hours", "business"),
]


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("kind", INDICES)
def test_index_and_columns_come_back(method, kind, columns):
    y = indexed(kind, columns=columns)
    train, test = y[:-8], y[-8:]
    forecast = method.sktime(horizon=3).fit(train).predict(fh=[1, 2, 3, 8])
    pd.testing.assert_index_equal(
        forecast.index, test.index[[0, 1, 2, 7]], exact="equiv", check_names=False
    )
    assert list(forecast.columns) == list(y.columns)
    assert np.isfinite(forecast.to_numpy()).all()


def test_series_and_arrays_come_back_as_what_they_were(method):
    named = monthly()["v0"].rename("passengers")
    forecast = method.sktime().fit(named).predict([1, 2])
    assert isinstance(forecast, pd.Series)
    assert forecast.name == "passengers"
    assert method.sktime().fit(named.to_numpy()).predict([1, 2]).shape[0] == 2


@pytest.mark.parametrize("n", [20, 144])
def test_defaults_work_on_short_series(method, n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forecaster = method.sktime().fit(monthly(n))
        assert forecaster.predict(list(range(1, 13))).shape == (12, 1)


def test_defaults_work_on_long_series(method):
    y = indexed("hourly", n=17_420, columns=7)
    forecaster = method.sktime(max_steps=2).fit(y)
    assert forecaster._engine.horizon == 24
    assert forecaster._engine.context_length == 96
    assert forecaster.predict([1, 24]).shape == (2, 7)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_series_shorter_than_a_window_are_padded_with_a_warning(method, n):
    with pytest.warns(UserWarning, match=f"The shortest series has {n} points.*padded"):
        forecaster = method.sktime(context_length=12, horizon=6).fit(monthly(n))
    assert np.isfinite(forecaster.predict([1, 6]).to_numpy()).all()


@pytest.mark.parametrize(
    ("index", "n", "horizon"),
    [
        (pd.period_range("2000-01", periods=3, freq="M"), 100, 12),
        (pd.date_range("2000-01-01", periods=3, freq="MS"), 100, 12),
        (pd.period_range("2000-01", periods=3, freq="Q"), 100, 4),
        (pd.date_range("2000-01-01", periods=3, freq="QE"), 100, 4),
        (pd.date_range("2000-01-01", periods=3, freq="W"), 100, 13),
        (pd.date_range("2000-01-01", periods=3, freq="D"), 100, 7),
        (pd.date_range("2000-01-01", periods=3, freq="h"), 100, 24),
        (pd.date_range("2000-01-01", periods=3, freq="min"), 1000, 60),
        (pd.date_range("2000-01-01", periods=3, freq="15min"), 1000, 96),
        (pd.date_range("2000-01-01", periods=3, freq="6h"), 1000, 4),
        (pd.date_range("2000-01-01", periods=3, freq="2D"), 1000, 7),
        (pd.RangeIndex(3), 100, 12),
        (pd.RangeIndex(3), 20, 5),
        (pd.RangeIndex(3), 2, 1),
    ],
)
def test_default_horizon_is_one_season(index, n, horizon):
    assert default_horizon(index, n) == horizon


@pytest.mark.parametrize(
    ("horizon", "n", "context"), [(12, 144, 48), (24, 17_420, 96), (5, 20, 10), (200, 9000, 512)]
)
def test_default_context_is_four_horizons_where_enough_windows_remain(horizon, n, context):
    assert default_context(horizon, n) == context


def test_horizon_follows_fh(method):
    y = monthly(80)
    assert method.sktime().fit(y, fh=[2, 9])._engine.horizon == 9
    assert method.sktime(horizon=4).fit(y, fh=[2, 9])._engine.horizon == 4
    assert method.sktime().fit(y, fh=[-3, 0])._engine.horizon == 12


def test_horizons_of_every_kind_agree(method):
    y = monthly()
    forecaster = method.sktime(horizon=6).fit(y)
    relative = forecaster.predict([1, 4, 6])
    steps = [y.index[-1] + step for step in (1, 4, 6)]
    absolute = forecaster.predict(ForecastingHorizon(pd.PeriodIndex(steps), is_relative=False))
    pd.testing.assert_frame_equal(relative, absolute)
    whole = forecaster.predict(list(range(1, 7)))
    pd.testing.assert_frame_equal(relative, whole.iloc[[0, 3, 5]], check_freq=False)
    in_fit = method.sktime(horizon=6).fit(y, fh=[1, 4, 6]).predict()
    pd.testing.assert_frame_equal(relative, in_fit)


def test_past_the_horizon_feeds_on_the_median(method):
    y = monthly()
    forecaster = method.sktime(horizon=6).fit(y)
    long = forecaster.predict(list(range(1, 13)))
    forecaster.update(long[:6], update_params=False)
    continued = forecaster.predict(list(range(1, 7)))
    np.testing.assert_allclose(continued, long[6:], rtol=1e-4, atol=1e-5)


def test_fitted_values_are_forecasts_one_step_ahead(method):
    y = monthly()
    forecaster = method.sktime(horizon=6, context_length=12).fit(y)
    fitted = forecaster.predict([-20, -1, 0])
    pd.testing.assert_index_equal(fitted.index, y.index[[-21, -2, -1]], check_names=False)
    other = copy.deepcopy(forecaster)
    other._cur_y = y[:-21]
    other._set_cutoff_from_y(y[:-21])
    np.testing.assert_allclose(other.predict([1]), fitted[:1], rtol=1e-4)


def test_fitted_values_never_look_ahead(method):
    y = monthly()
    forecaster = method.sktime().fit(y)
    changed = copy.deepcopy(forecaster)
    changed._cur_y = y.copy()
    changed._cur_y.iloc[-10:] += 5
    before, after = (f.predict([-20, -10, -9, -8]).to_numpy() for f in (forecaster, changed))
    assert (before != after).ravel().tolist() == [False, False, False, True]


def test_a_step_before_the_first_point_is_an_error(method):
    forecaster = method.sktime().fit(monthly(30))
    assert np.isfinite(forecaster.predict([-29]).to_numpy()).all()
    with pytest.raises(ValueError, match="step -30 lies before the first of the 30 known points"):
        forecaster.predict([-30])


# intervals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["quantile", "gaussian", "laplace"])
def test_quantiles_are_ordered_around_the_point_forecast(method, likelihood):
    forecaster = method.sktime(likelihood=likelihood, horizon=4).fit(monthly(columns=2))
    fh = [-2, 1, 4, 9]  # fitted, within the horizon, past it
    quantiles = forecaster.predict_quantiles(fh, alpha=[0.003, 0.05, 0.33, 0.5, 0.95])
    point = forecaster.predict(fh)
    for column in ("v0", "v1"):
        assert (np.diff(quantiles[column], axis=1) >= 0).all()
        np.testing.assert_allclose(quantiles[column][0.5], point[column], rtol=1e-6, atol=1e-9)


def test_intervals_agree_with_quantiles(method):
    forecaster = method.sktime(horizon=4).fit(monthly())
    interval = forecaster.predict_interval([1, 2], coverage=0.9)["v0"][0.9]
    quantiles = forecaster.predict_quantiles([1, 2], alpha=[0.05, 0.95])["v0"]
    np.testing.assert_allclose(interval, quantiles)
    assert (forecaster.predict_var([1, 2]).to_numpy() > 0).all()
    assert np.isfinite(forecaster.predict_proba([1, 2]).mean().to_numpy()).all()


def test_without_a_likelihood_there_are_no_intervals(method):
    forecaster = method.sktime(likelihood=None)
    assert not forecaster.get_tag("capability:pred_int")
    assert method.sktime().get_tag("capability:pred_int")
    with pytest.raises(NotImplementedError, match="does not have the capability"):
        forecaster.fit(monthly()).predict_interval([1])


def test_likelihoods_learn_different_things(method):
    forecasts = {
        tuple(method.sktime(likelihood=name).fit(monthly(), fh=[1, 2]).predict().to_numpy().ravel())
        for name in (None, "quantile", "gaussian", "laplace")
    }
    assert len(forecasts) == 4


def test_num_samples_and_seed_steer_the_sampled_paths(method):
    def intervals(**settings):
        forecaster = method.sktime(horizon=3, **settings).fit(monthly())
        return tuple(forecaster.predict_interval([5, 6]).to_numpy().ravel())

    assert intervals() == intervals()
    assert intervals(num_samples=50) != intervals(num_samples=60)


def test_quantiles_between_and_beyond_the_trained_ones():
    from scipy.stats import norm

    normal = 3 + 2 * norm.ppf(QUANTILES)[np.newaxis]
    levels = np.array([0.001, 0.01, 0.07, 0.5, 0.6, 0.999])
    found = quantiles_of("quantile", normal, levels, QUANTILES)
    np.testing.assert_allclose(found[0], 3 + 2 * norm.ppf(levels))
    assert tuple(sorted(QUANTILES)) == QUANTILES
    np.testing.assert_allclose(np.add(QUANTILES, QUANTILES[::-1]), 1)


# scale, seeds, arguments --------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [None, "quantile", "gaussian"])
def test_y_and_1000_y_plus_7_agree(method, likelihood):
    y = monthly(columns=2)
    settings = {"likelihood": likelihood, "horizon": 4}
    plain, scaled = (method.sktime(**settings).fit(v) for v in (y, 1000 * y + 7))
    fh = [-1, 1, 4, 7]
    np.testing.assert_allclose(
        (scaled.predict(fh) - 7) / 1000, plain.predict(fh), rtol=1e-3, atol=1e-4
    )
    if likelihood is not None:
        widths = [np.diff(f.predict_interval(fh)["v0"].to_numpy()).ravel() for f in (plain, scaled)]
        np.testing.assert_allclose(widths[1] / 1000, widths[0], rtol=1e-3, atol=1e-4)


def test_instances_and_columns_of_different_size_weigh_alike(method):
    y = monthly(columns=2)
    y["v1"] *= 1e6
    forecaster = method.sktime(max_steps=30, lr=3e-3).fit(y[:-6], fh=[1, 2, 3, 4, 5, 6])
    error = (forecaster.predict() - y[-6:]).abs().mean() / y.std()
    assert error["v1"] < 1


def test_scaling_is_a_switch(method):
    y = monthly(columns=2) * [1, 100]  # without scaling the second column is all that counts
    forecasts = [method.sktime(scaling=s).fit(y).predict([1, 2]) for s in ("standard", None)]
    assert not np.allclose(forecasts[0]["v0"], forecasts[1]["v0"], rtol=1e-3)


@pytest.mark.parametrize("change", [{"few_shot": 0.5}, {"validation_split": 0.5}])
def test_scales_are_those_of_the_training_part(method, change):
    y = monthly(60)
    later = y.copy()
    later.iloc[30:] += 100
    scales = [method.sktime(horizon=6, **change).fit(v)._scales[None] for v in (y, later)]
    np.testing.assert_array_equal(*scales)
    np.testing.assert_allclose(scales[0][0], y[:30].mean())


def test_a_constant_series_stays_constant(method):
    y = monthly() * 0 + 7
    np.testing.assert_allclose(method.sktime().fit(y).predict([1, 5]), 7, atol=0.05)


def test_random_state_repeats_bit_for_bit_and_seeds_differ(method):
    def forecast(seed):
        return method.sktime(random_state=seed).fit(monthly()).predict([1, 9]).to_numpy()

    assert np.array_equal(forecast(3), forecast(3))
    assert not np.allclose(forecast(3), forecast(4))
    assert not np.allclose(forecast(None), forecast(None))


def test_global_generators_are_left_alone(method):
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    method.sktime(random_state=None).fit(monthly()).predict([1])
    assert np.random.rand() == expected


def test_limits_of_training(method):
    def epochs_and_steps(**settings):
        model = method.sktime(**settings).fit(monthly())._engine.model
        return model.epochs_trained, model.trainer.global_step if model.trainer else None

    y = monthly()
    fitted = method.sktime(max_steps=5).fit(y)
    assert fitted._engine.model.trainer.global_step == 5
    fitted = method.sktime(max_steps=None, num_epochs=2).fit(y)
    assert fitted._engine.model.epochs_trained == 2
    fitted = method.sktime(max_steps=None, max_time=0.2).fit(y)
    assert fitted._engine.model.trainer.global_step >= 1
    with pytest.raises(ValueError, match="num_epochs, max_steps and max_time are all None"):
        method.sktime(max_steps=None).fit(y)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-2},
        {"batch_size": 7},
        {"ema_decay": None},
        {"lr_schedule": "constant"},
        {"few_shot": 0.5},
        {"validation_split": 0.3},
        {"max_steps": 9},
        {"trainer_kwargs": {"gradient_clip_val": 1e-4}},
        {"context_length": 10},
    ],
)
def test_arguments_change_the_forecast(method, change):
    y = monthly()
    base = {"context_length": 12, "horizon": 6}
    plain = method.sktime(**base).fit(y).predict([1, 2, 3])
    changed = method.sktime(**{**base, **change}).fit(y).predict([1, 2, 3])
    assert not np.array_equal(plain, changed)


def test_validation_stops_early_and_patience_is_a_switch(method):
    settings = {"validation_split": 0.3, "lr": 1e-9, "max_steps": None, "num_epochs": 6}
    trained = [
        method.sktime(early_stopping_patience=p, **settings)
        .fit(monthly())
        ._engine.model.epochs_trained
        for p in (1, None)
    ]
    assert trained[0] < trained[1] == 6


def test_trainer_kwargs_are_not_changed(method):
    kwargs = {"gradient_clip_val": 1.0}
    method.sktime(trainer_kwargs=kwargs).fit(monthly())
    assert kwargs == {"gradient_clip_val": 1.0}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"likelihood": "normal"}, ValueError, "likelihood must be one of"),
        ({"horizon": 0}, ValueError, "horizon must be an integer >= 1 or None, found 0"),
        ({"context_length": 2.5}, TypeError, "context_length must be an integer"),
        ({"scaling": "robust"}, ValueError, "scaling must be one of"),
        ({"device": "tpu"}, ValueError, "device must be one of"),
        ({"validation_split": 1.0}, ValueError, r"validation_split must be a number in \(0, 1\)"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1"),
        ({"lr": -1.0}, ValueError, "lr must be a number"),
        ({"few_shot": 2.0}, ValueError, "few_shot must be a number"),
        ({"backbone": "no/such-model"}, OSError, "Ways out"),
    ],
)
def test_impossible_arguments_are_refused_in_fit(method, change, error, message):
    with pytest.raises(error, match=message):
        method.sktime(**change).fit(monthly())


# update, copies, processes, threads -----------------------------------------------------------


def test_update_without_training_moves_the_context_only(method):
    y = monthly()
    forecaster = method.sktime(horizon=6).fit(y[:-6])
    weights = copy.deepcopy(forecaster._engine.model.model.state_dict())
    forecaster.update(y[-6:], update_params=False)
    assert forecaster.cutoff == y.index[-1:]
    after = forecaster._engine.model.model.state_dict()
    assert all(np.array_equal(weights[n], after[n]) for n in weights if "_extra" not in n)
    assert forecaster.predict([1]).index[0] == y.index[-1] + 1


def test_update_with_training_goes_on_training(method):
    y = monthly()
    forecaster = method.sktime(horizon=6).fit(y[:-6])
    still = copy.deepcopy(forecaster)
    still.update(y[-6:], update_params=False)
    forecaster.update(y[-6:], update_params=True)
    assert not np.array_equal(forecaster.predict([1, 2]), still.predict([1, 2]))


def test_refitting_forgets_the_first_fit(method):
    forecaster = method.sktime().fit(100 * monthly(80, seed=1))
    again = forecaster.fit(monthly()).predict([1, 2])
    pd.testing.assert_frame_equal(again, method.sktime().fit(monthly()).predict([1, 2]))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
@pytest.mark.parametrize("likelihood", [None, "quantile", "gaussian"])
def test_copies_forecast_bit_equal(method, duplicate, likelihood):
    forecaster = method.sktime(likelihood=likelihood, horizon=4).fit(monthly())
    twin = duplicate(duplicate(forecaster))
    pd.testing.assert_frame_equal(twin.predict([-1, 2, 9]), forecaster.predict([-1, 2, 9]), rtol=0)
    if likelihood is not None:
        pd.testing.assert_frame_equal(
            twin.predict_interval([2, 9]), forecaster.predict_interval([2, 9]), rtol=0
        )
    twin.update(monthly(66)[-6:], update_params=True)  # and can go on training
    assert np.isfinite(twin.predict([1]).to_numpy()).all()


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f)), lambda f: f.clone()],
    ids=["deepcopy", "pickle", "clone"],
)
def test_new_forecasters_can_be_copied_too(method, duplicate):
    forecaster = method.sktime(trainer_kwargs={"gradient_clip_val": 0.1})
    twin = duplicate(forecaster)
    assert twin.get_params() == forecaster.get_params()
    first, second = (f.fit(monthly()).predict([1, 2]) for f in (forecaster, twin))
    pd.testing.assert_frame_equal(first, second, rtol=0)
    assert not duplicate(method.sktime()).is_fitted


def test_a_clone_of_a_fitted_forecaster_is_new(method):
    forecaster = method.sktime().fit(monthly())
    assert not forecaster.clone().is_fitted
    assert forecaster.is_fitted


def test_save_and_load(method, tmp_path):
    from sktime.base import load

    forecaster = method.sktime().fit(monthly())
    forecaster.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved.zip")
    pd.testing.assert_frame_equal(loaded.predict([1, 2]), forecaster.predict([1, 2]), rtol=0)


def test_a_pickle_is_as_large_as_what_trains(method):
    forecaster = method.sktime(**{method.width: 2048}).fit(monthly())
    module = forecaster._engine.model.model
    trains = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert 4 * trains < len(pickle.dumps(forecaster)) < 1.2 * 4 * trains + 64 * 1024


def test_another_process_forecasts_bit_equal(method, tmp_path):
    forecaster = method.sktime(horizon=4).fit(monthly())
    (tmp_path / "forecaster.pkl").write_bytes(pickle.dumps(forecaster))
    code = (
        "import pathlib, pickle, sys, torch; torch.set_num_threads(1)\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "forecaster = pickle.loads((folder / 'forecaster.pkl').read_bytes())\n"
        "forecaster.predict_interval([1, 7]).to_pickle(folder / 'interval.pkl')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ)
    found = pd.read_pickle(tmp_path / "interval.pkl")
    pd.testing.assert_frame_equal(found, forecaster.predict_interval([1, 7]), rtol=0)


def test_panels_train_one_model_and_broadcasting_one_for_each(method):
    from sktime.utils._testing.hierarchical import _make_hierarchical

    y = _make_hierarchical((2, 2), min_timepoints=30, max_timepoints=36, same_cutoff=False)
    together = method.sktime(horizon=3).fit(y)
    forecast = together.predict([1, 3])
    assert len(forecast) == 8
    for key in y.index.droplevel(-1).unique():
        last = y.loc[key].index[-1]
        assert list(forecast.loc[key].index - last) == [pd.Timedelta(days=d) for d in (1, 3)]
    alone = method.sktime(horizon=3, broadcasting=True).fit(y)
    assert alone.predict([1, 3]).shape == forecast.shape
    assert alone._is_vectorized
    assert not together._is_vectorized


def test_construction_and_use_are_silent(method, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forecaster = method.sktime(likelihood=None)
        forecaster.fit(load_airline()).predict([1, 30])
    assert capfd.readouterr() == ("", "")


def test_verbose_shows_progress(method, capfd):
    method.sktime(verbose=True).fit(monthly())
    assert "Epoch" in "".join(capfd.readouterr())


def test_trainer_kwargs_take_a_logger_and_survive_a_pickle(method, tmp_path):
    from pytorch_lightning.loggers import CSVLogger

    kwargs = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1}
    forecaster = method.sktime(trainer_kwargs=kwargs).fit(monthly())
    assert list(tmp_path.rglob("metrics.csv"))
    twin = pickle.loads(pickle.dumps(forecaster))
    pd.testing.assert_frame_equal(twin.predict([1]), forecaster.predict([1]), rtol=0)


# what an index must be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (pd.RangeIndex(0, 120, 2), "consecutive integers, found a step of 2 after 0"),
        (pd.Index([*range(30), *range(31, 61)]), "found a step of 2 after 29"),
        (pd.period_range("2000-01", periods=61, freq="M").delete(20), "found a step of 2"),
        (pd.date_range("2000-01-01", periods=61, freq="D").delete(20), "irregular ones between"),
        (pd.date_range("2000-01-01", periods=60, freq="D") + pd.to_timedelta(
            np.arange(60) ** 2, unit="h"), "irregular ones between"),
    ],
)  # fmt: skip
def test_irregular_indices_are_refused(method, index, message):
    y = pd.DataFrame(sine(60).astype(float), index=index)
    with pytest.raises(ValueError, match=message):
        method.sktime().fit(y)


def test_dates_without_a_frequency_are_refused(method):
    y = indexed("datetime")[:2].set_axis(pd.DatetimeIndex(["2000-01-01", "2000-01-02"]))
    with pytest.raises(ValueError, match="dates of a known frequency, found 2 without one"):
        method.sktime().fit(y, fh=[1])


@pytest.mark.parametrize("kind", ["datetime", "business"])
def test_short_instances_have_the_frequency_of_the_panel(method, kind):
    """Five business days in a row look like any five days, and two have no frequency at all."""
    y = indexed(kind)
    panel = pd.concat({"a": y, "b": y[:5], "c": y[:2]}, names=["i", "t"])
    with pytest.warns(UserWarning, match="The shortest series has 2 points"):
        forecast = method.sktime(context_length=8).fit(panel, fh=[1, 2, 3]).predict()
    assert list(forecast.loc["b"].index) == list(y.index[5:8])
    assert list(forecast.loc["c"].index) == list(y.index[2:5])


def test_missing_dates_become_rows_that_are_masked(method):
    y = indexed("datetime").drop(pd.Timestamp("2000-01-20"))
    forecast = method.sktime().fit(y.asfreq("D")).predict([1, 2])
    assert np.isfinite(forecast.to_numpy()).all()


def test_a_gap_before_an_update_is_refused(method):
    y = monthly()
    forecaster = method.sktime(horizon=6).fit(y[:-6])
    cutoff = forecaster.cutoff
    with pytest.raises(ValueError, match="found a step of 4"):
        forecaster.update(y[-3:], update_params=False)
    assert forecaster.cutoff == cutoff
    assert forecaster._cur_y.equals(y[:-6])


def test_set_params_and_refit_equals_a_new_forecaster(method):
    y = monthly()
    changed = method.sktime(horizon=3).fit(y).set_params(horizon=5, max_steps=6).fit(y)
    fresh = method.sktime(horizon=5, max_steps=6).fit(y)
    pd.testing.assert_frame_equal(changed.predict([1, 5]), fresh.predict([1, 5]), rtol=0)


def test_two_forecasters_of_equal_settings_share_no_trainable_weight(method):
    y = monthly()
    first, second = (method.sktime().fit(y) for _ in range(2))
    before = first.predict([1, 2])
    second.update(monthly(66)[-6:], update_params=True)
    pd.testing.assert_frame_equal(first.predict([1, 2]), before, rtol=0)
