"""What a training run can do beside the plain recipe: freeze, clip and pace components, forget, save memory."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from statecheck_reference.checkpointing import kept_checkpoint, load_checkpoint, weights_digest
from statecheck_reference.corpus import Corpus
from statecheck_reference.hybrid import Block
from statecheck_reference.optimiser import make_optimiser
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.stepping import Stepper
from statecheck_reference.streams import Batch, PassageStreams
from statecheck_reference.train import LOG, train
from statecheck_reference.training_log import read_log, without_clock
from torch import Tensor
from torch.nn import functional

FREE = 1e9  # a clip that clips nothing
Weights = dict[str, Tensor]


class Stopped(Exception):
    """Raised in the middle of a run, in place of a fault."""


@pytest.fixture
def hybrid(tiny_runs: dict[str, TrainingSettings]) -> TrainingSettings:
    """The small hybrid at one rate, logged at every step."""
    plain = replace(tiny_runs["hybrid"], component_rates={}, sample_tokens=0)
    return replace(plain, steps=16, log_every=1, validate_every=16, checkpoint_every=4)


@pytest.fixture
def batches(hybrid: TrainingSettings, corpus: Corpus) -> list[Batch]:
    """What a run of the small hybrid reads, step by step."""
    streams = PassageStreams(corpus, batch=2, window=8, passage_windows=4, seed=hybrid.seed)
    return [streams.batch_at(step) for step in range(8)]


def stepper(settings: TrainingSettings) -> Stepper:
    torch.manual_seed(settings.seed)
    return Stepper.of(settings, settings.architecture.build(settings.shape))


def weights(one: Stepper) -> Weights:
    return {name: value.clone() for name, value in one.model.state_dict().items()}


def gradients(one: Stepper) -> Weights:
    """Those that the optimiser was given."""
    return {name: value.grad.double() for name, value in one.model.named_parameters() if value.grad is not None}


def raw_gradients(settings: TrainingSettings, batch: Batch) -> Weights:
    """Of an untrained model on `batch`, by torch alone."""
    torch.manual_seed(settings.seed)
    model = settings.architecture.build(settings.shape)
    loss = functional.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
    found = torch.autograd.grad(loss, list(model.parameters()))
    return {name: value.double() for (name, _), value in zip(model.named_parameters(), found, strict=True)}


def norm(values: Weights, part: str = "") -> float:
    """Of all values whose name has `part`, as one vector, in float64."""
    return math.sqrt(sum(float(value.square().sum()) for name, value in values.items() if part in name))


def kept(folder: Path, step: int) -> dict[str, Any]:
    checkpoint = load_checkpoint(folder, kept_checkpoint(step))
    assert checkpoint is not None
    return checkpoint


def moments(settings: TrainingSettings, checkpoint: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """What the optimiser in a checkpoint holds of each parameter, by name."""
    model = settings.architecture.build(settings.shape)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimiser(model, settings).param_groups
    order = [names[id(parameter)] for group in groups for parameter in group["params"]]
    return {order[number]: found for number, found in checkpoint["optimizer"]["state"].items()}


def digests(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    return weights_digest(checkpoint["weights"]), without_clock(read_log(folder / LOG))


def stop_at(limit: int) -> Any:
    """A `report` that raises at a step."""

    def report(step: int, row: dict[str, Any] | None) -> None:
        if step == limit:
            raise Stopped

    return report


def test_the_first_step_is_as_long_as_schedule_and_log_say(
    hybrid: TrainingSettings, corpus: Corpus, batches: list[Batch], tmp_path: Path
) -> None:
    """AdamW's first step moves a parameter by the rate, whatever its gradient is: 1/5 of the peak in step 1 of 5."""
    settings = replace(hybrid, warm_up=5, peak_rate=0.01, weight_decay=0.0, component_rates={"rwkv": 3.0})
    train(settings, corpus, tmp_path)
    row = read_log(tmp_path / LOG)[1]
    assert row["lr"] == pytest.approx(0.002)
    one = stepper(settings)
    drawn = weights(one)
    one.step(batches[0], 1, detailed=False)
    moved = {name: value.double() - drawn[name].double() for name, value in one.model.state_dict().items()}
    for component, rate in (("rwkv", 0.006), ("mamba", 0.002)):
        own = {name: value for name, value in moved.items() if f".{component}." in name}
        assert max(float(value.abs().max()) for value in own.values()) == pytest.approx(rate, rel=1e-2)
        share = norm(own) / norm({name: drawn[name].double() for name in own})
        assert row["relative_updates"][component] == pytest.approx(share, rel=1e-4)


