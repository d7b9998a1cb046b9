"""What the training log tells beside the loss, and which parameters decay and learn at rates of their own."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from statecheck_reference import diagnostics
from statecheck_reference.corpus import Corpus
from statecheck_reference.evaluation import Windows, cut_windows, evaluate_with_states
from statecheck_reference.models import LanguageModel
from statecheck_reference.optimiser import make_optimiser, set_rate
from statecheck_reference.sampling import sample
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.start_checks import check_falling, check_untrained, complaints
from statecheck_reference.stepping import TrainingDiverged
from statecheck_reference.train import LOG, train
from statecheck_reference.training_log import read_log
from torch.nn import functional

from statecheck import check_model, wrap
from statecheck.probes.extended import read_log as read_log_of_statecheck


@pytest.fixture
def settings(tiny_runs: dict[str, TrainingSettings]) -> TrainingSettings:
    """Of the small hybrid, all components at the same rate."""
    return replace(tiny_runs["hybrid"], component_rates={})


@pytest.fixture
def model(settings: TrainingSettings) -> LanguageModel:
    torch.manual_seed(0)
    return settings.architecture.build(settings.shape)


def windows(rows: int = 2) -> Windows:
    generator = torch.Generator().manual_seed(0)
    return cut_windows(torch.randint(0, 300, (rows, 33), generator=generator), window=8)


def backward(model: LanguageModel) -> None:
    inputs, targets = windows()[0]
    functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()


def test_the_rows_of_a_hybrid_tell_of_its_components(
    settings: TrainingSettings, corpus: Corpus, tmp_path: Path
) -> None:
    train(replace(settings, log_every=1), corpus, tmp_path)
    rows = read_log(tmp_path / LOG)
    for row in rows[1:]:
        assert set(row["gradient_norms"]) == set(row["relative_updates"]) == {"rwkv", "mamba"}
        norms = row["gradient_norms"]
        assert min(norms.values()) > 0
        assert row["gradient_ratio"] == pytest.approx(norms["rwkv"] / norms["mamba"], rel=1e-5)
        assert math.hypot(*row["gradient_norms"].values()) < row["gradient_norm"]  # both are before clipping
        assert set(row["gates"]) == {"blocks.0", "blocks.1"}
        assert all(0 < gate < 1 for gate in row["gates"].values())
        assert ("health" in row) == ("state_rms" in row) == ("validation_loss" in row) == (row["step"] % 10 == 0)
    states = {f"blocks.{n}.{name}" for n in (0, 1) for name in ("rwkv.wkv", "rwkv.shift", "mamba.ssm", "mamba.conv")}
    for row in (rows[0], rows[-1]):
        assert set(row["state_rms"]) == states
        assert set(row["health"]) == {"rwkv.0", "rwkv.1", "mamba.0", "mamba.1"}
        assert all(0 <= score <= 1 for score in row["health"].values())
        assert set(row["evolution"]) == set(row["pinned"]) == set(row["health"])
        assert all(-1 <= cosine <= 1 for cosine in row["evolution"].values())
        assert set(row["state_entropy"]) == states
    read = read_log_of_statecheck(tmp_path / LOG, list(settings.components))
    for part, key in ((read.norms, "gradient_norms"), (read.updates, "relative_updates"), (read.gates, "gates")):
        assert {name: points[-1] for name, points in part.items()} == {n: (40, v) for n, v in rows[-1][key].items()}


def test_gradient_norms_are_those_of_all_gradients_of_a_component_as_one_vector(
    settings: TrainingSettings, model: LanguageModel
) -> None:
    backward(model)
    norms = diagnostics.gradient_norms(diagnostics.parts_of(model, settings.components))
    for component in ("rwkv", "mamba"):
        own = [p.grad.double().flatten() for name, p in model.named_parameters() if f".{component}." in name]
        assert norms[component] == pytest.approx(torch.cat(own).norm().item(), rel=1e-5)


def test_the_relative_update_is_that_of_the_step_that_was_taken(
    settings: TrainingSettings, model: LanguageModel
) -> None:
    """By hand: parameters scaled by 1.25 moved by a quarter of themselves; nothing moved: 0."""
    parts = diagnostics.parts_of(model, settings.components)
    before = diagnostics.values_of(parts)
    with torch.no_grad():
        for parameter in parts["rwkv"]:
            parameter.mul_(1.25)
    assert diagnostics.relative_updates(parts, before) == {"rwkv": pytest.approx(0.25, rel=1e-5), "mamba": 0.0}
    with torch.no_grad():
        for value in before["mamba"]:
            value.zero_()
    assert set(diagnostics.relative_updates(parts, before)) == {"rwkv"}


def test_gates_are_means_over_the_last_call(model: LanguageModel) -> None:
    """A gate's bias of log 3, without weights, is a share of 3/4 everywhere."""
    assert diagnostics.gates(model) == {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".fusion." in name:
                parameter.fill_(math.log(3) if name.endswith("bias") else 0)
    model(windows()[0][0])
    assert diagnostics.gates(model) == {"blocks.0": pytest.approx(0.75), "blocks.1": pytest.approx(0.75)}


@pytest.mark.parametrize("name", ["lstm", "hybrid"])
def test_measuring_health_leaves_the_model_as_it_was(tiny_runs: dict[str, TrainingSettings], name: str) -> None:
    settings = tiny_runs[name]
    model = settings.architecture.build(settings.shape)
    backward(model)
    states = {state: value.clone() for state, value in model.get_states().items()}
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    generator = torch.get_rng_state()
    first = diagnostics.read_states(model, settings, windows(16))
    assert diagnostics.read_states(model, settings, windows(16)) == first
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, states[state]) for state, value in model.get_states().items())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(p.grad, was) for p, was in zip(model.parameters(), gradients, strict=True))


