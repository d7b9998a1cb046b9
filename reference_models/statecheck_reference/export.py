"""From a training run's work directory to the folder that ships: weights, tokenizer, log, and how they came about."""

import json
import statistics
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save

from statecheck.atomic import atomic_write_bytes
from statecheck_reference.checkpointing import load_checkpoint, weights_digest
from statecheck_reference.corpus import Corpus, corpus_tokenizer, open_corpus, unigram_entropies
from statecheck_reference.evaluation import evaluate, text_windows
from statecheck_reference.models import MODELS, Architecture, LanguageModel
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.tokenizer import load_tokenizer
from statecheck_reference.train import LOG, THROUGHPUT
from statecheck_reference.training_log import read_log

WEIGHTS, CONFIG, TOKENIZER, RECORD = "model.safetensors", "config.json", "tokenizer.json", "training.json"
EVALUATION_LENGTH = 1_024  # tokens of each document of the bundled text


def export(work: Path, out: Path | None, text: Path) -> dict[str, Any]:
    """Write the folder that ships from the last checkpoint in `work`; return the training record.

    It is `out`, or the one where the model that was trained ships.
    The loss on the documents in `text` is measured on the file as written, and recorded. Raises FileNotFoundError if
    `work` holds no checkpoint or corpus.
    """
    checkpoint = load_checkpoint(work)
    if checkpoint is None:
        raise FileNotFoundError(f"export: expected a training run, found no checkpoint in {work}")
    settings = TrainingSettings(**json.loads(checkpoint["settings"]))
    model = settings.architecture
    out = out or model.folder
    out.mkdir(parents=True, exist_ok=True)
    header = {"statecheck.model": model.registered, "statecheck.config": json.dumps(settings.shape)}
    atomic_write_bytes(out / WEIGHTS, save(checkpoint["weights"], metadata=header))
    atomic_write_bytes(out / LOG, (work / LOG).read_bytes()[: checkpoint["log_bytes"]])
    corpus = open_corpus(work / "corpus")
    atomic_write_bytes(out / TOKENIZER, corpus_tokenizer(corpus).to_str(pretty=True).encode())
    config = {
        "model": model.registered,
        "config": settings.shape,
        "training_length": settings.window,
        "tokenizer": TOKENIZER,
        "training_log": LOG,
        **model.declaration(),
    }
    atomic_write_bytes(out / CONFIG, _json(config))
    record = {**_training_record(checkpoint, settings, corpus, work, out), **evaluate_shipped(out, text)}
    atomic_write_bytes(out / RECORD, _json(record))
    return record


def load_shipped(folder: Path) -> LanguageModel:
    """The model in a shipped folder, built from the config in the header of its weights.

    Raises FileNotFoundError if there is none, ValueError if the header names no model of this package or the weights
    don't fit.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"model: expected {WEIGHTS} in {folder}, found none")
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
    model = _named(header.get("statecheck.model"), path).build(json.loads(header["statecheck.config"]))
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"model: the weights in {path} don't fit its config ({error})") from error
    return model.eval()


def components_shipped(folder: Path) -> list[str]:
    """The names of the components that a shipped folder declares, in its order."""
    return list(json.loads((folder / CONFIG).read_text())["components"])


def _named(registered: str | None, path: Path) -> Architecture:
    known = {model.registered: model for model in MODELS.values()}
    if registered not in known:
        raise ValueError(f"model: expected one of {', '.join(known)} in the header of {path}, found {registered}")
    return known[registered]


def evaluate_shipped(folder: Path, text: Path) -> dict[str, Any]:
    """Loss in nats a token of the shipped model on the first 1,024 tokens of each document in `text`."""
    tokenizer = load_tokenizer(folder / TOKENIZER)
    windows = text_windows(text, tokenizer, length=EVALUATION_LENGTH, window=256)
    return {
        "evaluation_loss": evaluate(load_shipped(folder), windows),
        "evaluation_documents": len(windows[0][0]),
        "evaluation_length": EVALUATION_LENGTH,
    }


def _training_record(
    checkpoint: dict[str, Any], settings: TrainingSettings, corpus: Corpus, work: Path, out: Path
) -> dict[str, Any]:
    validated = {row["step"]: row["validation_loss"] for row in read_log(out / LOG) if "validation_loss" in row}
    best = min(validated, key=lambda step: validated[step])
    clock = read_log(work / THROUGHPUT)
    return {
        "model": settings.architecture.registered,
        "command": _command(settings, checkpoint["threads"]),
        "seed": settings.seed,
        "steps": checkpoint["step"],
        "tokens": checkpoint["step"] * settings.batch * settings.window,
        "parameters": sum(weight.numel() for weight in checkpoint["weights"].values()),
        "dtype": "float32",
        "weights_digest": weights_digest(checkpoint["weights"]),
        "validation_loss": validated[max(validated)],
        "best_validation_loss": validated[best],
        "best_validation_step": best,
        "unigram_entropy": unigram_entropies(corpus),
        "torch": checkpoint["torch"],
        "threads": checkpoint["threads"],
        "median_tokens_per_second": statistics.median(row["tokens_per_second"] for row in clock),
        "training_hours": round(sum(row["seconds"] for row in clock) / 3600, 3),
        "corpus": {
            "digest": corpus.digest,
            "training": {document.title: document.length for document in corpus.training},
            "validation": {document.title: document.length for document in corpus.validation},
        },
        "settings": settings.to_dict(),
    }


def _command(settings: TrainingSettings, threads: int) -> str:
    always = ("model", "steps", "batch", "window", "seed")
    default = TrainingSettings(settings.model).to_dict()
    options = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in settings.to_dict().items()
        if not isinstance(value, dict) and (name in always or value != default[name])
    ]
    options += [f"--shape {key}={size}" for key, size in settings.shape.items() if size != default["shape"][key]]
    options += [f"--component-rate {name}={rate}" for name, rate in settings.component_rates.items()]
    return f"statecheck-reference train --data FOLDER --out WORKDIR {' '.join(options)} --threads {threads}"


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