def test_what_is_frozen_stays_bit_for_bit_and_moves_again_afterwards(
    hybrid: TrainingSettings, corpus: Corpus, tmp_path: Path
) -> None:
    settings = replace(hybrid, freeze={"rwkv": "4:12"})
    train(settings, corpus, tmp_path, keep=[4, 8, 12, 16])
    before, during, end, after = (kept(tmp_path, step)["weights"] for step in (4, 8, 12, 16))
    for name, value in before.items():
        assert value.equal(during[name]) == value.equal(end[name]) == (".rwkv." in name), name
        assert not end[name].equal(after[name]), name
    for row in read_log(tmp_path / LOG)[1:]:
        moved = row["relative_updates"]
        assert (moved["rwkv"] == 0) == (4 < row["step"] <= 12)
        assert moved["mamba"] > 0
        assert row["gradient_norms"]["rwkv"] > 0  # told of all the same


def test_the_optimiser_keeps_no_trace_of_the_steps_in_which_a_component_was_frozen(
    hybrid: TrainingSettings, corpus: Corpus, tmp_path: Path
) -> None:
    settings = replace(hybrid, freeze={"rwkv": "4:12"})
    train(settings, corpus, tmp_path, keep=[4, 12, 16])
    before, end, after = (moments(settings, kept(tmp_path, step)) for step in (4, 12, 16))
    for name, found in before.items():
        frozen = ".rwkv." in name
        assert found["step"] == 4
        assert end[name]["step"] == (4 if frozen else 12)
        assert after[name]["step"] == (8 if frozen else 16)
        assert found["exp_avg_sq"].equal(end[name]["exp_avg_sq"]) == frozen, name


def test_a_component_frozen_from_the_start_is_as_it_was_drawn(
    hybrid: TrainingSettings, corpus: Corpus, tmp_path: Path
) -> None:
    settings = replace(hybrid, freeze={"mamba": "0:8"}, weight_decay=0.5)
    train(settings, corpus, tmp_path, keep=[8])
    drawn = weights(stepper(settings))
    for name, value in kept(tmp_path, 8)["weights"].items():
        assert value.equal(drawn[name]) == (".mamba." in name), name
    assert not any(".mamba." in name for name in moments(settings, kept(tmp_path, 8)))


def test_frozen_gradients_do_not_count_in_the_norm_that_is_clipped(
    hybrid: TrainingSettings, batches: list[Batch]
) -> None:
    raw = raw_gradients(hybrid, batches[0])
    others = math.sqrt(norm(raw) ** 2 - norm(raw, ".rwkv.") ** 2)
    one = stepper(replace(hybrid, freeze={"rwkv": "0:5"}, clip=others / 4))
    assert one.step(batches[0], 1, detailed=False).norm == pytest.approx(others, rel=1e-5)
    applied = gradients(one)
    assert not any(".rwkv." in name for name in applied)
    for name, value in applied.items():
        assert torch.allclose(value, raw[name] / 4, rtol=1e-4, atol=1e-9), name
    assert others < 0.999 * norm(raw)  # else the test shows nothing


@pytest.mark.parametrize("limits", [[4], [5, 8], [11, 12, 13]])
def test_a_run_stopped_at_the_edges_of_a_freeze_goes_on_to_the_same_end(
    hybrid: TrainingSettings, corpus: Corpus, tmp_path: Path, limits: list[int]
) -> None:
    """Frozen in steps 5 to 12; checkpoints at 4, 8 and 12."""
    settings = replace(hybrid, freeze={"rwkv": "4:12"})
    train(settings, corpus, tmp_path / "unbroken")
    for limit in limits:
        with pytest.raises(Stopped):
            train(settings, corpus, tmp_path / "broken", report=stop_at(limit))
    train(settings, corpus, tmp_path / "broken")
    assert digests(tmp_path / "broken") == digests(tmp_path / "unbroken")