def test_health_sees_a_state_that_no_input_reaches(settings: TrainingSettings, model: LanguageModel) -> None:
    """With its parameters and the norm before it at zero, the first RWKV writes nothing and sees nothing."""
    whole = diagnostics.read_states(model, settings, windows(16))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks.0.rwkv.") or name == "blocks.0.norm.weight":
                parameter.zero_()
    broken = diagnostics.read_states(model, settings, windows(16))
    assert whole.health["rwkv.0"] > 0.5
    assert broken.health["rwkv.0"] < 0.01


@pytest.mark.parametrize("stuck", [False, True])
def test_evolution_and_pinned_are_the_numbers_that_the_row_of_a_suite_judges(
    settings: TrainingSettings, model: LanguageModel, stuck: bool
) -> None:
    if stuck:  # the same is written at every token, and all else forgotten: x, B and dt are constants
        mixer = model.blocks[0].mamba  # type: ignore[index, union-attr]
        with torch.no_grad():
            mixer.conv1d.weight.zero_()
            mixer.conv1d.bias.fill_(1.0)
            mixer.in_proj.weight[-mixer.dt_bias.numel() :] = 0.0
            mixer.A_log.fill_(8.0)
    reading = diagnostics.read_states(model, settings, windows(16))
    wrapped = wrap(
        model, vocabulary=300, training_length=8, **settings.architecture.declared(settings.shape).for_wrap()
    )
    inputs = torch.cat([inputs for inputs, _ in windows(16)], dim=1)
    row = check_model(wrapped, only=["G3.5"], inputs=inputs)["G3.5"]
    worst = {one.name: one.value for one in row.measurements}
    assert max(reading.pinned.values()) == pytest.approx(worst["G3.5.pinned"], abs=1e-6)
    assert (max(reading.pinned.values()) > 0.5) == stuck
    if not stuck:
        assert max(reading.evolution.values()) == pytest.approx(worst["G3.5.cosine"], abs=1e-6)


def test_a_sample_is_drawn_from_the_model_and_leaves_it_as_it_was(model: LanguageModel) -> None:
    """The seed decides, and at a temperature of almost 0 what it thinks likeliest after all that was written."""
    prompt = torch.tensor([1, 2, 3])
    model(prompt[None])
    states, generator = model.get_states(), torch.get_rng_state()
    drawn = sample(model, prompt, 20, seed=1)
    assert drawn == sample(model, prompt, 20, seed=1) != sample(model, prompt, 20, seed=2)
    assert all(0 <= token < 300 for token in drawn)
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, states[name]) for name, value in model.get_states().items())
    # the last token is read before the next is drawn: greedy drawing follows the model's own argmax
    model.set_states(None)
    text, greedy = prompt.tolist(), sample(model, prompt, 5, seed=0, temperature=1e-6)
    for token in greedy:
        model.set_states(None)
        assert int(model(torch.tensor([text]))[0, -1].argmax()) == token
        text.append(token)


@pytest.mark.parametrize(
    ("factor", "failing"),
    [(1.0, []), (300.0, ["G2"]), (math.inf, ["G1", "G2"])],
    ids=["healthy", "decided", "infinite"],
)
def test_the_first_gates_stop_at_what_they_are_for(model: LanguageModel, factor: float, failing: list[str]) -> None:
    with torch.no_grad():
        model.get_parameter("norm.weight").mul_(factor)
    checks = check_untrained(model, windows()[0][0])
    assert [name for name, check in checks.items() if not check["passed"]] == failing
    assert [line.split(":")[1].strip() for line in complaints(checks)] == failing
    assert model.get_states() == {}


def test_a_loss_that_does_not_fall_fails_the_third_gate() -> None:
    level = check_falling([{"train_loss": 5.0}, {"train_loss": 5.0}])
    assert not level["G3"]["passed"]
    assert "has not fallen" in complaints(level)[0]
    assert not check_falling([{"train_loss": loss} for loss in (5.0, 4.0, 6.0)])["G3"]["passed"]
    assert check_falling([{"train_loss": 5.0}]) == {}  # nothing to be held against


