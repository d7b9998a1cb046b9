"""Information flow: closed forms of additive memories, memory in one component, culprits, and the tracer."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from branch_cases import (
    STATES,
    TRAINED,
    Array,
    additive,
    as_numpy,
    constants,
    covariances,
    part,
    run,
    shown,
    states_over_time,
    wrapped,
)
from models import Declines, TinyHybrid
from torch import Tensor

import statecheck as sc
from statecheck.errors import CapabilityMissing, InputRefused
from statecheck.experiments import draw_donors
from statecheck.plots import figures, png
from statecheck.probes import InformationFlowTracer
from statecheck.probes.contract import gather
from statecheck.probes.flow import flow
from statecheck.testing.branches import AdditiveBranches, MemoryInOne, stuttering_tokens
from statecheck.transplants import shapley

FAIL, PASS, SKIP = sc.Status.FAIL, sc.Status.PASS, sc.Status.SKIP
INCONCLUSIVE, NOT_APPLICABLE = sc.Status.INCONCLUSIVE, sc.Status.NOT_APPLICABLE
BOUNDARIES = (33, 45, 57, 64)  # 64 - {31, 19, 7, 0}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def moments(module: AdditiveBranches, boundaries: tuple[int, ...] = BOUNDARIES) -> Array:
    """What two states add to the 64 outputs after a boundary: cov(a, b) = w_a w_b Cov(h_a, h_b) mean_k (a_a a_b)^k,
    over documents, the mean of the boundaries."""
    a, w = constants(module)
    k = np.arange(1, 65)
    faded = (np.outer(a, a)[..., None] ** k).mean(axis=2)
    p = covariances(module, max(boundaries))
    return np.outer(w, w) * faded * np.mean([p[at - 1] for at in boundaries], axis=0)


class TestShapley:
    @pytest.mark.parametrize("players", [2, 3, 4, 5])
    def test_is_the_mean_over_all_orders_of_joining(self, players: int) -> None:
        values = np.random.default_rng(players).normal(size=(3, 2**players))
        total, orders = np.zeros((3, players)), list(itertools.permutations(range(players)))
        for order in orders:
            there = 0
            for b in order:
                total[:, b] += values[:, there | 1 << b] - values[:, there]
                there |= 1 << b
        assert shapley(values) == pytest.approx(total / len(orders))
        assert shapley(values).sum(axis=1) == pytest.approx(values[:, -1] - values[:, 0])

    def test_a_player_that_changes_nothing_has_exactly_nothing(self) -> None:
        two = np.random.default_rng(0).normal(size=(5, 4)) / 3
        three = np.concatenate([two, two], axis=1)  # bit 2 does not matter
        assert (shapley(three)[:, 2] == 0).all()


class TestClosedForms:
    def test_shares_of_additive_memories(self) -> None:
        """share_1 = (A + C) / (A + B + 2 C), total 2 (A + B + 2 C), last-in 2 A, redundancy 2 C; ten sets of documents
        of T_tr + 65 elements: the intervals hold it in at least seven, their means are within three errors."""
        module = additive()
        (a, c), (_, b) = moments(module)
        truth = np.array([(a + c) / (a + b + 2 * c), 2 * (a + b + 2 * c), 2 * a, 2 * b, 2 * c])
        model, found, hits = wrapped(module), [], 0
        for seed in range(10):
            documents = module.sample(32, TRAINED + 65, seed=seed)
            scale = np.var(as_numpy(documents).reshape(-1, 16), axis=0).mean()
            report = sc.check_model(model, inputs=documents, only=["flow"])
            share = part(report, "flow.share").measurements[0]
            assert (share.where.component, share.n) == ("fast", 32)
            hits += share.low < truth[0] < share.high
            rest = [shown(report, "flow", "last-in value", name).value for name in STATES]
            rest.append(shown(report, "flow", "redundancy", "slow").value)
            memory = part(report, "flow.memory").measurements[0].value
            found.append([share.value, *(scale * x for x in (memory, *rest))])
        error = np.std(found, axis=0, ddof=1) / 10**0.5
        assert (np.abs(np.mean(found, axis=0) - truth) < 3 * error).all()
        assert (error < 0.1 * truth).all()
        assert hits >= 7

    @pytest.mark.parametrize("layers", [1, 2])
    def test_the_row_is_what_direct_sums_give(self, layers: int) -> None:
        """The same windows and donors; every set of components run on by hand, in numpy, one element at a time."""
        spec = {"fast": [(0.85, 0.06), (0.7, 0.03)], "slow": [(0.95, 0.025), (0.9, 0.01)]}
        module = additive({name: own[:layers] for name, own in spec.items()})
        evidence = gather(wrapped(module), module.sample(20, 200))
        windows = as_numpy(evidence.streams(TRAINED + 65, name="flow"))
        donors = draw_donors(len(windows), 4, evidence.generator("flow"))
        a, w = constants(module)
        h = states_over_time(module, windows)
        owners = [name.split(".")[2] for name in module._named()]  # layers.0.fast

        def loss(at: int, row: Array, exchanged: list[int]) -> float:
            own = h[:, :, at - 1].copy()
            own[exchanged] = own[exchanged][:, row]
            total = 0.0
            for t in range(at, at + 64):
                own = a[:, None, None] * own + windows[:, t]
                total += (((w[:, None, None] * own).sum(0) - windows[:, t + 1]) ** 2).mean() / 64
            return total / np.var(windows.reshape(-1, 16), axis=0).mean()

        def rise(*names: str) -> float:
            out = [i for i, owner in enumerate(owners) if owner in names]
            return float(
                np.mean([loss(at, r, out) - loss(at, r, []) for at, r in zip(BOUNDARIES, donors, strict=True)])
            )

        fast, slow, both = rise("fast"), rise("slow"), rise("fast", "slow")
        with torch.no_grad():
            outcome = flow(evidence)
        report = {(m.name, m.where.component, m.where.layer): m.value for m in (*outcome.measurements, *outcome.shown)}
        assert report["flow.memory", None, None] == pytest.approx(both, rel=1e-9)
        assert report["last-in value", "fast", None] == pytest.approx(fast, rel=1e-9)
        assert report["first-in value", "fast", None] == pytest.approx(both - slow, rel=1e-9)
        phi = {"fast": (fast + both - slow) / 2, "slow": (slow + both - fast) / 2}
        for name, value in phi.items():
            assert report["Shapley value", name, None] == pytest.approx(value, rel=1e-9)
            assert report["share of the memory", name, None] == pytest.approx(value / both, rel=1e-9)
        assert report["redundancy", "slow", None] == pytest.approx(phi["slow"] - slow, rel=1e-9)
        for i, name in enumerate(module._named()):
            _, layer, component = name.split(".")
            single = loss(TRAINED, donors[-1], [i]) - loss(TRAINED, donors[-1], [])
            assert report["last-in value", component, int(layer)] == pytest.approx(single, rel=1e-9)

    @pytest.mark.parametrize("boost", [2.5, 0.0])
    def test_memory_in_one_component_is_all_its(self, boost: float) -> None:
        """Shares 1 and 0 exactly, whatever the other component does for the loss by the present token alone."""
        report = sc.check_model(
            tokens_model(MemoryInOne(boost=boost)), inputs=stuttering_tokens(32, 200), only=["flow"]
        )
        assert shown(report, "flow", "share of the memory", "counts").value == 1.0
        share = part(report, "flow.share").measurements[0]
        assert (share.value, share.low, share.high, share.where.component) == (0.0, 0.0, 0.0, "echo")
        assert shown(report, "flow", "redundancy", "counts").value == 0.0
        assert part(report, "flow.memory").status is PASS
        assert part(report, "flow.memory").measurements[0].unit == "nats"
        assert report.path == "C"

    def test_a_memory_held_twice_is_seen_as_redundant(self) -> None:
        """Two equal branches: shares 1/2, last-in 2 A, Shapley 4 A: redundancy 2 A, half of what each is worth."""
        report = run(additive({"fast": [(0.9, 0.04)], "slow": [(0.9, 0.04)]}), "flow")
        assert part(report, "flow.share").measurements[0].value == pytest.approx(0.5)
        value, redundancy = (shown(report, "flow", name, "fast").value for name in ("Shapley value", "redundancy"))
        last = shown(report, "flow", "last-in value", "fast").value
        # Both halves of the exchange are one exchange: the first order terms (by the error) do not double.
        total = part(report, "flow.memory").measurements[0].value
        assert value == pytest.approx(total / 2)
        assert redundancy == pytest.approx(value - last)
        assert redundancy / value == pytest.approx(0.5, rel=0.1)


def tokens_model(module: MemoryInOne) -> sc.StatefulModel:
    return sc.wrap(module, components={"counts": "counts.n", "echo": "echo.mean"}, training_length=TRAINED)


class TestCulprits:
    def test_a_healthy_model(self) -> None:
        report = run(additive(), "flow")
        assert report["flow"].status is PASS
        assert part(report, "flow.share").measurements[0].value == pytest.approx(0.34, abs=0.04)

    @pytest.mark.parametrize(("fault", "value"), [("scale", 0.0), ("carried", False)])
    def test_a_memory_that_is_not_read_or_not_carried_has_no_share(self, fault: str, value: float) -> None:
        module = additive()
        setattr(module.branch("slow"), fault, value)
        report = run(module, "flow")
        share = part(report, "flow.share")
        assert share.status is FAIL
        assert share.measurements[0].value == share.measurements[0].high == 0.0
        assert "component slow" in share.reason
        assert report.path == "C"

    def test_without_any_memory_no_state_carries_information(self) -> None:
        module = additive()
        for name in STATES:
            module.branch(name).carried = False
        report = run(module, "flow")
        assert part(report, "flow.memory").status is FAIL
        assert "no state carries information" in report["flow"].reason
        assert part(report, "flow.share").status is INCONCLUSIVE
        assert report.path == "C"

    def test_a_memory_lost_in_noise(self) -> None:
        """The states matter, the documents do not have what they hold: the interval holds 0, and is wide or narrow."""
        module = additive({"fast": [(0.9, 0.02)], "slow": [(0.95, 0.01)]})
        noise = torch.randn(16, 200, 16, generator=torch.Generator().manual_seed(3)).double()
        model = wrapped(module)
        negligible = sc.check_model(model, inputs=noise, only=["flow"])
        assert part(negligible, "flow.memory").status is FAIL
        with torch.no_grad():
            strict = flow(gather(model, noise), negligible=1e-9)
        (memory,) = strict.measurements
        assert memory.low <= 0 < memory.high
        assert [(a.name, a.status) for a in strict.absences] == [("flow.share", INCONCLUSIVE)]

    def test_memory_that_may_be_nothing_is_inconclusive_where_it_may_be_much(self) -> None:
        """Cut at 16 of 353 elements of few features, the worth of a strong memory is anybody's guess."""
        module = AdditiveBranches({"fast": [(0.9, 0.1)], "slow": [(0.95, -0.02)]}, width=1).double()
        generator = torch.Generator().manual_seed(0)
        report = sc.check_model(
            wrapped(module), inputs=torch.randn(16, 200, 1, generator=generator).double(), only=["flow"]
        )
        memory = part(report, "flow.memory")
        number = memory.measurements[0]
        assert number.low <= 0
        assert number.high > 0.005
        assert memory.status is INCONCLUSIVE
        assert part(report, "flow.share").status is INCONCLUSIVE


