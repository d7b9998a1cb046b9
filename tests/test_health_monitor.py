"""The State Health Monitor: the row `health` as a tool, with the same numbers."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from models import Declines, Integrator, RecurrentLM, TinyRWKV, TinyTransformer
from torch import Tensor

import statecheck as sc
from statecheck.errors import CapabilityMissing, InputRefused, UsageError
from statecheck.plots import png
from statecheck.probes import StateHealthMonitor
from statecheck.probes.health import SUBSCORES, bundled_anchors
from statecheck.suite import load_suite
from statecheck.testing import plant
from statecheck.testing.calibration import HEALTHY
from statecheck.testing.oracles import LinearState

HEADS = {"*.wkv": {"head_axis": 1}}


@pytest.fixture(scope="module")
def rwkv() -> sc.StatefulModel:
    torch.manual_seed(0)
    return sc.wrap(TinyRWKV(), training_length=64, states=HEADS)


def ids(rows: int = 16, time: int = 256, *, vocabulary: int = 32, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, (rows, time), generator=torch.Generator().manual_seed(seed))


class TestAgreement:
    def test_with_the_row_of_check_model_exactly(self, rwkv: sc.StatefulModel) -> None:
        inputs = ids()
        reading = StateHealthMonitor().measure(rwkv, inputs, seed=3)
        row = sc.check_model(rwkv, inputs=inputs, seed=3, only=["health"])["health"]
        (component, layer), score = reading.worst
        judged = row.measurements[0]
        assert (score, component, layer) == (judged.value, judged.where.component, judged.where.layer)
        assert judged.note == f"limited by {reading.limiting[component, layer]}"
        shown = {(m.where.component, m.where.layer, m.name): m.value for m in row.shown}
        assert shown == {(*place, name): v for place, own in reading.subscores.items() for name, v in own.items()}
        assert (reading.documents, reading.tokens) == (16, 256)

    def test_with_d1_head_by_head(self, rwkv: sc.StatefulModel) -> None:
        """17 documents: the median is one of them, so that D1's median of logarithms is that of the ratios."""
        inputs = ids(17)
        heads = StateHealthMonitor().measure(rwkv, inputs).heads
        shown = sc.check_model(rwkv, inputs=inputs, only=["D1"])["D1"].shown
        by_place = {(m.where.layer, m.where.state, m.where.head): m.value for m in shown if m.name == "R"}
        assert {(layer, *head): r for (_, layer), own in heads.items() for head, r in own.items()} == pytest.approx(
            by_place
        )
        assert list(heads["state", 1]) == [("blocks.1.shift", None), *(("blocks.1.wkv", head) for head in range(4))]

    def test_the_anchors_are_those_of_the_suite(self) -> None:
        item = next(item for item in load_suite("phase39").items if item.id == "health")
        assert bundled_anchors() == item.options["anchors"]