def test_a_component_is_clipped_to_its_own_norm_and_no_other_is(hybrid: TrainingSettings, batches: list[Batch]) -> None:
    raw = raw_gradients(hybrid, batches[0])
    limit = norm(raw, ".rwkv.") / 8
    one = stepper(replace(hybrid, component_clips={"rwkv": limit, "mamba": FREE}, clip=FREE))
    stepped = one.step(batches[0], 1, detailed=True)
    applied = gradients(one)
    assert norm(applied, ".rwkv.") == pytest.approx(limit, rel=1e-4)
    for name, value in applied.items():
        expected = raw[name] / 8 if ".rwkv." in name else raw[name]
        assert torch.allclose(value, expected, rtol=1e-4, atol=1e-9), name
    assert stepped.norm == pytest.approx(norm(raw), rel=1e-5)  # before any clipping, and so are the components'
    assert stepped.details["gradient_norms"]["rwkv"] == pytest.approx(8 * limit, rel=1e-5)


def test_a_component_that_is_alone_is_frozen_and_clipped_too(hybrid: TrainingSettings, batches: list[Batch]) -> None:
    """The log tells of layers where there is one component; what is frozen is the component all the same."""
    alone = replace(hybrid, shape={**hybrid.shape, "layout": "interleaved", "ratio": "1:0"})
    frozen = stepper(replace(alone, freeze={"rwkv": "0:1"}, component_clips={"rwkv": 1e-3}))
    before = weights(frozen)
    frozen.step(batches[0], 1, detailed=True)
    moved = {name for name, value in weights(frozen).items() if not torch.equal(value, before[name])}
    assert moved
    assert not any(".rwkv." in name for name in moved)
    frozen.step(batches[1], 2, detailed=True)
    assert norm(gradients(frozen), ".rwkv.") <= 1e-3 * (1 + 1e-5)


def test_the_whole_gradient_is_clipped_after_its_components(hybrid: TrainingSettings, batches: list[Batch]) -> None:
    """By hand: with R the norm of rwkv, R is cut to R / 2, and then all to half of what is left."""
    raw = raw_gradients(hybrid, batches[0])
    of_rwkv = norm(raw, ".rwkv.")
    rest = math.sqrt(norm(raw) ** 2 - of_rwkv**2)
    whole = math.hypot(of_rwkv / 2, rest)
    one = stepper(replace(hybrid, component_clips={"rwkv": of_rwkv / 2}, clip=whole / 2))
    one.step(batches[0], 1, detailed=False)
    applied = gradients(one)
    assert norm(applied) == pytest.approx(whole / 2, rel=1e-4)
    assert norm(applied, ".rwkv.") == pytest.approx(of_rwkv / 4, rel=1e-4)


def test_no_component_exceeds_its_limit_in_a_run(hybrid: TrainingSettings, batches: list[Batch]) -> None:
    settings = replace(hybrid, component_clips={"rwkv": 0.01, "mamba": 0.02}, clip=FREE)
    one = stepper(settings)
    for number, batch in enumerate(batches, 1):
        found = one.step(batch, number, detailed=True).details["gradient_norms"]
        for name, limit in settings.component_clips.items():
            assert found[name] > limit  # there was something to clip
            assert norm(gradients(one), f".{name}.") <= limit * (1 + 1e-5)


def test_a_component_moves_in_proportion_to_its_rate(hybrid: TrainingSettings, batches: list[Batch]) -> None:
    """Adam's first step depends on the rate alone: three times the rate, three times the way."""
    ways = []
    for rates in ({}, {"mamba": 3.0, "rwkv": 0.0}):
        one = stepper(replace(hybrid, component_rates=rates, weight_decay=0, peak_rate=0.01, warm_up=0))
        before = weights(one)
        one.step(batches[0], 1, detailed=False)
        ways.append({name: value.double() - before[name].double() for name, value in weights(one).items()})
    for name, way in ways[0].items():
        factor = 3.0 if ".mamba." in name else 0.0 if ".rwkv." in name else 1.0
        assert torch.allclose(ways[1][name], factor * way, rtol=1e-3, atol=1e-6), name
    assert norm(ways[0], ".rwkv.") > 0


