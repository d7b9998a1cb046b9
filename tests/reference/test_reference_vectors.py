"""The GRU of vectors: its equations by hand, its states, text as vectors, training, and what ships."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from statecheck_reference.checkpointing import weights_digest
from statecheck_reference.corpus import read_texts
from statecheck_reference.registry import TEXT_FOLDER, reference_vectors
from statecheck_reference.stylometry import BLOCK, FEATURES, block_counts, style_vectors
from statecheck_reference.training_log import read_log
from statecheck_reference.vector_gru import VectorGRU, VectorGRUConfig
from statecheck_reference.vectors import (
    FOLDER,
    VECTORS,
    VectorTraining,
    export_vectors,
    fit_vectors,
    write_bundled_vectors,
)
from torch import Tensor

import statecheck as sc
from statecheck.documents import load_documents
from statecheck.resolve import Request, resolve

SMALL = VectorGRUConfig(width=3, hidden=8, layers=2)
TINY = VectorTraining(
    steps=60, batch=4, window=8, passage_windows=3, peak_rate=1e-2, warm_up=5, validation_rows=4, validate_every=20
)
ONE_COMPONENT = {"S4", "D3", "coupling", "flow", "gradient-ratio"}


@pytest.fixture
def model() -> VectorGRU:
    torch.manual_seed(0)
    return VectorGRU(SMALL)


def vectors(batch: int, time: int, *, width: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, time, width, generator=torch.Generator().manual_seed(seed))


def slow_waves(documents: int, time: int) -> list[Tensor]:
    """Vectors that the past tells: two sines of a phase and a frequency of each document's own, and their sum."""
    generator = torch.Generator().manual_seed(5)
    phase, rate = torch.rand(documents, 2, 1, generator=generator), torch.rand(documents, 2, 1, generator=generator)
    waves = torch.sin(2 * math.pi * phase + (0.05 + 0.1 * rate) * torch.arange(time))  # (documents, 2, T)
    return list(torch.cat([waves, waves.sum(1, keepdim=True)], 1).transpose(1, 2))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class TestModel:
    def test_two_steps_by_hand(self) -> None:
        """No weights, only biases: r, z and c are constants, h_2 = z h_1 + (1 - z) c, y = 3 h + 1."""
        model = VectorGRU(VectorGRUConfig(width=1, hidden=1, layers=1)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            model.get_parameter("layers.0.bias_ih_l0").copy_(torch.tensor([0.4, 0.9, -0.6]))  # r, z, c
            model.get_parameter("layers.0.bias_hh_l0").copy_(torch.tensor([0.0, 0.0, 0.5]))  # d_c, inside the reset
            model.output.weight.fill_(3.0)
            model.output.bias.fill_(1.0)
        found = model(torch.zeros(1, 2, 1, dtype=torch.float64))
        keep, candidate = sigmoid(0.9), math.tanh(-0.6 + sigmoid(0.4) * 0.5)
        first = (1 - keep) * candidate
        second = keep * first + (1 - keep) * candidate
        assert found.flatten().tolist() == pytest.approx([3 * first + 1, 3 * second + 1], rel=1e-7)
        assert model.get_states()["layers.0.h"].item() == pytest.approx(second, rel=1e-7)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
    def test_one_at_a_time_in_chunks_and_whole_agree(
        self, model: VectorGRU, dtype: torch.dtype, tolerance: float
    ) -> None:
        model.to(dtype)
        inputs = vectors(3, 41).to(dtype)
        whole = model(inputs)
        after = model.get_states()
        for pieces in (inputs.split(1, dim=1), inputs.split([7, 1, 13, 20], dim=1)):
            model.set_states(None)
            parts = torch.cat([model(piece) for piece in pieces], dim=1)
            assert (parts - whole).norm() <= tolerance * whole.norm()
            assert all((s - after[n]).norm() <= tolerance * after[n].norm() for n, s in model.get_states().items())

    def test_states_come_and_go(self, model: VectorGRU) -> None:
        assert model.get_states() == {}
        assert model(vectors(2, 0)).shape == (2, 0, 3)
        first, second = vectors(2, 6), vectors(2, 4, seed=2)
        model(first)
        states = model.get_states()
        assert {name: tuple(state.shape) for name, state in states.items()} == {
            "layers.0.h": (2, 8),
            "layers.1.h": (2, 8),
        }
        expected = model(second)
        model.set_states(states)
        assert torch.equal(model(second), expected)
        model.set_states(None)
        assert not torch.allclose(model(second), expected)  # the memory matters

    def test_what_does_not_fit_is_refused_with_a_reason(self, model: VectorGRU) -> None:
        for wrong in (vectors(2, 5, width=4), vectors(2, 5)[0], vectors(2, 5).double(), torch.ones(2, 5)):
            with pytest.raises(
                ValueError, match=r"expected vectors of shape \(batch, time, 3\) in torch.float32, found"
            ):
                model(wrong)
        model(vectors(2, 5))
        with pytest.raises(ValueError, match=r"expected a batch of 2, .* found 3; call set_states\(None\)"):
            model(vectors(3, 1))
        with pytest.raises(ValueError, match=r"states\['layers.1.h'\]: expected shape \(batch, 8\)"):
            model.set_states({**model.get_states(), "layers.1.h": torch.zeros(2, 7)})
        with pytest.raises(ValueError, match="missing: layers; unknown: depth"):
            VectorGRUConfig.from_mapping({"width": 3, "hidden": 8, "depth": 2})


class TestVectors:
    def test_counts_by_hand(self) -> None:
        """Two blocks, and three words that fill none."""
        text = '"You are not well," she said to him; it was so? My own And I Thee too late now'
        assert len(text.split()) == 2 * BLOCK + 3
        assert block_counts(text).tolist() == [[0, 1, 1, 1, 0, 1, 2, 0], [2, 1, 0, 0, 1, 0, 0, 1]]

    def test_vectors_are_the_counts_less_their_mean_over_their_spread(self) -> None:
        text = '"You are not well," she said to him'
        counts = [0, 1, 1, 1, 0, 1, 2, 0]
        by_hand = [(count - f.mean) / f.spread for count, f in zip(counts, FEATURES, strict=True)]
        assert style_vectors(text)[0].tolist() == pytest.approx(by_hand, rel=1e-6)
        assert style_vectors("too short").shape == (0, 8)

    def test_the_bundled_vectors_are_those_of_the_bundled_text(self) -> None:
        found = load_documents(FOLDER / VECTORS, width=len(FEATURES))
        chapters = read_texts(TEXT_FOLDER)
        assert len(found.rows) == len(chapters) == 61
        for row, chapter in zip(found.rows, chapters.values(), strict=True):
            np.testing.assert_array_equal(row.numpy(), style_vectors(chapter))

    def test_the_constants_standardise_ordinary_prose(self) -> None:
        """They are those of the training novels, and Austen writes of `she`: within half a spread, and near 1."""
        table = np.concatenate([style_vectors(text) for text in read_texts(TEXT_FOLDER).values()])
        assert np.abs(table.mean(axis=0)).max() < 0.5
        assert np.abs(table.std(axis=0) - 1).max() < 0.5


class TestTraining:
    def test_it_learns_what_the_past_tells_and_repeats_itself(self, tmp_path: Path) -> None:
        documents = slow_waves(6, 120)
        models = [fit_vectors(TINY, SMALL, documents[:5], documents[5:], tmp_path / name) for name in ("a", "b")]
        assert weights_digest(models[0].state_dict()) == weights_digest(models[1].state_dict())
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        rows = read_log(tmp_path / "a")
        assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
        assert [row["step"] for row in rows if "validation_loss" in row] == [20, 40, 60]
        assert rows[-1]["validation_loss"] < 0.7 * rows[1]["validation_loss"]
        assert models[0].get_states() == {}

    def test_documents_shorter_than_a_passage_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="expected a document of at least 25 blocks"):
            fit_vectors(TINY, SMALL, slow_waves(2, 24), slow_waves(1, 24), tmp_path / "log")

    def test_what_is_exported_can_be_checked(self, tmp_path: Path) -> None:
        """The folder, its vectors and its log through the public door, as a registered model's are."""
        documents = slow_waves(4, 80)
        model = fit_vectors(
            TINY, VectorGRUConfig(width=3, hidden=8), documents, documents, tmp_path / "training_log.jsonl"
        )
        export_vectors(model, TINY, tmp_path, {"command": "by hand"})
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "one.txt").write_text("It is a truth universally acknowledged, my dear. " * 4)
        write_bundled_vectors(tmp_path / "text", tmp_path / VECTORS)
        assert load_documents(tmp_path / VECTORS, width=8).rows[0].shape == (4, 8)
        subject = resolve(Request(str(tmp_path)))
        facts = subject.model.facts
        assert (facts.inputs, facts.width, facts.loss, facts.training_length) == ("vectors", 3, "mse", 8)
        assert subject.training_log == tmp_path / "training_log.jsonl"
        expected = fit_vectors(TINY, VectorGRUConfig(width=3, hidden=8), documents, documents, tmp_path / "log")
        assert torch.equal(subject.model(vectors(1, 4)), expected(vectors(1, 4)))


