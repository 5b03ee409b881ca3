"""sktime's own conformance suite, whole: nothing is excluded or skipped."""

import pytest
from sktime.utils.estimator_checks import parametrize_with_checks
from support import METHODS

pytestmark = [pytest.mark.conformance, pytest.mark.filterwarnings("ignore")]

FORECASTERS = [method.forecaster for method in METHODS]


@parametrize_with_checks(FORECASTERS, obj_varname="forecaster", check_varname="check")
def test_check_estimator(forecaster, check):
    from sktime.utils.estimator_checks import check_estimator

    check_estimator(forecaster, tests_to_run=check, raise_exceptions=True, verbose=False)


def test_nothing_is_skipped_and_two_settings_are_tested():
    for forecaster in FORECASTERS:
        assert not forecaster.get_class_tag("tests:skip_by_name")
        settings = forecaster.get_test_params()
        assert len(settings) >= 2
        # with a language model and without, in whose place or in place of whose texts is "none"
        assert {s.get(name) for s in settings for name in ("backbone", "text")} >= {"tiny", "none"}
        assert None in {s.get("likelihood", "quantile") for s in settings}
