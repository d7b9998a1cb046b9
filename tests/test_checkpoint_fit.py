"""Weights go into a module whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from statecheck.checkpoint import Weights, fit, load_weights, save_weights, tensors_digest
from statecheck.errors import CheckpointRefused, InputRefused

torch.set_num_threads(1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 4)
        self.readout = nn.Linear(4, 7, bias=False)
        self.readout.weight = self.embedding.weight


def weights_of(tensors: dict[str, Tensor]) -> Weights:
    return Weights(tensors, {}, "zip", "", Path("runs/m.pt"))


def refusal_of(module: nn.Module, tensors: dict[str, Tensor]) -> str:
    before = tensors_digest(module)
    with pytest.raises(CheckpointRefused) as caught:
        fit(module, weights_of(tensors))
    assert tensors_digest(module) == before, "a refused checkpoint leaves the module as it was"
    assert caught.value.exit_code == 4
    line = str(caught.value)
    assert line.startswith("runs/m.pt: ")
    assert line.isprintable()
    return line


def test_weights_fit_through_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = nn.LSTM(3, 4, num_layers=2), nn.LSTM(3, 4, num_layers=2)
    save_weights(tmp_path / "m.safetensors", source.state_dict(), {})
    assert fit(target, load_weights(tmp_path / "m.safetensors")) == ()
    assert tensors_digest(target) == tensors_digest(source)


@pytest.mark.parametrize("left_out", ["readout.weight", "embedding.weight", None])
def test_a_tied_weight_need_stand_in_the_file_once(left_out: str | None) -> None:
    torch.manual_seed(0)
    source, target = Tied(), Tied()
    tensors = {name: value for name, value in source.state_dict().items() if name != left_out}
    fit(target, weights_of(tensors))
    assert torch.equal(target.embedding.weight, source.embedding.weight)
    assert target.readout.weight is target.embedding.weight


def test_tied_weights_that_differ_are_refused() -> None:
    tensors = {**Tied().state_dict(), "readout.weight": torch.zeros(7, 4)}
    line = refusal_of(Tied(), tensors)
    assert "'embedding.weight' and 'readout.weight' differ" in line
    assert "untied" in line


def test_a_nan_in_tied_weights_is_no_difference() -> None:
    source = Tied()
    with torch.no_grad():
        source.embedding.weight[0, 0] = float("nan")
    target = Tied()
    fit(target, weights_of(source.state_dict()))
    assert target.readout.weight[0, 0].isnan()


def test_missing_and_extra_tensors_are_listed_with_a_count() -> None:
    tensors = {f"layers.{number}.weight": torch.ones(1) for number in range(8)}
    line = refusal_of(nn.LSTM(2, 2), tensors)
    assert "4 missing (weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0)" in line
    assert "8 extra (" in line
    assert "and 3 more" in line
    assert "--model" in line


@pytest.mark.parametrize(("prefix", "maker"), [("module.", "DistributedDataParallel"), ("_orig_mod.", "torch.compile")])
def test_a_wrapper_in_the_names_is_recognised(prefix: str, maker: str) -> None:
    tensors = {prefix + name: value for name, value in nn.Linear(2, 2).state_dict().items()}
    line = refusal_of(nn.Linear(2, 2), tensors)
    assert maker in line
    assert "state_dict of the model inside" in line


def test_misshapen_tensors_are_named_with_both_shapes() -> None:
    line = refusal_of(nn.Linear(2, 3), nn.Linear(2, 4).state_dict())
    assert "2 tensors have another shape" in line
    assert "weight is (4, 2) and should be (3, 2)" in line
    assert "configuration" in line


def test_floats_are_converted_and_said() -> None:
    source, target = nn.Linear(2, 2).double(), nn.Linear(2, 2)
    notes = fit(target, weights_of(source.state_dict()))
    assert notes == ("2 tensors were converted from float64 to float32: weight, bias",)
    assert target.weight.dtype == torch.float32
    assert torch.equal(target.weight, source.weight.float())


def test_a_conversion_that_overflows_is_refused_and_an_infinity_is_not() -> None:
    tensors = {"weight": torch.tensor([[1e30]]), "bias": torch.ones(1)}
    assert "overflows when it is converted from float32 to float16" in refusal_of(nn.Linear(1, 1).half(), tensors)
    tensors["weight"] = torch.tensor([[float("inf")]])
    target = nn.Linear(1, 1).half()
    fit(target, weights_of(tensors))
    assert target.weight.isinf().all()


def test_quantised_weights_are_refused() -> None:
    tensors = {"weight": torch.ones(2, 2, dtype=torch.int8), "bias": torch.ones(2)}
    line = refusal_of(nn.Linear(2, 2), tensors)
    assert "'weight' is int8 and should be float32" in line
    assert "unquantised" in line


def test_a_module_on_the_meta_device_would_swallow_weights() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    with pytest.raises(InputRefused, match="meta device"):
        fit(module, weights_of(nn.Linear(2, 2).state_dict()))


def test_what_a_hook_of_the_module_raises_is_told() -> None:
    module = nn.Linear(2, 2)

    def hook(*_: object) -> None:
        raise KeyError("scale")

    module.register_load_state_dict_pre_hook(hook)
    line = refusal_of(module, nn.Linear(2, 2).state_dict())
    assert "Linear does not take these weights (KeyError: 'scale')" in line
