"""Models as strangers write them, checked whole: no healthy one fails, and what is wrong with a sick one is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import (
    Elman,
    LinearRecurrentUnit,
    RecurrentLM,
    TinyDeltaNet,
    TinyHybrid,
    TinyMamba,
    TinyRWKV,
    TinyTransformer,
    TinyXLSTM,
    ViewsOfABuffer,
    fitted,
)
from torch import Tensor, nn

import statecheck as sc
from statecheck.report.record import Report
from statecheck.testing.oracles import drifting_vectors, topical_tokens

TRAINED = 64
LENGTH = 4 * TRAINED + 3 * 32 + 1
BLOCKING = (sc.Status.FAIL, sc.Status.ERROR)

#: How the states of an sLSTM are declared: c is read as c / n, and h is made of them.
STABILISED = {
    "cell": {"normaliser": "norm"},
    "norm": {"kind": "normaliser"},
    "max": {"kind": "normaliser"},
    "hidden": {"recurrence": "derived"},
}

HEALTHY: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "mamba": (TinyMamba, {"selective": True, "states": {"*.conv": {"kind": "conv"}}}),
    "mamba, nothing declared": (TinyMamba, {}),
    "rwkv": (
        TinyRWKV,
        {"selective": True, "states": {"*.wkv": {"head_axis": 1}, "*.shift": {"kind": "conv"}}},
    ),
    "rwkv, nothing declared": (TinyRWKV, {}),
    "xlstm": (TinyXLSTM, {"selective": True, "states": STABILISED}),
    "xlstm, nothing declared": (TinyXLSTM, {}),
    "transformer": (TinyTransformer, {}),
    "hybrid with a cache": (TinyHybrid, {}),
    "elman": (Elman, {}),
    "delta rule": (lambda: TinyDeltaNet(4), {"width": 4}),
    "complex": (LinearRecurrentUnit, {"width": 4}),
    "views of a buffer": (lambda: ViewsOfABuffer(4), {"width": 4}),
}


def wrapped(name: str) -> sc.StatefulModel:
    torch.manual_seed(0)
    make, said = HEALTHY[name]
    return sc.wrap(make().eval(), training_length=TRAINED, **said)


def documents(model: sc.StatefulModel) -> Tensor:
    if model.facts.inputs == "tokens":
        return topical_tokens(32, LENGTH, model.facts.vocabulary or 0)
    return drifting_vectors(32, LENGTH, model.facts.width or 0)


def alarms(report: Report) -> list[str]:
    return [
        f"{part.id} {part.status}: {part.reason}" for row in report for part in row.parts if part.status in BLOCKING
    ]


class TestHealthyModels:
    @pytest.mark.parametrize("text", [True, False], ids=["on text", "without inputs"])
    @pytest.mark.parametrize("name", HEALTHY)
    def test_fail_nothing(self, name: str, text: bool) -> None:
        model = wrapped(name)
        report = sc.check_model(model, inputs=documents(model) if text else None)
        assert alarms(report) == []
        assert report.verdict != "FAIL"

    @pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
    def test_a_language_model_trained_for_some_seconds(self, kind: str) -> None:
        """Without any declaration, with torch's own states in a list a layer, dropout between layers, train mode."""
        torch.manual_seed(1)
        text = topical_tokens(64, LENGTH, 32)
        module = fitted(RecurrentLM(kind, 32), text, steps=150).train()
        report = sc.check_model(sc.wrap(module, training_length=TRAINED), inputs=text)
        assert alarms(report) == []
        assert report["D4.perplexity"].status is sc.Status.PASS
        assert module.training

    def test_the_first_thing_that_a_stranger_types(self) -> None:
        """An untrained LSTM: all of the smoke suite passes; phase39 says that its default gates forget within 64."""
        torch.manual_seed(0)
        assert sc.check_model(nn.LSTM(8, 16, 2), suite="smoke").verdict == "PASS"
        report = sc.check_model(nn.LSTM(8, 16, 2))
        assert report.failures in ([], ["D4"])