@pytest.mark.parametrize(("log_every", "at"), [(2, 10), (4, 12), (40, 40)])
def test_the_third_gate_stands_in_the_first_row_from_its_step_on(
    settings: TrainingSettings, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int, at: int
) -> None:
    monkeypatch.setattr("statecheck_reference.train.G3_STEPS", 10)
    every = 40 if log_every == 40 else 20
    settings = replace(settings, log_every=log_every, validate_every=every, checkpoint_every=every, sample_tokens=0)
    train(replace(settings, steps=40), corpus, tmp_path)
    found = [row["step"] for row in read_log(tmp_path / LOG) if "G3" in row.get("checks", {})]
    assert found == ([at] if log_every < 40 else [])  # one row has no other to be held against


@pytest.mark.parametrize(
    ("changes", "message", "rows"),
    [
        (
            {"peak_rate": 1e30, "log_every": 1},
            r"^step [123]: .* is (nan|inf); try a lower --peak-rate than 1e\+30",
            None,
        ),
        ({"shape": {"fusion": "residual", "blend": 1e-320}}, r"^step 0: .*not finite \(G1\); look at --shape", 1),
    ],
    ids=["rate", "shape"],
)
def test_a_run_that_is_of_no_use_ends_with_the_step_and_what_to_do(
    settings: TrainingSettings,
    corpus: Corpus,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
    rows: int | None,
) -> None:
    if "shape" in changes:
        changes = {"shape": {**settings.shape, **changes["shape"]}}
    with pytest.raises(TrainingDiverged, match=message):
        train(replace(settings, **changes), corpus, tmp_path, warn=lambda line: None)
    found = read_log(tmp_path / LOG)  # strict JSON, whatever was not finite
    assert rows is None or [row["checks"]["G1"]["passed"] for row in found] == [False] * rows


def test_a_validation_that_is_not_finite_ends_the_run_before_it_writes_a_sample(
    settings: TrainingSettings, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate_with_states

    def broken(model: LanguageModel, windows: Windows) -> tuple[float, dict[str, torch.Tensor]]:
        loss, states = first(model, windows)
        return (loss if not (tmp_path / LOG).read_bytes() else math.nan), states

    monkeypatch.setattr("statecheck_reference.train.evaluate_with_states", broken)
    with pytest.raises(TrainingDiverged, match=r"^step 10: validation_loss is nan; try a lower --peak-rate"):
        train(settings, corpus, tmp_path)
    assert [row["step"] for row in read_log(tmp_path / LOG)][-1] == 8


def test_matrices_decay_and_what_sets_time_scales_does_not(settings: TrainingSettings, model: LanguageModel) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, float] = {}
    for group in make_optimiser(model, settings).param_groups:
        found |= {names[id(parameter)]: group["weight_decay"] for parameter in group["params"]}
    assert set(found) == set(names.values())
    decaying = {name.removeprefix("blocks.0.") for name, decay in found.items() if decay and "blocks.1" not in name}
    assert decaying == {
        "embedding.weight",
        *("rwkv.mix_down", "rwkv.mix_up", "rwkv.receptance.weight", "rwkv.key.weight", "rwkv.value.weight"),
        *("rwkv.gate.weight", "rwkv.output.weight", "mamba.in_proj.weight", "mamba.conv1d.weight"),
        *("mamba.out_proj.weight", "fusion.weight", "feed_in.weight", "feed_out.weight"),
    }
    assert set(found.values()) == {0.0, 0.01}


def test_a_component_learns_at_its_own_rate_and_a_factor_of_zero_freezes_it(
    settings: TrainingSettings, model: LanguageModel
) -> None:
    """Adam's first step is the rate itself wherever a gradient is clearly not zero."""
    optimiser = make_optimiser(model, replace(settings, component_rates={"rwkv": 0, "mamba": 0.5}, weight_decay=0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rate(optimiser, 0.01)
    optimiser.step()
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter.detach()).abs()
        expected = 0.0 if ".rwkv." in name else 0.005 if ".mamba." in name else 0.01
        assert torch.allclose(moved, torch.full_like(moved, expected), rtol=1e-3, atol=1e-6 if expected else 0), name


def test_a_frozen_component_ends_as_it_began(settings: TrainingSettings, corpus: Corpus, tmp_path: Path) -> None:
    frozen = replace(settings, component_rates={"mamba": 0})
    torch.manual_seed(frozen.seed)
    start = frozen.architecture.build(frozen.shape).state_dict()
    end = train(frozen, corpus, tmp_path).state_dict()
    for name, value in end.items():
        assert torch.equal(value, start[name]) == (".mamba." in name), name
    rows = read_log(tmp_path / LOG)
    assert {row["relative_updates"]["mamba"] for row in rows[1:]} == {0.0}
    assert all(row["gradient_norms"]["mamba"] > 0 for row in rows[1:])