class TestByHand:
    def test_linear_state_under_constant_drive(self) -> None:
        """h_d(t) = c_d m(t), m(t) = (1.003^t - 1) / .003, c = 1, 2, 3, 4: growth is that of m, alike in all documents;
        I = Var(c) / E c^2 = (5/3) / (30/4); the centred cosine is 1, so nothing moves."""
        a, trained, levels = 1.003, 256, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
        module = LinearState([a, a]).double()
        module.retention.data = torch.tensor([a, a], dtype=torch.float64)
        model = sc.wrap(module, width=2, training_length=trained)
        reading = StateHealthMonitor().measure(model, levels[:, None, None].expand(4, 4 * trained, 2))

        def energy(last: int) -> float:
            return sum(((a**t - 1) / (a - 1)) ** 2 for t in range(last - trained // 8 + 1, last + 1))

        growth = math.sqrt(energy(4 * trained) / energy(trained))
        own = reading.subscores["state", 0]
        assert reading.heads["state", 0] == {("layers.0.h", None): pytest.approx(growth, rel=1e-9)}
        assert own["bounded"] == pytest.approx(0.5 * (1 - math.log10(growth / 10)), rel=1e-9)
        assert own["responsive"] == pytest.approx(1.0)  # I = .22 lies beyond the anchor of .1
        assert own["moving"] == pytest.approx(0.0, abs=1e-9)
        assert reading.worst == (("state", 0), own["moving"])
        assert reading.limiting["state", 0] == "moving"

    def test_responsive_between_its_anchors(self) -> None:
        """Unit normal input around an offset of 2, a = .9: I = v / (v + m^2), v = 1 / (1 - a^2), m = 2 / (1 - a)."""
        model = sc.wrap(Integrator(64), width=64, training_length=64)
        noise = torch.randn(32, 256, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = StateHealthMonitor().measure(model, noise + 2).subscores["state", 0]["responsive"]
        v = 1 / (1 - 0.81)
        share = v / (v + 20**2)
        assert found == pytest.approx(0.7 + 0.3 * math.log10(share / 1e-2), abs=0.01)


class TestCulprits:
    @pytest.mark.parametrize(("fault", "limiting"), [("frozen", "moving"), ("saturated", "unpinned")])
    @pytest.mark.parametrize("layer", [0, 1])
    def test_a_sick_layer_is_named(self, fault: str, limiting: str, layer: int) -> None:
        model, inputs = HEALTHY["selective-counter"]()
        healthy = StateHealthMonitor().measure(model, inputs)
        assert healthy.worst[1] > 0.7
        sick = StateHealthMonitor().measure(plant(model, fault, layer=layer), inputs)
        place, score = sick.worst
        assert place[1] == layer
        assert score < 0.5
        assert sick.subscores[place][limiting] == score

    def test_not_finite_is_zero_and_says_where(self) -> None:
        model, inputs = HEALTHY["selective-counter"]()
        reading = StateHealthMonitor().measure(plant(model, "nan-at-step-k", severity=56), inputs)
        assert set(reading.scores.values()) == {0.0}
        assert set(reading.limiting.values()) == {"finite"}
        assert reading.note == "not finite after token 56: layers.1.counts"
        assert reading.to_frame()["bounded"].isna().all()
        assert png(reading.plot())


class TestInputs:
    def test_two_documents_are_enough_where_a_verdict_asks_for_sixteen(self, rwkv: sc.StatefulModel) -> None:
        inputs = ids(2)
        assert 0 <= StateHealthMonitor().measure(rwkv, inputs).worst[1] <= 1
        assert sc.check_model(rwkv, inputs=inputs, only=["health"])["health"].status is sc.Status.INCONCLUSIVE

    def test_one_document_is_refused(self, rwkv: sc.StatefulModel) -> None:
        with pytest.raises(InputRefused, match="at least 2 documents, found 1"):
            StateHealthMonitor().measure(rwkv, ids(1))

    def test_documents_of_many_lengths(self, rwkv: sc.StatefulModel) -> None:
        reading = StateHealthMonitor().measure(rwkv, [*ids(4, 400), *ids(4, 90, seed=1)])
        assert (reading.documents, reading.tokens) == (8, 256)

    def test_a_model_that_takes_no_more_than_600_tokens_is_read_up_to_512(self) -> None:
        model = sc.wrap(Declines(Integrator(), raises_beyond=600), width=3, training_length=256)
        inputs = torch.randn(8, 1024, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        reading = StateHealthMonitor().measure(model, inputs)
        assert reading.tokens == 512
        assert reading.heads["state", 0]

    def test_a_cache_of_keys_and_values_has_no_health(self) -> None:
        with pytest.raises(CapabilityMissing, match="no recurrent matrix or vector"):
            StateHealthMonitor().measure(sc.wrap(TinyTransformer(), training_length=16), ids(4, 64))

    def test_anchors_of_ones_own(self, rwkv: sc.StatefulModel) -> None:
        strict = {**bundled_anchors(), "responsive": {"at": [1e9, 1e8, 1e7, 1e6], "log": True}}
        reading = StateHealthMonitor(strict).measure(rwkv, ids())
        assert reading.worst[1] == 0.0
        assert set(reading.limiting.values()) == {"responsive"}
        with pytest.raises(UsageError, match="no anchors for 'moving'"):
            StateHealthMonitor({"bounded": strict["bounded"]})


class TestLeavesTheModelAsFound:
    def test_modes_states_parameters_and_random_numbers(self) -> None:
        torch.manual_seed(0)
        module = RecurrentLM("LSTM").train()
        module.head.eval()
        model = sc.wrap(module, training_length=64)
        module(ids(3, 10, vocabulary=48))
        modes = [child.training for child in module.modules()]
        held, random = model.get_states(), torch.get_rng_state()
        weights = {name: value.clone() for name, value in module.state_dict().items()}
        first = StateHealthMonitor().measure(model, ids(vocabulary=48))
        assert [child.training for child in module.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
        after = model.get_states()
        assert after.keys() == held.keys()
        assert all(torch.equal(after[name], value) for name, value in held.items())
        assert torch.is_grad_enabled()
        assert first == StateHealthMonitor().measure(model, ids(vocabulary=48))

    def test_a_model_without_history_has_none_afterwards(self, rwkv: sc.StatefulModel) -> None:
        rwkv.set_states(None)
        StateHealthMonitor().measure(rwkv, ids())
        assert rwkv.get_states() == {}


def test_frame_and_picture(rwkv: sc.StatefulModel) -> None:
    reading = StateHealthMonitor().measure(rwkv, ids())
    frame = reading.to_frame()
    assert list(frame.columns) == ["component", "layer", "score", "limiting", *SUBSCORES]
    assert frame["layer"].tolist() == [0, 1]
    assert (frame["score"] == frame[list(SUBSCORES)].min(axis=1)).all()
    axes = reading.plot().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(SUBSCORES)
    assert axes.collections[0].get_clim() == (0.0, 1.0)


def test_the_package_of_probes_stays_light() -> None:
    code = (
        "import sys, statecheck.probes; print('torch' in sys.modules, 'StateHealthMonitor' in dir(statecheck.probes))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    import statecheck.probes

    with pytest.raises(AttributeError, match="no attribute 'HealthMonitor'"):
        statecheck.probes.HealthMonitor  # noqa: B018
