"""Training under bfloat16 autocast: the same losses within a few percent, and nothing of the memory in bfloat16."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from statecheck_reference.corpus import Corpus
from statecheck_reference.mamba1 import Mamba1Mixer
from statecheck_reference.models import MODELS
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.stepping import Stepper
from statecheck_reference.streams import PassageStreams
from statecheck_reference.train import LOG, train
from statecheck_reference.training_log import read_log
from torch import Tensor, nn

LAYOUTS: dict[str, dict[str, Any]] = {
    "parallel": {},
    "anchored": {"attention_at": 1, "attention_window": 8, "attention_heads": 2, "residual_gamma": 0.1},
    "mamba-1": {"mamba_version": 1, "mamba_rank": 2},
    "interleaved": {"layout": "interleaved"},
    "gate": {"fusion": "gate"},
    "sum": {"fusion": "sum", "blend_learned": False},
    "residual": {"fusion": "residual"},
    "project": {"fusion": "project"},
}


@pytest.fixture
def others(tiny: TrainingSettings) -> dict[str, TrainingSettings]:
    """The models that are no hybrids."""
    shape = {"vocabulary": 300, "width": 12, "layers": 2, "heads": 2, "feed_forward": 16}
    return {"lstm": tiny, "transformer": replace(tiny, model="transformer", shape=shape, passage_windows=1)}


def trained(settings: TrainingSettings, corpus: Corpus, steps: int = 12) -> tuple[Stepper, list[float]]:
    """A model after some steps, and the loss of each."""
    torch.manual_seed(settings.seed)
    one = Stepper.of(settings, settings.architecture.build(settings.shape))
    streams = PassageStreams(corpus, batch=2, window=8, passage_windows=settings.passage_windows, seed=settings.seed)
    return one, [one.step(streams.batch_at(step), step + 1, detailed=False).loss for step in range(steps)]


def check_close(settings: TrainingSettings, corpus: Corpus) -> None:
    """Losses of twelve steps, and what is remembered after the first: later steps have other weights."""
    low = replace(settings, precision="bfloat16")
    states, found = (trained(one, corpus, steps=1)[0].model.get_states() for one in (settings, low))
    for name, state in found.items():
        assert float((state - states[name]).detach().norm() / states[name].detach().norm()) < 0.03, name
    stepper, losses = trained(low, corpus)
    expected = trained(settings, corpus)[1]
    assert losses == pytest.approx(expected, rel=0.01)
    assert losses != expected  # else nothing was done in bfloat16
    for name, state in stepper.model.get_states().items():
        assert state.dtype == torch.float32, name
        assert state.isfinite().all(), name
    assert {parameter.dtype for parameter in stepper.model.parameters()} == {torch.float32}
    assert {value.dtype for kept in stepper.optimiser.state.values() for value in kept.values()} == {torch.float32}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_hybrid_learns_under_autocast_as_it_does_without(
    tiny_runs: dict[str, TrainingSettings], corpus: Corpus, layout: str
) -> None:
    hybrid = replace(tiny_runs["hybrid"], component_rates={})
    check_close(replace(hybrid, shape={**hybrid.shape, **LAYOUTS[layout]}), corpus)


@pytest.mark.parametrize("model", ["lstm", "transformer"])
def test_the_other_models_learn_under_autocast_as_they_do_without(
    others: dict[str, TrainingSettings], corpus: Corpus, model: str
) -> None:
    check_close(others[model], corpus)


def test_the_matrices_are_multiplied_in_bfloat16(tiny_runs: dict[str, TrainingSettings], corpus: Corpus) -> None:
    seen: dict[str, torch.dtype] = {}

    def look(module: nn.Module, given: Any, answer: Tensor) -> None:
        seen[str(module)] = answer.dtype

    settings = replace(tiny_runs["hybrid"], precision="bfloat16")
    torch.manual_seed(0)
    model = settings.architecture.build(settings.shape)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(look)
    streams = PassageStreams(corpus, batch=2, window=8, passage_windows=4, seed=0)
    Stepper.of(settings, model).step(streams.batch_at(0), 1, detailed=False)
    assert seen
    assert set(seen.values()) == {torch.bfloat16}


def test_a_run_under_autocast_validates_and_resumes(
    tiny_runs: dict[str, TrainingSettings], corpus: Corpus, tmp_path: Path
) -> None:
    """The losses of validation are of the weights as they are, in float32; the second call has nothing left to do."""
    settings = replace(tiny_runs["hybrid"], component_rates={}, sample_tokens=0, validate_every=20)
    for precision in ("float32", "bfloat16"):
        train(replace(settings, precision=precision), corpus, tmp_path / precision)
    plain, found = (read_log(tmp_path / precision / LOG)[-1] for precision in ("float32", "bfloat16"))
    assert found["validation_loss"] == pytest.approx(plain["validation_loss"], rel=0.02)
    assert found["health"].keys() == plain["health"].keys()
    with pytest.raises(ValueError, match=r"precision bfloat16 -> float32"):
        train(settings, corpus, tmp_path / "bfloat16")
    train(replace(settings, precision="bfloat16"), corpus, tmp_path / "bfloat16")


def test_the_recurrence_of_an_lstm_is_the_same_with_and_without_autocast() -> None:
    """Its cell would keep three digits in bfloat16; only the table of logits is multiplied in it."""
    torch.manual_seed(0)
    model = MODELS["lstm"].build({"vocabulary": 50, "width": 16, "layers": 2})
    inputs = torch.randint(0, 50, (2, 200))
    logits, states = model(inputs), model.get_states()
    model.set_states(None)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(inputs).dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    for name, state in model.get_states().items():
        assert state.equal(states[name]), name


def test_the_cache_of_a_transformer_stays_in_the_dtype_of_its_weights() -> None:
    torch.manual_seed(0)
    shape = {"vocabulary": 50, "width": 16, "layers": 2, "heads": 2, "feed_forward": 16}
    model = MODELS["transformer"].build(shape)
    inputs = torch.randint(0, 50, (2, 12))
    model(inputs)
    states = model.get_states()
    model.set_states(None)
    with torch.autocast("cpu", torch.bfloat16):
        model(inputs[:, :7])
        model.set_states(model.get_states())  # as a step of training does
        model(inputs[:, 7:])
    for name, state in model.get_states().items():
        assert state.dtype == torch.float32
        assert float((state - states[name]).detach().norm() / states[name].detach().norm()) < 0.02, name


def test_a_step_of_mamba_is_as_fine_under_autocast_as_its_bias() -> None:
    """softplus of a bias of -6.4 is 0.0017; in bfloat16 numbers near -6.4 lie 1/32 apart: steps would be, by 3 %."""
    torch.manual_seed(0)
    layer = Mamba1Mixer(width=32, inner=64, state_size=4, rank=4).double()
    with torch.no_grad():
        layer.dt_proj.bias.uniform_(-7, -6)
    inputs = torch.randn(2, 20, 32, dtype=torch.float64)

    def steps(layer: Mamba1Mixer, inputs: Tensor) -> Tensor:
        states = [torch.zeros(2, 64, 3).to(inputs), torch.zeros(2, 64, 4).to(inputs)]
        layer(inputs, *states)
        assert layer._decay is not None
        return layer._decay[0]

    exact, single = steps(layer, inputs), copy.deepcopy(layer).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = steps(single, inputs.float())
    assert found.dtype == torch.float32
    assert float((found.double() / exact - 1).abs().max()) < 0.005
    coarse = (layer.dt_proj.bias.bfloat16().double() - layer.dt_proj.bias).detach().exp()
    assert float((coarse - 1).abs().max()) > 0.013  # what rounding the bias alone would do