def parallel(count: int) -> tuple[sc.StatefulModel, Tensor]:
    """Leaky branches c0, c1, ... and their documents."""
    module = additive({f"c{i}": [(0.8 + 0.02 * i, 0.02)] for i in range(count)})
    names = {f"c{i}": f"layers.*.c{i}.h" for i in range(count)}
    return sc.wrap(module, width=16, components=names, training_length=TRAINED), module.sample(16, 200)


class TestEvidence:
    @pytest.mark.parametrize("count", [3, 5])
    def test_shares_of_several_sum_to_one(self, count: int) -> None:
        model, documents = parallel(count)
        reading = InformationFlowTracer().measure(model, documents)
        assert sum(reading.shapley.values()) == pytest.approx(reading.total)
        assert sum(reading.shares.values()) == pytest.approx(1)
        assert list(reading.shares) == [f"c{i}" for i in range(count)]

    def test_six_components_are_too_many(self) -> None:
        model, documents = parallel(6)
        row = sc.check_model(model, inputs=documents, only=["flow"])["flow"]
        assert row.status is SKIP
        assert "6 components have states" in row.reason

    def test_a_cache_counts_as_state(self) -> None:
        """Keys and values of another document, as many as there are, beside leaky counts and a position."""
        torch.manual_seed(0)
        names = {"leak": ["leak", "position"], "attention": "cache.*"}
        model = sc.wrap(TinyHybrid(), components=names, training_length=TRAINED)
        tokens = stuttering_tokens(16, 200, 32)
        reading = InformationFlowTracer().measure(model, tokens)
        assert all(abs(value) > 1e-6 for value in reading.last_in.values())
        assert sc.check_model(model, inputs=tokens, only=["flow"])["flow"].status is not SKIP

    def test_a_component_without_states_has_no_memory_to_share(self) -> None:
        model = wrapped(additive())
        facts = model.facts
        states = {name: sc.StateFacts(**{**vars(s), "component": "fast"}) for name, s in facts.states.items()}
        alone = sc.ModelFacts(**{**vars(facts), "states": states})
        row = sc.check_model(model.with_facts(alone), inputs=additive().sample(16, 200), only=["flow"])["flow"]  # type: ignore[attr-defined]
        assert row.status is NOT_APPLICABLE
        assert "one component has states (fast)" in row.reason

    def test_a_model_that_ends_at_its_training_length_is_cut_before_that(self) -> None:
        model = sc.wrap(
            Declines(additive(), raises_beyond=TRAINED),
            width=16,
            components={"fast": ["layers.*.fast.h", "read"], "slow": "layers.*.slow.h"},
            training_length=TRAINED,
        )
        row = sc.check_model(model, inputs=additive().sample(16, 200), only=["flow"])["flow"]
        assert row.status in (PASS, INCONCLUSIVE)
        assert row.notes == ("the model takes no more than 64 tokens: it is cut 32 tokens before that",)
        assert InformationFlowTracer().measure(model, additive().sample(16, 200)).boundaries == (17, 23, 29, 32)

    def test_a_model_that_raises_before_that_fails(self) -> None:
        names = {"fast": ["layers.*.fast.h", "read"], "slow": "layers.*.slow.h"}
        broken = Declines(additive(), raises_beyond=TRAINED // 4)
        model = sc.wrap(broken, width=16, components=names, training_length=TRAINED)
        assert sc.check_model(model, inputs=additive().sample(16, 200), only=["flow"])["flow"].status is FAIL

    def test_without_set_states_nothing_can_be_exchanged(self) -> None:
        class Silent(AdditiveBranches):
            set_states = None  # type: ignore[assignment]

            def reset(self) -> None:
                for branch in self._named().values():
                    branch.h = None

        module = Silent({"fast": [(0.85, 0.06)], "slow": [(0.95, 0.025)]}).double()
        row = sc.check_model(wrapped(module), inputs=additive().sample(16, 200), only=["flow"])["flow"]
        assert row.status is SKIP
        assert "set_states" in row.reason

    def test_without_text_it_is_skipped(self) -> None:
        row = sc.check_model(wrapped(additive()), only=["flow"])["flow"]
        assert row.status is SKIP
        assert "needs text" in row.reason

    def test_few_documents_are_inconclusive(self) -> None:
        assert run(additive(), "flow", documents=15)["flow"].status is INCONCLUSIVE

    def test_a_loss_that_is_not_finite_is_another_rows_matter(self) -> None:
        module = additive()
        documents = module.sample(16, 200)
        module.branch("slow").weight.data.fill_(math.nan)
        row = sc.check_model(wrapped(module), inputs=documents, only=["flow"])["flow"]
        assert row.status is INCONCLUSIVE
        assert "see D1.nonfinite" in row.reason

    def test_the_picture_has_the_shares_of_the_layers(self) -> None:
        spec = {"fast": [(0.85, 0.06), (0.7, 0.03)], "slow": [(0.95, 0.025), (0.9, 0.01)]}
        report = run(additive(spec), "flow", time=200)
        curves = report["flow"].series
        assert [(c.label, c.x) for c in curves] == [("fast", (0.0, 1.0)), ("slow", (0.0, 1.0))]
        assert sum(y for c in curves for y in c.y) == pytest.approx(1)
        assert "share-of-the-memory-against-layer.png" in figures(list(report))


HEADS = {"layers.*": {"head_axis": 1}}


class TestTracer:
    def test_its_numbers_are_those_of_the_row(self) -> None:
        module = additive()
        documents = module.sample(20, 200)
        model = wrapped(module)
        reading = InformationFlowTracer().measure(model, documents, seed=3)
        report = sc.check_model(model, inputs=documents, only=["flow"], seed=3)
        parts = {
            "share of the memory": reading.shares,
            "Shapley value": reading.shapley,
            "first-in value": reading.first_in,
            "last-in value": reading.last_in,
            "redundancy": reading.redundancy,
        }
        for name, values in parts.items():
            for component, value in values.items():
                assert shown(report, "flow", name, component).value == value
        for (component, layer), value in reading.layers.items():
            assert shown(report, "flow", "last-in value", component, layer).value == value
        assert part(report, "flow.memory").measurements[0].value == reading.total
        assert (reading.documents, reading.boundaries, reading.heads) == (20, BOUNDARIES, {})

    def test_heads_of_an_additive_memory_sum_to_their_layer(self) -> None:
        """Each channel is a head; squared errors of channels do not mix."""
        module = AdditiveBranches({"fast": [(0.85, 0.06)], "slow": [(0.95, 0.025), (0.9, 0.01)]}, width=4).double()
        reading = InformationFlowTracer().measure(wrapped(module, states=HEADS), module.sample(8, 200))
        assert list(reading.layers) == [("fast", 0), ("slow", 0), ("slow", 1)]
        for place, value in reading.layers.items():
            own = [v for (component, layer, _), v in reading.heads.items() if (component, layer) == place]
            assert len(own) == 4
            assert sum(own) == pytest.approx(value)

    def test_its_table_has_a_line_for_every_place(self) -> None:
        module = AdditiveBranches({"fast": [(0.85, 0.06)], "slow": [(0.95, 0.025)]}, width=2).double()
        reading = InformationFlowTracer().measure(wrapped(module, states=HEADS), module.sample(8, 200))
        frame = reading.to_frame()
        assert list(frame.columns) == [
            "component",
            "layer",
            "head",
            "last_in",
            "share",
            "shapley",
            "first_in",
            "redundancy",
        ]
        assert len(frame) == 2 + 2 + 4
        whole = frame[frame["layer"].isna()].set_index("component")
        assert whole["share"].to_dict() == reading.shares
        assert whole["last_in"].to_dict() == reading.last_in
        line = frame[(frame["component"] == "slow") & (frame["head"] == 1)]
        assert line["last_in"].item() == reading.heads["slow", 0, 1]
        assert frame[frame["layer"].notna()]["share"].isna().all()

    def test_its_picture(self) -> None:
        module = additive()
        reading = InformationFlowTracer().measure(wrapped(module), module.sample(8, 200))
        assert png(reading.plot()).startswith(b"\x89PNG")

    def test_the_model_is_left_as_it_was(self) -> None:
        module = additive().train()
        model = wrapped(module)
        model(module.sample(2, 5))
        before, random = model.get_states(), torch.get_rng_state()
        InformationFlowTracer().measure(model, module.sample(4, 200))
        after = model.get_states()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert module.training
        assert torch.equal(random, torch.get_rng_state())

    @pytest.mark.parametrize(
        ("model", "documents", "error", "message"),
        [
            (lambda: wrapped(additive()), 1, InputRefused, "at least 2 documents"),
            (lambda: sc.wrap(additive(), width=16), 4, CapabilityMissing, r"one component has states \(state\)"),
        ],
    )
    def test_what_it_can_not_measure(self, model: Any, documents: int, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            InformationFlowTracer().measure(model(), additive().sample(documents, 400))
