"""Blocks of the networks: normalisation undone per parameter, distances, the head."""

import pytest
import torch
import torch.nn.functional as F

from tsllm_estimators.networks.base import Shapes
from tsllm_estimators.networks.blocks import (
    DISTANCE_DEGREES,
    DISTANCES,
    ForecastHead,
    inverse_softplus,
    normalize_window,
    restore_parameters,
)

UNIT = torch.ones(())


def window(seed=0):
    return 3 * torch.randn(4, 20, 2, generator=torch.Generator().manual_seed(seed)) + 5


def test_windows_get_mean_0_and_deviation_1():
    normal, statistics = normalize_window(window(), UNIT)
    torch.testing.assert_close(normal.mean(1), torch.zeros(4, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal.std(1, correction=0), torch.ones(4, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal * statistics.scale + statistics.location, window())


def test_statistics_are_constant_for_the_gradient():
    x = window().requires_grad_()
    normal, statistics = normalize_window(x, UNIT)
    assert not statistics.location.requires_grad
    assert not statistics.scale.requires_grad
    assert normal.requires_grad


def test_a_constant_window_is_finite():
    normal, statistics = normalize_window(torch.full((1, 9, 1), 7.0), UNIT)
    assert torch.equal(normal, torch.zeros(1, 9, 1))
    assert statistics.scale.item() == pytest.approx(1e-5**0.5)


def test_normal_values_do_not_depend_on_the_units_of_the_data():
    small = 1e-4 * (window() - 5)
    expected, _ = normalize_window(small / 1e-4, UNIT)
    found, _ = normalize_window(small, 1e-4 * UNIT)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kinds", [("location",), ("location", "scale"), ("location",) * 3])
def test_parameters_follow_the_data(kinds):
    torch.manual_seed(0)
    raw = torch.randn(4, 6, 2, len(kinds))
    results = []
    for factor, shift in [(1, 0), (1, 1000), (10, 0)]:
        _, statistics = normalize_window(factor * window().double() + shift, factor * UNIT.double())
        results.append(restore_parameters(raw.double(), statistics, kinds))
    plain, shifted, stretched = results
    for index, kind in enumerate(kinds):
        parts = [r[..., index] for r in (plain, shifted, stretched)]
        if kind == "location":
            torch.testing.assert_close(parts[1], parts[0] + 1000)
            torch.testing.assert_close(parts[2], 10 * parts[0])
        else:
            widths = [F.softplus(part) for part in parts]
            torch.testing.assert_close(widths[1], widths[0])
            torch.testing.assert_close(widths[2], 10 * widths[0])


def test_inverse_softplus_is_exact_from_tiny_to_huge_widths():
    widths = torch.tensor([1e-20, 1e-6, 0.1, 1.0, 19.9, 20.1, 1e6], requires_grad=True)
    raw = inverse_softplus(widths)
    torch.testing.assert_close(F.softplus(raw), widths)
    raw.sum().backward()
    assert widths.grad.isfinite().all()


def test_distances():
    first, second = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([3.0, -2.0, 0.0])
    assert DISTANCES["l1"](first, second).tolist() == [2, 0, 0]
    assert DISTANCES["mse"](first, second).tolist() == [4, 0, 0]
    assert DISTANCES["smooth_l1"](first, second).tolist() == [1.5, 0, 0]
    assert DISTANCES["smape"](first, second).tolist() == [0.5, 0, 0]
    assert DISTANCES.keys() == DISTANCE_DEGREES.keys()


@pytest.mark.parametrize("name", ["l1", "mse", "smape"])
def test_degrees_are_the_powers_of_the_unit(name):
    first, second = window(0), window(1)
    once, tenfold = DISTANCES[name](first, second), DISTANCES[name](10 * first, 10 * second)
    torch.testing.assert_close(tenfold, 10 ** DISTANCE_DEGREES[name] * once)


def test_head_starts_every_width_at_the_same_size():
    head = ForecastHead(8, 5, ("location", "scale", "free"), dropout=0.0)
    parameters = head(100 * torch.randn(2, 3, 8))
    assert (parameters[..., 1:] == 0).all()
    assert (parameters[..., 0] != 0).all()


def test_head_maps_each_token_to_its_own_forecast():
    head = ForecastHead(8, 5, ("location",) * 3, dropout=0.0)
    tokens = torch.randn(2, 4, 8)
    out = head(tokens)
    assert out.shape == (2, 5, 4, 3)
    changed = tokens.clone()
    changed[:, 1] += 1
    moved = (head(changed) != out).any(dim=-1).any(dim=1)
    assert moved.tolist() == [[False, True, False, False]] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_length": 0}, "context_length must be an integer >= 1, found 0"),
        ({"horizon": -1}, "horizon must be an integer >= 1, found -1"),
        ({"n_variates": 0}, "n_variates must be an integer >= 1"),
        ({"parameters": ("width",)}, "parameters must be one of"),
        ({"location": 1}, "location must be one of"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**{"context_length": 4, "horizon": 2, "n_variates": 1, **change})