class DropsItsState(VectorGRU):
    """Culprit: every call starts from nothing."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.set_states(None)
        return super().forward(inputs)


class TestChecks:
    def test_vectors_are_judged_and_not_skipped(self) -> None:
        torch.manual_seed(0)
        inputs = torch.stack(slow_waves(18, 100))
        healthy, broken = VectorGRU(SMALL), DropsItsState(SMALL)
        broken.load_state_dict(healthy.state_dict())
        said = {"training_length": 16, "selective": True}
        report = sc.check_model(sc.wrap(healthy, **said), inputs=inputs)
        lost = sc.check_model(sc.wrap(broken, **said), inputs=inputs, only=["D4"])
        statuses = {row.id: row.status for row in report}
        assert {id for id, status in statuses.items() if status is sc.Status.NOT_APPLICABLE} == ONE_COMPONENT
        assert {id for id, status in statuses.items() if status is sc.Status.SKIP} == {"extended"}  # no log was given
        memory = ({part.id: part.status for part in one["D4"].parts} for one in (report, lost))
        for parts, status in zip(memory, (sc.Status.PASS, sc.Status.FAIL), strict=True):
            assert parts["D4.reach"] is parts["D4.readout"] is status


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((FOLDER / "training.json").read_text())


class TestShipped:
    def test_the_files_are_what_the_record_says(self, record: dict) -> None:
        weights = load_file(FOLDER / "model.safetensors")
        assert weights_digest(weights) == record["weights_digest"]
        assert record["parameters"] == sum(weight.numel() for weight in weights.values())
        assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000 + 1_200_000  # weights, log, vectors
        config = json.loads((FOLDER / "config.json").read_text())
        assert config["model"] == record["model"] == reference_vectors.name
        assert config["training_length"] == record["settings"]["window"]
        assert reference_vectors.folder == FOLDER
        assert not any("prejudice" in title for title in record["blocks"])

    def test_it_was_trained_for_10_000_steps(self, record: dict) -> None:
        rows = read_log(FOLDER / "training_log.jsonl")
        assert rows[-1]["step"] == record["settings"]["steps"] == 10_000
        assert rows[-1]["validation_loss"] < 0.95

    def test_it_predicts_better_than_the_mean_and_than_the_last_vector(self) -> None:
        model = reference_vectors.build(json.loads((FOLDER / "config.json").read_text())["config"])
        model.load_state_dict(load_file(FOLDER / "model.safetensors"))
        rows = [row for row in load_documents(FOLDER / VECTORS, width=8).rows if len(row) > 200]
        table = torch.stack([row[:200] for row in rows])
        with torch.no_grad():
            error = (model(table[:, :-1]) - table[:, 1:]).square().mean()
        assert error < 0.97 * (table[:, 1:] - table.mean(dim=(0, 1))).square().mean()
        assert error < 0.7 * (table[:, 1:] - table[:, :-1]).square().mean()

    def test_the_suite_judges_it(self) -> None:
        subject = resolve(Request("reference-vectors"))
        rows = load_documents(subject.text, width=8).rows
        report = sc.check_model(subject.model, inputs=rows, training_log=subject.training_log)
        statuses = {row.id: row.status for row in report}
        assert {id for id, status in statuses.items() if status is sc.Status.NOT_APPLICABLE} == ONE_COMPONENT
        assert sc.Status.SKIP not in statuses.values()
        assert report.verdict == "PASS"
        health = report["health"].measurements[0]  # near 1, where a bootstrap-t interval reaches beyond the scale
        assert health.low <= health.value <= health.high <= 1.0
        assert all(high <= 1.0 for _, _, high in health.intervals)