def test_without_carry_every_window_is_read_from_a_fresh_state(hybrid: TrainingSettings, batches: list[Batch]) -> None:
    """As windows that each begin a passage are, which is all that a run of one window a passage has."""
    without, fresh, carried = stepper(replace(hybrid, carry=False)), stepper(hybrid), stepper(hybrid)
    for number, batch in enumerate(batches, 1):
        without.step(batch, number, detailed=False)
        fresh.step(replace(batch, fresh=torch.ones(2, dtype=torch.bool)), number, detailed=False)
        carried.step(batch, number, detailed=False)
    ends = [weights_digest(one.model.state_dict()) for one in (without, fresh, carried)]
    assert ends[0] == ends[1] != ends[2]


def test_with_one_window_a_passage_there_is_nothing_to_carry(
    hybrid: TrainingSettings, corpus: Corpus, tmp_path: Path
) -> None:
    one = replace(hybrid, passage_windows=1)
    train(one, corpus, tmp_path / "carried")
    train(replace(one, carry=False), corpus, tmp_path / "fresh")
    assert digests(tmp_path / "carried") == digests(tmp_path / "fresh")


def test_computing_the_activations_again_changes_no_bit(
    hybrid: TrainingSettings, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    forward = Block.forward

    def counted(self: Block, *given: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return forward(self, *given)

    monkeypatch.setattr(Block, "forward", counted)
    counts = []
    for name, again in (("plain", False), ("again", True)):
        calls.clear()
        train(replace(hybrid, activation_checkpointing=again), corpus, tmp_path / name)
        counts.append(sum(calls))
    assert counts[1] == 2 * counts[0] > 2 * 16
    assert digests(tmp_path / "plain") == digests(tmp_path / "again")


@pytest.mark.parametrize("learned", [True, False])
def test_a_blend_starts_where_it_is_set_and_moves_only_if_learned(
    hybrid: TrainingSettings, corpus: Corpus, tmp_path: Path, learned: bool
) -> None:
    shape = {**hybrid.shape, "fusion": "sum", "blend": 0.7, "blend_learned": learned}
    model = train(replace(hybrid, shape=shape), corpus, tmp_path)
    start = math.log(0.7 / 0.3)
    for name in ("blocks.0.fusion.weight", "blocks.1.fusion.weight"):
        assert (model.state_dict()[name].item() == torch.tensor(start).item()) != learned
    gates = [row["gates"] for row in read_log(tmp_path / LOG)[1:]]
    assert gates[0] == pytest.approx({"blocks.0": 0.7, "blocks.1": 0.7}, rel=1e-6)
    assert (gates[-1] == gates[0]) != learned


def test_a_longer_warm_up_takes_smaller_steps_to_the_same_peak(
    hybrid: TrainingSettings, corpus: Corpus, tmp_path: Path
) -> None:
    rates = {}
    for warm_up in (4, 32):
        train(replace(hybrid, warm_up=warm_up), corpus, tmp_path / str(warm_up))
        rates[warm_up] = [row["lr"] for row in read_log(tmp_path / str(warm_up) / LOG)[1:]]
    peak = hybrid.peak_rate
    assert rates[4][:4] == pytest.approx([peak / 4, peak / 2, 3 * peak / 4, peak])
    assert rates[32] == pytest.approx([peak * step / 32 for step in range(1, 17)])  # longer than the run
    assert rates[4][4] < peak


def test_a_memory_that_grows_is_trained_without_carrying_it(
    tiny: TrainingSettings, corpus: Corpus, tmp_path: Path
) -> None:
    shape = {"vocabulary": 300, "width": 8, "layers": 1, "heads": 2, "feed_forward": 8}
    settings = replace(tiny, model="transformer", shape=shape, steps=6)
    with pytest.raises(
        ValueError, match=r"^passage_windows: expected 1, found 4: .*--passage-windows 1 or --no-carry$"
    ):
        train(settings, corpus, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    for allowed in (replace(settings, passage_windows=1), replace(settings, carry=False)):
        model = train(allowed, corpus, tmp_path / str(allowed.passage_windows))
        assert model.get_states()["layers.0.k"].shape == (2, 2, 8, 4)  # of one window


def test_a_corpus_of_another_vocabulary_is_refused(tiny: TrainingSettings, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^corpus: expected the 301 tokens .* found 300; .*--shape vocabulary=300"):
        train(replace(tiny, shape={**tiny.shape, "vocabulary": 301}), corpus, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_model_that_can_not_compute_again_says_so(tiny: TrainingSettings, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^activation_checkpointing: expected a hybrid, found lstm"):
        train(replace(tiny, activation_checkpointing=True), corpus, tmp_path / "work")
