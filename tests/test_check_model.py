"""`check_model` and `@parametrize_with_checks`: what they leave, what they return, what becomes of exceptions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import InputRefused, UsageError
from statecheck.testing.calibration import HEALTHY
from statecheck.verdict import Status


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class LanguageModel(nn.Module):
    """A GRU language model as people write it."""

    def __init__(self, vocabulary: int = 23, hidden: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.rnn = nn.GRU(8, hidden, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(hidden, vocabulary)
        self.h: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        y, self.h = self.rnn(self.embedding(tokens), self.h)
        return self.head(self.dropout(y))

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"h": self.h[0]}

    def set_states(self, states: dict[str, Tensor] | None) -> None:
        self.h = None if states is None else states["h"][None]


def fingerprint(module: nn.Module) -> dict[str, object]:
    parameters = {name: p.detach().numpy().tobytes() for name, p in module.named_parameters()}
    return {**parameters, "modes": [child.training for child in module.modules()]}


def test_the_model_and_the_global_generators_are_left_as_they_were() -> None:
    module = LanguageModel().train()
    held = torch.randint(0, 23, (2, 5))
    module(held)
    before, state = fingerprint(module), module.get_states()["h"].clone()
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    sc.check_model(sc.wrap(module, training_length=64), inputs=torch.full((16, 300), 3))
    assert fingerprint(module) == before
    assert torch.equal(module.get_states()["h"], state)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])
    assert all(p.grad is None for p in module.parameters())


def test_one_seed_gives_one_report_and_another_seed_another() -> None:
    model, inputs = HEALTHY["selective-counter"]()
    only = ["S2", "G3.5", "D1", "D4"]
    first, again, other = (sc.check_model(model, inputs=inputs, seed=seed, only=only).to_json() for seed in (0, 0, 1))
    for report in (first, again, other):
        del report["timings"], report["environment"]
    assert json.dumps(first) == json.dumps(again)
    assert json.dumps(first["items"]) != json.dumps(other["items"])


def test_the_order_and_choice_of_items_change_no_number() -> None:
    model, inputs = HEALTHY["gru-filter"]()
    whole = sc.check_model(model, inputs=inputs)
    alone = sc.check_model(model, inputs=inputs, only=["D4"])
    assert whole["D4"].measurements == alone["D4"].measurements


def test_the_report_speaks_as_the_documentation_says() -> None:
    model, inputs = HEALTHY["gru-filter"]()
    report = sc.check_model(model, inputs=inputs)
    assert (report.verdict, report.exit_code, report.failures) == ("INCONCLUSIVE", 3, [])
    assert report["extended"].status is Status.SKIP
    assert report["D1.growth"].status is Status.PASS
    with pytest.raises(KeyError, match="D9"):
        report["D9"]


class Raises(LanguageModel):
    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > 40:
            raise ArithmeticError("no more than 40 at once")
        return super().forward(tokens)


def test_what_the_model_raises_is_the_failure_of_that_item() -> None:
    report = sc.check_model(Raises(), suite="smoke")
    assert report["S0"].status is Status.PASS
    assert report["S3"].status is Status.FAIL
    assert "ArithmeticError" in report["S3"].reason
    assert "no more than 40" in report["S3"].reason


def test_a_fault_of_a_probe_is_an_error(tmp_path: Path) -> None:
    @sc.probe("X1", "A broken probe")
    def broken(evidence: object) -> sc.Outcome:
        raise RuntimeError("mine")

    suite = '[[item]]\nid = "X1"\n[[item.criterion]]\non = "X1.n"\npass = "< 1"\nsource = "test"\n'
    path = tmp_path / "x1.toml"
    path.write_text(suite)
    report = sc.check_model(nn.GRU(2, 2), suite=path, probes=[broken])
    assert report["X1"].status is Status.ERROR
    assert report.exit_code == 3


def test_an_interrupt_passes_through() -> None:
    class Interrupted(LanguageModel):
        calls = 0

        def forward(self, tokens: Tensor) -> Tensor:
            Interrupted.calls += 1
            if Interrupted.calls > 40:
                raise KeyboardInterrupt
            return super().forward(tokens)

    with pytest.raises(KeyboardInterrupt):
        sc.check_model(Interrupted(), suite="smoke")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(16, 100), "integer token ids"),
        (torch.full((16, 100), 99), "vocabulary is 0 .. 22"),
        (torch.zeros(16, 1, dtype=torch.long), "2 elements or more"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: Tensor, message: str) -> None:
    with pytest.raises(InputRefused, match=message):
        sc.check_model(LanguageModel(), inputs=inputs)


def test_fewer_than_sixteen_documents_are_inconclusive() -> None:
    report = sc.check_model(sc.wrap(LanguageModel(), training_length=64), inputs=torch.randint(0, 23, (8, 400)))
    for part in ("S2.dependence", "G3.5.cosine", "D1.growth", "D2.frozen", "D4.perplexity", "health.score"):
        assert report[part].status is Status.INCONCLUSIVE
        assert "8 documents" in report[part].reason
    assert report["S3"].status is Status.PASS


def test_unknown_suites_and_items_are_refused() -> None:
    with pytest.raises(UsageError, match="phase39"):
        sc.check_model(LanguageModel(), suite="phase93")
    with pytest.raises(UsageError, match="D5"):
        sc.check_model(LanguageModel(), only=["D5"])


def test_nan_weights_are_named() -> None:
    module = LanguageModel()
    with torch.no_grad():
        module.head.weight[3, 3] = torch.nan
    report = sc.check_model(module, suite="smoke")
    assert report["S1"].status is Status.FAIL
    assert "head.weight" in report["S1"].reason


@pytest.mark.parametrize(("limit", "status"), [(3.0, Status.PASS), (1.5, Status.INCONCLUSIVE), (0.5, Status.FAIL)])
def test_a_model_with_an_end_is_judged_as_far_as_it_goes(limit: float, status: Status) -> None:
    """It raises beyond `limit` training lengths: from 2 on D1 is judged there, below 1 the model is at fault."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h: Tensor | None = None
            self.read = 0

        def forward(self, x: Tensor) -> Tensor:
            self.read += x.shape[1]
            if self.read > limit * 64:
                raise IndexError("no position embedding left")
            h, outputs = torch.zeros_like(x[:, 0]) if self.h is None else self.h, []
            for x_t in x.unbind(1):
                h = 0.9 * h + x_t
                outputs.append(h)
            self.h = h
            return torch.stack(outputs, 1)

        def get_states(self) -> dict[str, object]:
            return {} if self.h is None else {"h": self.h, "read": self.read}

        def set_states(self, states: dict[str, object] | None) -> None:
            self.h, self.read = (None, 0) if states is None else (states["h"], states["read"])  # type: ignore[assignment]

    model = sc.wrap(Ends(), width=8, training_length=64)
    assert sc.check_model(model, only=["D1"])["D1"].status is status


checked = sc.parametrize_with_checks(
    [nn.GRU(4, 4)], suite="smoke", expected_failures={"S3": "a made-up excuse for a check that passes"}
)


@checked
def test_the_decorator_gives_model_and_check(model: object, check: object, request: pytest.FixtureRequest) -> None:
    assert callable(check)
    if "S3" in request.node.name:
        with pytest.raises(AssertionError, match="STALE"):
            check(model)
    else:
        check(model)
