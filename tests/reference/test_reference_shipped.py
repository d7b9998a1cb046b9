"""What ships: the exported folder is what the record says, and the bundled text is what the checks need."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from statecheck_reference.checkpointing import kept_checkpoint, load_checkpoint, weights_digest
from statecheck_reference.cli import app
from statecheck_reference.corpus import Corpus, read_texts
from statecheck_reference.evaluation import evaluate, text_windows
from statecheck_reference.export import evaluate_shipped, export, load_shipped
from statecheck_reference.lstm import LSTMConfig, LSTMLanguageModel
from statecheck_reference.models import MODELS
from statecheck_reference.registry import TEXT_FOLDER, reference, reference_lstm
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.tokenizer import load_tokenizer
from statecheck_reference.train import train
from statecheck_reference.training_log import read_log
from typer.testing import CliRunner

from statecheck.checkpoint import read_config
from statecheck.protocol import RegisteredModel

LSTM_FOLDER = MODELS["lstm"].folder
KEPT = Path(__file__).resolve().parents[2] / "reference_models/checkpoints/hybrid-8m-5000"  # of the same run, half-way
STEPS = {"lstm": 10_000, "hybrid": 10_000, "hybrid at step 5,000": 5_000}
FOLDERS = {"lstm": LSTM_FOLDER, "hybrid": MODELS["hybrid"].folder, "hybrid at step 5,000": KEPT}
SIZES = {"lstm": (1_700_000, 2_000_000, 8e6), "hybrid": (8_000_000, 8_100_000, 17e6)}  # parameters, bytes of the file


@dataclass(frozen=True)
class Shipped:
    """One of the folders, and what it records of itself."""

    name: str
    folder: Path

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "training.json").read_text())

    @property
    def sizes(self) -> tuple[float, float, float]:
        return SIZES[self.name.split()[0]]


@pytest.fixture(scope="module", params=FOLDERS)
def shipped(request: pytest.FixtureRequest) -> Shipped:
    return Shipped(request.param, FOLDERS[request.param])


@pytest.fixture(scope="module")
def record(shipped: Shipped) -> dict:
    return shipped.record


@pytest.mark.parametrize("name", ["lstm", "hybrid"])
def test_the_shipped_file_has_the_recorded_loss_on_the_bundled_text(name: str) -> None:
    found = evaluate_shipped(FOLDERS[name], TEXT_FOLDER)
    assert found["evaluation_documents"] == 61
    assert found["evaluation_loss"] == pytest.approx(Shipped(name, FOLDERS[name]).record["evaluation_loss"], abs=1e-4)


def test_the_weights_are_those_that_were_trained(shipped: Shipped, record: dict) -> None:
    model = load_shipped(shipped.folder)
    assert weights_digest(model.state_dict()) == record["weights_digest"]
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    least, most, size = shipped.sizes
    assert least <= record["parameters"] <= most
    assert (shipped.folder / "model.safetensors").stat().st_size < size


def test_a_file_of_rounded_matrices_has_the_loss_of_the_trained_ones() -> None:
    record = Shipped("hybrid", FOLDERS["hybrid"]).record
    assert record["precision"] == "bfloat16"
    assert record["shipped_validation_loss"] == pytest.approx(record["validation_loss"], abs=1e-3)
    assert record["weights_digest"] != record["trained_weights_digest"]


def test_header_config_and_record_agree(shipped: Shipped, record: dict) -> None:
    config = json.loads((shipped.folder / "config.json").read_text())
    with safe_open(shipped.folder / "model.safetensors", framework="pt") as file:
        header = file.metadata()
    name = shipped.name.split()[0]
    assert header["statecheck.model"] == config["model"] == record["model"] == MODELS[name].registered
    assert json.loads(header["statecheck.config"]) == config["config"] == MODELS[name].complete({})
    assert config["training_length"] == record["settings"]["window"] == 256
    assert {config["tokenizer"], config["training_log"]} <= {path.name for path in shipped.folder.iterdir()}
    assert load_tokenizer(shipped.folder / config["tokenizer"]).get_vocab_size() == config["config"]["vocabulary"]


def test_the_log_tells_of_the_whole_run(shipped: Shipped, record: dict) -> None:
    rows = read_log(shipped.folder / "training_log.jsonl")
    trained = [row for row in rows if "train_loss" in row]
    validated = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert rows[-1]["step"] == record["steps"] == STEPS[shipped.name] <= record["settings"]["steps"] == 10_000
    assert len(trained) == record["steps"] // 10
    assert max(b["step"] - a["step"] for a, b in pairwise(rows)) <= 10
    assert record["validation_loss"] == validated[-1]
    assert record["best_validation_loss"] == min(validated)


def test_the_untrained_model_was_undecided_and_its_loss_fell() -> None:
    """The gates before training: G1 and G2 at step 0, G3 at step 1,000."""
    assert read_log(LSTM_FOLDER / "training_log.jsonl")[0]["output_entropy"] == pytest.approx(math.log(4096), rel=0.01)
    for name in ("hybrid", "hybrid at step 5,000"):
        rows = {row["step"]: row["checks"] for row in read_log(FOLDERS[name] / "training_log.jsonl") if "checks" in row}
        assert {step: list(checks) for step, checks in rows.items()} == {0: ["G1", "G2"], 1000: ["G3"]}
        assert all(check["passed"] for checks in rows.values() for check in checks.values())
        assert rows[0]["G2"]["entropy_share"] > 0.95


def test_the_model_learned_more_than_frequencies(record: dict) -> None:
    assert record["validation_loss"] < record["unigram_entropy"]["validation"] - 1
    assert record["evaluation_loss"] < record["unigram_entropy"]["training_on_validation"] - 1


def test_the_models_memory_is_worth_something() -> None:
    """On the bundled text, the loss without history (the state cleared every 8 tokens) is clearly higher."""
    model, tokenizer = load_shipped(LSTM_FOLDER), load_tokenizer(LSTM_FOLDER / "tokenizer.json")
    windows = text_windows(TEXT_FOLDER, tokenizer, length=512, window=8)[32:]
    carried = evaluate(model, windows)
    cleared = sum(evaluate(model, [window]) for window in windows) / len(windows)
    assert cleared > carried + 0.2


def test_the_bundled_text_is_61_chapters_long_enough_for_the_checks(record: dict) -> None:
    texts, tokenizer = read_texts(TEXT_FOLDER), load_tokenizer(LSTM_FOLDER / "tokenizer.json")
    assert list(texts) == [f"chapter-{number:02d}" for number in range(1, 62)]
    assert texts["chapter-01"].startswith("It is a truth universally acknowledged, that a single man")
    assert sum(len(tokenizer.encode(text).ids) >= 1_057 for text in texts.values()) == 61
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()
    assert digest in (TEXT_FOLDER / "SOURCE.md").read_text()
    assert not any("prejudice" in title for part in ("training", "validation") for title in record["corpus"][part])


def test_the_registered_models_build_and_point_at_what_ships() -> None:
    assert isinstance(reference, RegisteredModel)
    assert (reference.name, reference_lstm.name) == ("reference", "reference-lstm")
    assert (reference_lstm.build, reference.build) == (MODELS["lstm"].build, MODELS["hybrid"].build)
    assert (reference.folder, reference_lstm.folder) == (MODELS["hybrid"].folder, LSTM_FOLDER)
    assert reference.text == reference_lstm.text == TEXT_FOLDER
    config = json.loads((LSTM_FOLDER / "config.json").read_text())["config"]
    model = reference_lstm.build(config)
    model.load_state_dict(load_shipped(LSTM_FOLDER).state_dict())
    for wrong in ({**config, "heads": 4}, {"width": 4, "layers": 1}, {**config, "width": "224"}):
        with pytest.raises(ValueError, match=r"unknown: heads|missing: vocabulary|found '224'"):
            reference_lstm.build(wrong)


@pytest.mark.parametrize("name", ["lstm", "hybrid"])
def test_an_export_holds_the_trained_weights_and_its_own_record(
    tiny_runs: dict[str, TrainingSettings], corpus: Corpus, texts: Path, tmp_path: Path, name: str
) -> None:
    work, out = corpus.folder.parent / f"work-{tmp_path.name}", tmp_path / "out"
    model = train(tiny_runs[name], corpus, work)
    (work / "corpus").symlink_to(corpus.folder)
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "one.txt").write_text("too short")
    with pytest.raises(ValueError, match="expected documents of more than 1024 tokens"):
        export(work, out, tmp_path / "short")
    record = export(work, out, texts)
    assert record["evaluation_documents"] == 4
    assert weights_digest(load_shipped(out).state_dict()) == weights_digest(model.state_dict())
    assert record == json.loads((out / "training.json").read_text())
    assert record["tokens"] == 40 * 2 * 8
    assert TrainingSettings(**record["settings"]) == tiny_runs[name]
    assert record["evaluation_loss"] == evaluate_shipped(out, texts)["evaluation_loss"]
    assert (out / "training_log.jsonl").read_bytes() == (work / "training_log.jsonl").read_bytes()
    assert load_checkpoint(work) is not None
    printed = CliRunner().invoke(app, ["show", "--folder", str(out)]).output
    assert re.search(rf"weights_digest +{record['weights_digest']}", printed)
    assert re.search(r"corpus.validation +kept-apart\n", printed)
    printed = CliRunner().invoke(app, ["evaluate", "--folder", str(out), "--text", str(texts)]).output
    assert re.search(rf"evaluation_loss +{record['evaluation_loss']:.6g}\n", printed)
    picture = CliRunner().invoke(app, ["plot", "--folder", str(out), "--out", str(tmp_path / "loss.png")])
    assert picture.exit_code == 0, picture.output
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    wanted, patterns = MODELS[name].declared(tiny_runs[name].shape), read_config(out)
    assert patterns.model == MODELS[name].registered
    assert patterns.components == {part: facts.states for part, facts in wanted.components.items()}
    assert patterns.selective == dict.fromkeys(wanted.components, True)
    assert (patterns.states, patterns.signals) == (wanted.states, wanted.signals)


def test_the_recorded_command_trains_the_same_again(
    tiny_runs: dict[str, TrainingSettings], corpus: Corpus, texts: Path, tmp_path: Path
) -> None:
    train(tiny_runs["hybrid"], corpus, tmp_path / "work")
    (tmp_path / "work" / "corpus").symlink_to(corpus.folder)
    record = export(tmp_path / "work", tmp_path / "out", texts)
    command = record["command"].replace("FOLDER", str(texts)).replace("WORKDIR", str(tmp_path / "again"))
    assert "--held-out kept-apart" in command
    done = CliRunner().invoke(app, command.split()[1:])
    assert done.exit_code == 0, done.output
    again = load_checkpoint(tmp_path / "again")
    assert again is not None
    assert weights_digest(again["weights"]) == record["weights_digest"]


def test_a_kept_step_is_exported_with_rounded_matrices_and_evaluates_to_what_its_record_says(
    tiny_runs: dict[str, TrainingSettings], corpus: Corpus, texts: Path, tmp_path: Path
) -> None:
    """Of a hybrid of both Mambas' parameters: what sets time scales keeps its bits, and so do vectors."""
    shape = {**tiny_runs["hybrid"].shape, "mamba_version": 1, "mamba_rank": 2}
    settings = replace(tiny_runs["hybrid"], shape=shape)
    train(settings, corpus, tmp_path / "work", keep=[30])
    (tmp_path / "work" / "corpus").symlink_to(corpus.folder)
    where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--text", str(texts)]
    done = CliRunner().invoke(app, ["export", *where, "--step", "30", "--precision", "bfloat16"])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["steps"], record["precision"]) == (30, "bfloat16")
    assert read_log(tmp_path / "out" / "training_log.jsonl")[-1]["step"] == 30
    trained = load_checkpoint(tmp_path / "work", kept_checkpoint(30))
    assert trained is not None
    stored, whole = load_file(tmp_path / "out" / "model.safetensors"), trained["weights"]
    exact = {name for name, value in stored.items() if value.dtype == torch.float32}
    assert all(value.equal(whole[name].to(value.dtype)) for name, value in stored.items())
    assert {name for name, value in whole.items() if value.dim() < 2} < exact
    matrices = {name.removeprefix("blocks.0.") for name in exact if whole[name].dim() > 1 and "blocks.1" not in name}
    assert matrices == {"rwkv.bonus", "rwkv.mu", "rwkv.decay_down", "rwkv.decay_up", "mamba.A_log"}
    done = CliRunner().invoke(app, ["evaluate", "--folder", str(tmp_path / "out"), "--data", str(texts)])
    found = dict(line.split() for line in done.output.splitlines())
    assert float(found["validation_loss"]) == pytest.approx(record["shipped_validation_loss"], rel=1e-6)
    assert float(found["logged_validation_loss"]) == pytest.approx(record["shipped_validation_loss"], abs=0.01)


def test_a_folder_and_the_name_of_a_model_exclude_each_other(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["show", "--folder", str(tmp_path), "--model", "lstm"])
    assert "exclude each other" in str(done.exception)
    done = CliRunner().invoke(app, ["show", "--folder", str(tmp_path)])
    assert "expected training.json" in str(done.exception)
    assert "weights_digest" in CliRunner().invoke(app, ["show", "--model", "lstm"]).output


def test_folders_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected model.safetensors"):
        load_shipped(tmp_path)
    with pytest.raises(FileNotFoundError, match="found no checkpoint"):
        export(tmp_path, tmp_path / "out", TEXT_FOLDER)


def test_evaluating_leaves_the_model_as_it_was() -> None:
    """And a constant model has the loss log V, by hand."""
    model = LSTMLanguageModel(LSTMConfig(vocabulary=7, width=4, layers=1))
    with torch.no_grad():
        model.embedding.weight.zero_()
    model(torch.tensor([[1, 2, 3]]))
    before = model.get_states()
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2]])
    assert evaluate(model, [(tokens[:, :-1], tokens[:, 1:])]) == pytest.approx(math.log(7), rel=1e-6)
    assert model.training
    assert all(torch.equal(state, before[name]) for name, state in model.get_states().items())
