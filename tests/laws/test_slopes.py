"""Gradients as the model brings them, and as slopes: numbers by hand and against torch's own check."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from statecheck.errors import ModelRaised
from statecheck.slopes import SMALL, apart, gradients, slope_error, weighted


class Quadratic(nn.Module):
    """y = w^2 x, of float64 numbers."""

    def __init__(self, w: float = 3.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))
        self.idle = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w**2 * x)[None, :, None]


def weights(n: int) -> list[float]:
    """The loss's weights of n outputs of one row."""
    return torch.randn(1, n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).flatten().tolist()


def test_the_loss_is_the_weighted_sum_over_the_root_of_the_number() -> None:
    a, b = weights(2)
    outputs = torch.tensor([[[2.0], [5.0]]])
    assert weighted(outputs).item() == pytest.approx((2 * a + 5 * b) / math.sqrt(2))
    assert weighted(outputs, seed=1).item() != pytest.approx(weighted(outputs).item())


def test_the_gradient_is_that_of_hand() -> None:
    """y = w^2 x with w = 3: dy/dw = 6 x."""
    model, x = Quadratic(), torch.tensor([1.0, 2.0], dtype=torch.float64)
    a, b = weights(2)
    found = gradients(model, lambda: model(x))
    assert list(found) == ["w"]
    assert found["w"].item() == pytest.approx(6 * (a + 2 * b) / math.sqrt(2))
    assert model.w.grad is None


def test_gradients_are_those_of_torchs_own_check() -> None:
    torch.manual_seed(0)
    rnn = nn.GRU(2, 3, batch_first=True).double()
    x = torch.randn(2, 4, 2, dtype=torch.float64)
    found = gradients(rnn, lambda: rnn(x)[0])
    weighted(rnn(x)[0]).backward()  # type: ignore[no-untyped-call]
    for name, parameter in rnn.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad)


def test_gradients_are_there_inside_no_grad_as_well() -> None:
    model = Quadratic()
    with torch.no_grad():
        assert gradients(model, lambda: model(torch.ones(1, dtype=torch.float64)))["w"].item() != 0
    frozen = Quadratic().requires_grad_(False)
    with pytest.raises(ModelRaised, match="do not depend on any parameter that takes gradients"):
        gradients(frozen, lambda: frozen(torch.ones(1, dtype=torch.float64)))


def test_a_backward_pass_that_raises_is_the_models_fault() -> None:
    model = Quadratic()

    def in_place() -> Tensor:
        y = torch.exp(model(torch.ones(2, dtype=torch.float64)))
        y.detach().add_(1)
        return y

    with pytest.raises(ModelRaised, match="the backward pass raised RuntimeError: one of the variables"):
        gradients(model, in_place)


def test_gradients_are_compared_parameter_by_parameter() -> None:
    """(3, 4) against (3, 0): off by 4 of 5; the other is the same."""
    expected = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2)}
    assert apart({"a": torch.tensor([3.0, 0.0]), "b": torch.ones(2)}, expected) == (pytest.approx(0.8), "a")
    assert apart(expected, expected) == (0.0, "a")
    assert apart({}, {}) == (0.0, "")


def test_a_gradient_under_a_thousandth_of_the_largest_is_measured_against_that() -> None:
    """Of 100, a thousandth is 0.1: off by 0.01 of it, though off by all of itself."""
    expected = {"a": torch.tensor([100.0]), "b": torch.tensor([0.001])}
    error, parameter = apart({"a": torch.tensor([100.0]), "b": torch.tensor([0.0])}, expected)
    assert (error, parameter) == (pytest.approx(0.001 / (100 * SMALL)), "b")


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ({"a": torch.tensor([math.nan])}, math.inf),
        ({}, math.inf),
        ({"a": torch.tensor([1.0]), "new": torch.tensor([1.0])}, math.inf),
        ({"a": torch.tensor([1.0]), "new": torch.tensor([0.0])}, 0.0),
    ],
)
def test_what_is_missing_not_finite_or_new_is_infinitely_far(found: dict[str, Tensor], error: float) -> None:
    assert apart(found, {"a": torch.tensor([1.0])})[0] == error


def test_a_slope_agrees_with_a_right_gradient_and_tells_a_wrong_one() -> None:
    """Of one number a random direction is +1 or -1: g that is said to be 2 g, or g / 2, is off by 1/2, or 1."""
    model, x = Quadratic(), torch.tensor([1.0, 2.0], dtype=torch.float64)
    right = gradients(model, lambda: model(x))["w"]
    errors = [slope_error(model.w, k * right, lambda: model(x), 0.0, seed=0) for k in (1.0, 2.0, 0.5)]
    assert errors == [pytest.approx(0.0, abs=1e-6), pytest.approx(0.5, abs=1e-6), pytest.approx(1.0, abs=1e-6)]
    assert model.w.item() == 3.0


def test_the_slope_of_a_model_that_does_not_move_is_right_if_the_gradient_is_zero() -> None:
    model = Quadratic()
    call = lambda: model(torch.ones(2, dtype=torch.float64))  # noqa: E731
    assert slope_error(model.idle, torch.zeros(1, dtype=torch.float64), call, 0.0, seed=0) == 0.0
    assert slope_error(model.idle, torch.ones(1, dtype=torch.float64), call, 0.0, seed=0) == pytest.approx(1.0)


def test_a_loss_that_jumps_tells_no_slope() -> None:
    """Rounded to eighths: no two differences agree."""
    model = Quadratic()
    call = lambda: (model(torch.ones(1, dtype=torch.float64)) * 8e3).round() / 8e3 + 100 * torch.rand(1)  # noqa: E731
    assert slope_error(model.w, torch.ones(1, dtype=torch.float64), call, 0.0, seed=0) is None


def test_a_row_that_is_to_stand_still_is_not_moved() -> None:
    table = nn.Embedding(3, 2, padding_idx=0).double()
    with torch.no_grad():
        table.weight[0] = 1.0
    ids = torch.tensor([[0, 1, 2]])
    right = gradients(table, lambda: table(ids))["weight"]
    assert not right[0].any()
    still = slope_error(table.weight, right, lambda: table(ids), 0.0, seed=0, still=0)
    moved = slope_error(table.weight, right, lambda: table(ids), 0.0, seed=0)
    assert still == pytest.approx(0.0, abs=1e-6)
    assert moved is not None
    assert moved > 0.1
