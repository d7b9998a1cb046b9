"""What the studies in scripts/studies read off a training run, held against the run itself."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from statecheck_reference.corpus import Corpus, open_corpus
from statecheck_reference.evaluation import Windows
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.streams import validation_windows
from statecheck_reference.train import LOG, train
from statecheck_reference.training_log import read_log

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from studies import baseline, founding, matrix, runs

KEPT = (12, 24)


def passages(folder: Path) -> Windows:
    """Held-out passages as short as the tests' text is."""
    return validation_windows(open_corpus(folder / "corpus"), rows=4, length=32, window=32)


@pytest.fixture(scope="module")
def folder(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small hybrid, 24 steps."""
    found = tmp_path_factory.mktemp("run") / "short"
    train(settings(), corpus, found, keep=KEPT)
    (found / "corpus").symlink_to(corpus.folder)
    return found


def settings() -> TrainingSettings:
    shape = {"vocabulary": 300, "width": 16, "blocks": 2, "rwkv_heads": 2, "low_rank": 2, "mamba_inner": 16}
    shape |= {"mamba_heads": 2, "mamba_state": 4, "feed_forward": 16}
    rows = {"batch": 2, "window": 8, "passage_windows": 4, "validation_rows": 2, "validation_length": 32}
    often = {"log_every": 2, "validate_every": 12, "checkpoint_every": 12, "sample_tokens": 0}
    return TrainingSettings("hybrid", shape=shape, steps=24, seed=7, peak_rate=0.01, warm_up=4, **rows, **often)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(founding, "KEPT", KEPT)
    monkeypatch.setattr(founding, "passages", passages)


@pytest.mark.usefixtures("short")
def test_the_founding_study_reads_the_log_and_the_states_of_kept_checkpoints(folder: Path) -> None:
    found = founding.run_of(folder)
    rows = [row for row in read_log(folder / LOG) if "train_loss" in row]
    assert found["step"] == [row["step"] for row in rows] == list(range(2, 25, 2))
    for name in ("rwkv", "mamba"):
        assert found["gradient_norm"][name] == [row["gradient_norms"][name] for row in rows]
        assert found["relative_update"][name] == [row["relative_updates"][name] for row in rows]
    ratios = [row["gradient_norms"]["rwkv"] / row["gradient_norms"]["mamba"] for row in rows]
    assert found["gradient_ratio"] == pytest.approx(ratios, rel=1e-5)
    assert found["variance"].keys() == {"12", "24"}
    model = founding.model_at(folder, 12)
    with torch.no_grad():
        model(passages(folder)[0][0])
    state = model.get_states()["blocks.1.rwkv.wkv"].flatten(1).double().numpy()
    assert found["variance"]["12"]["rwkv"][1] == pytest.approx(float(np.mean(np.var(state, axis=1, ddof=1))), rel=1e-6)


@pytest.mark.usefixtures("short")
def test_the_controls_of_the_founding_study_find_what_was_planted(folder: Path) -> None:
    found = founding.controls(folder)
    assert found["growth in other coordinates"] == pytest.approx(4 * found["growth"], rel=1e-5)
    assert 0.08 < found["ratio with a tenth of RWKV's gradient"] / found["ratio"] < 0.12


def test_the_matrix_has_the_loss_of_each_passage_of_the_validation(folder: Path) -> None:
    found = matrix.run_of(folder)
    logged = [row["validation_loss"] for row in read_log(folder / LOG) if "validation_loss" in row]
    assert len(found["passages"]) == 2
    assert np.mean(found["passages"]) == pytest.approx(logged[-1], rel=1e-5)
    late = [row for row in read_log(folder / LOG) if "train_loss" in row][-10:]
    logarithms = [math.log(row["relative_updates"]["rwkv"] / row["relative_updates"]["mamba"]) for row in late]
    assert found["update_ratio"] == pytest.approx(math.exp(np.mean(logarithms)), rel=1e-5)
    assert found["parameters"] == sum(one.numel() for one in founding.model_at(folder, 24).parameters())


def test_a_run_that_has_not_ended_or_is_another_one_is_not_collected(
    folder: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(*options: str) -> runs.Planned:
        return runs.Planned("short", "byte-pairs", ("--preset", "wide", "--steps", "24", "--seed", "7", *options))

    runs.refuse_unfinished(planned("--peak-rate", "1e-2", "--keep", "12"), folder)
    with pytest.raises(ValueError, match=r"^short: expected peak_rate 0.02 in .*, found 0.01"):
        runs.refuse_unfinished(planned("--peak-rate", "0.02"), folder)
    with pytest.raises(ValueError, match=r"^short: expected a training run in .*, found none"):
        runs.refuse_unfinished(planned(), tmp_path)

    def stop(step: int, row: object) -> None:
        if step == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(), corpus, tmp_path / "short", report=stop)
    monkeypatch.setattr(runs, "STUDIES", {"one": lambda: iter([planned()])})
    with pytest.raises(ValueError, match=r"^short: expected 24 steps in .*, found 12; train the rest"):
        runs.folders("one", tmp_path)
    assert runs.folders("one", folder.parent) == {"short": folder}


STUDIES = [baseline, founding, matrix]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__)
def test_the_page_of_a_study_shows_the_tables_of_its_results(study: ModuleType) -> None:
    shown = study.PAGE.read_text().splitlines()
    tables = [line for line in study.tables(json.loads(study.RESULTS.read_text())) if line]
    assert len(tables) > 8
    assert [line for line in tables if line not in shown] == []
