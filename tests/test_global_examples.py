"""The examples of global learning in small: many short series, and weights from elsewhere."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_m4 import days, written

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("many_short_series")


@pytest.fixture
def transfer(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("transfer")
    for name in ("transfer", "benchmarks._m4", "benchmarks"):
        sys.modules.pop(name, None)


def test_the_panel_is_of_short_series_that_end_alike(short):
    known, ahead = short.panel(50, seed=1)
    lengths = known.groupby(level=0).size()
    assert lengths.between(36, 60).all()
    assert lengths.nunique() > 10
    ends = known.reset_index().groupby("series")["month"].max()
    assert ends.nunique() == 1
    assert (ahead.groupby(level=0).size() == 6).all()
    assert ahead.reset_index()["month"].min() == ends.iloc[0] + 1
    assert (known["sales"] > 0).all()


def test_the_seasonal_naive_is_the_same_month_of_the_year_before(short):
    known, ahead = short.panel(3, seed=1)
    found = short.seasonal_naive(known)
    last = known.loc["series 00002", "sales"]
    months = ahead.loc["series 00002"].index
    np.testing.assert_array_equal(found[2], last.loc[months - 12])


def test_the_error_is_by_hand(short):
    index = pd.MultiIndex.from_product([["a", "b"], range(6)])
    ahead = pd.DataFrame({"sales": [10.0] * 6 + [100.0] * 6}, index)
    forecast = np.array([[11.0] * 6, [80.0] * 6])
    assert short.error(forecast, ahead) == pytest.approx((10 + 20) / 2)


@pytest.mark.slow
def test_one_model_learns_the_seasons_that_short_series_share(short, capsys):
    """In few steps already better than the seasonal naive, of series that it never saw too."""
    few = ["--series", "150", "--steps", "100", "--tiny", "--faces", "sktime", "darts"]
    table = short.main(few).set_index("error in % of the mean")
    for face in ("sktime", "darts"):
        ours = table.loc[f"Time-LlaMA in {face}"]
        assert (ours < table.loc["seasonal naive"]).all()
    printed = capsys.readouterr().out
    assert "sktime: forecast 100 unseen series: " in printed
    assert "GiB" in printed


def test_series_end_where_they_may(short):
    """The forecasts of series that end in different months are each of their own months."""
    known, _ = short.panel(4, seed=1)
    earlier = known.drop(known.loc[["series 00001"]].index[-5:])
    model = short.InSktime(max_steps=2, backbone="tiny", random_state=0)
    model.fit(known)
    forecaster = model.forecaster.fit(earlier, fh=[1, 2])
    months = forecaster.predict().reset_index().groupby("series")["month"].min()
    end = known.index[-1][1]
    assert months.to_list() == [end + 1, end - 4, end + 1, end + 1]


def test_sktime_is_asked_once_where_series_end_alike(short, monkeypatch):
    """It takes a millisecond for the steps of one series, which is a forecast of hundreds."""
    from tsllm_estimators.sktime import _index

    asked, steps_of = [], _index.steps_of

    def watched(fh, cutoff):
        asked.append(cutoff[0])
        return steps_of(fh, cutoff)

    known, _ = short.panel(6, seed=1)
    earlier = known.drop(known.loc[["series 00001"]].index[-5:])
    model = short.InSktime(max_steps=1, backbone="tiny", random_state=0)
    model.fit(known)
    forecaster = model.forecaster.fit(earlier, fh=[1, 2])
    monkeypatch.setattr(_index, "steps_of", watched)
    forecaster.predict()
    end = known.index[-1][1]
    assert sorted(asked) == [end - 5, end]


@pytest.mark.slow
def test_weights_of_m4_are_fitted_to_another_series_in_every_way(transfer, tmp_path, monkeypatch):
    written(tmp_path, [400] * 4)
    monkeypatch.setenv("TSLLM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"set TSLLM_DATA.*zhouhaoyi/ETDataset"):
        transfer.main([])
    pd.DataFrame({"OT": days(11520, level=20)}).to_csv(tmp_path / "ETTh1.csv")
    steps = ["--steps", "40", "--fit-steps", "2", "--tiny"]
    table = transfer.main(steps).set_index("ETTh1, oil temperature")["MAE"]
    ways = ["pretrained, zero-shot", "pretrained, head", "pretrained, full", "new weights"]
    assert table.index.to_list() == ["the day before", *ways]
    assert table[ways].nunique() == 4
    # both data have the same day: what was learned of one forecasts the other
    assert table[ways[:3]].max() < table["new weights"]
    values = transfer.oil(tmp_path)
    assert values[:8640].std() == pytest.approx(1)
    naive = np.abs(values[8640:] - values[8616:-24]).mean()
    assert table["the day before"] == pytest.approx(naive)