class TestWhatRowsSay:
    def test_a_transformer_has_no_recurrent_state_to_judge(self) -> None:
        model = wrapped("transformer")
        report = sc.check_model(model, inputs=documents(model))
        for name in ("S2.dependence", "G3.5.cosine", "D1.growth", "D2.decay", "health.score"):
            assert report[name].status is sc.Status.NOT_APPLICABLE
        for name in ("S0", "S3", "S1.nonfinite", "S2.isolation", "D1.nonfinite", "D4.readout"):
            assert report[name].status is sc.Status.PASS
        reach = report["D4.reach"]
        assert reach.status is sc.Status.PASS
        assert reach.measurements[0].where.state == "the output", "what is left of the past is asked of what it says"

    def test_retention_is_measured_beside_a_cache_that_grows(self) -> None:
        """Its rows can't be stacked over positions; half-lives of 0.9 .. 0.99 all the same."""
        model = wrapped("hybrid with a cache")
        half_life = sc.check_model(model, inputs=documents(model), only=["D2"])["D2"].shown[0]
        assert 6.5 < half_life.low < half_life.value < half_life.high < 69
        assert half_life.note == "diagonal, a unit"

    def test_heads_are_named(self) -> None:
        model = wrapped("rwkv")
        growth = sc.check_model(model, inputs=documents(model), only=["D1"])["D1.growth"].measurements[0]
        assert growth.where.head in range(4)
        assert growth.where.state == f"blocks.{growth.where.layer}.wkv"

    def test_retention_is_found_diagonal_where_it_is(self) -> None:
        notes = {}
        for name in ("mamba", "rwkv", "xlstm", "complex", "elman", "delta rule"):
            model = wrapped(name)
            report = sc.check_model(model, inputs=documents(model), only=["D2"])
            notes[name] = {m.note.split(",")[0].split(":")[0] for m in report["D2"].shown}
        diagonal, dense = {"diagonal"}, {"units mix"}
        assert notes == {
            **dict.fromkeys(("mamba", "rwkv", "xlstm", "complex"), diagonal),
            **dict.fromkeys(("elman", "delta rule"), dense),
        }


class TestSickModels:
    def sick(self, name: str, change: Callable[[nn.Module], None]) -> Report:
        torch.manual_seed(0)
        make, said = HEALTHY[name]
        module = make().eval()
        with torch.no_grad():
            change(module)
        model = sc.wrap(module, training_length=TRAINED, **said)
        return sc.check_model(model, inputs=documents(model))

    def test_steps_that_no_longer_depend_on_the_token(self) -> None:
        def fixed(module: nn.Module) -> None:
            for project in module.project:  # type: ignore[union-attr]
                project.weight[:16] = 0  # type: ignore[index]

        report = self.sick("mamba", fixed)
        assert report["D2.selection"].status is sc.Status.FAIL
        assert report.failures == ["D2"]

    def test_a_state_of_one_layer_that_expands(self) -> None:
        class Expanding(TinyMamba):
            def _layer(self, i: int, x: Tensor) -> Tensor:
                y = super()._layer(i, x)
                if i == 1:
                    self.cache["blocks.1.ssm"] = 1.2 ** x.shape[1] * self.cache["blocks.1.ssm"]
                return y

        torch.manual_seed(0)
        model = sc.wrap(Expanding(), training_length=TRAINED, states={"*.conv": {"kind": "conv"}})
        report = sc.check_model(model, inputs=documents(model))
        assert "D1" in report.failures
        assert "layer 1" in report["D1"].reason

    def test_a_decay_stuck_at_one_in_one_layer(self) -> None:
        def stuck(module: nn.Module) -> None:
            module.decay[0].weight.zero_()  # type: ignore[index,union-attr,operator]
            module.decay[0].bias.fill_(-12.0)  # type: ignore[index,union-attr,operator]

        report = self.sick("rwkv", stuck)
        assert report["D2.decay"].status is sc.Status.FAIL
        assert "layer 0" in report["D2.decay"].reason
        assert "never forget" in report["D2.decay"].reason

    def test_a_recurrence_without_strength(self) -> None:
        def cut(module: nn.Module) -> None:
            module.cell.weight_hh.mul_(0.1)  # type: ignore[union-attr,operator]

        report = self.sick("elman", cut)
        assert report["D2.decay"].status is sc.Status.FAIL
        assert report["D4.reach"].status is sc.Status.FAIL

    def test_saturated_units(self) -> None:
        def loud(module: nn.Module) -> None:
            module.cell.weight_ih.mul_(1e4)  # type: ignore[union-attr,operator]

        report = self.sick("elman", loud)
        assert report["D2.saturated"].status is sc.Status.FAIL
        assert report["G3.5.pinned"].status is sc.Status.FAIL
