"""From a training run's work directory to the folder that ships: weights, tokenizer, log, and how they came about."""

import json
import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from statecheck.atomic import atomic_write_bytes
from statecheck_reference.checkpointing import CHECKPOINT, kept_checkpoint, load_checkpoint, weights_digest
from statecheck_reference.corpus import (
    BYTE_PAIRS,
    HELD_OUT,
    Corpus,
    corpus_tokenizer,
    held_out_corpus,
    open_corpus,
    unigram_entropies,
)
from statecheck_reference.evaluation import evaluate, text_windows
from statecheck_reference.models import MODELS, Architecture, LanguageModel
from statecheck_reference.optimiser import decays
from statecheck_reference.presets import PRESETS, preset
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.streams import validation_windows
from statecheck_reference.tokenizer import load_tokenizer
from statecheck_reference.train import LOG
from statecheck_reference.training_log import read_log

WEIGHTS, CONFIG, TOKENIZER, RECORD = "model.safetensors", "config.json", "tokenizer.json", "training.json"
EVALUATION_LENGTH = 1_024  # tokens of each document of the bundled text


def export(
    work: Path, out: Path | None, text: Path, *, step: int | None = None, precision: str = "float32"
) -> dict[str, Any]:
    """Write the folder that ships from a checkpoint in `work`; return the training record.

    It is the last checkpoint, or the one that was kept of `step`; the folder is `out`, or the one where the model that
    was trained ships. `precision` "bfloat16" rounds matrices (see :func:`rounded`). The losses on the documents in
    `text` and on the run's validation windows are measured on the file as written, and recorded. Raises
    FileNotFoundError if `work` holds no such checkpoint or no corpus.
    """
    checkpoint = load_checkpoint(work, CHECKPOINT if step is None else kept_checkpoint(step))
    if checkpoint is None:
        raise FileNotFoundError(f"export: expected a training run, found no checkpoint of {step or 'it'} in {work}")
    settings, corpus = TrainingSettings(**json.loads(checkpoint["settings"])), open_corpus(work / "corpus")
    model = settings.architecture
    out = out or model.folder
    out.mkdir(parents=True, exist_ok=True)
    header = {"statecheck.model": model.registered, "statecheck.config": json.dumps(settings.shape)}
    weights = rounded(checkpoint["weights"]) if precision == "bfloat16" else checkpoint["weights"]
    atomic_write_bytes(out / WEIGHTS, save(weights, metadata=header))
    atomic_write_bytes(out / LOG, (work / LOG).read_bytes()[: checkpoint["log_bytes"]])
    atomic_write_bytes(out / TOKENIZER, corpus_tokenizer(corpus).to_str(pretty=True).encode())
    atomic_write_bytes(out / CONFIG, _json(_config(settings)))
    record = _training_record(checkpoint, settings, corpus, out) | {
        "precision": precision,
        "weights_digest": weights_digest(load_shipped(out).state_dict()),
        "trained_weights_digest": weights_digest(checkpoint["weights"]),
        "shipped_validation_loss": _validation_loss(load_shipped(out), settings, corpus),
        **evaluate_shipped(out, text),
    }
    atomic_write_bytes(out / RECORD, _json(record))
    return record


def rounded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in bfloat16, half the size; vectors, and what sets time scales, as they are: bits there are decades.

    >>> import torch
    >>> {name: value.dtype for name, value in rounded({"key.weight": torch.ones(2, 2), "D": torch.ones(2)}).items()}
    {'key.weight': torch.bfloat16, 'D': torch.float32}
    """
    return {name: value.bfloat16() if decays(name, value) else value for name, value in weights.items()}


def _config(settings: TrainingSettings) -> dict[str, Any]:
    return {
        "model": settings.architecture.registered,
        "config": settings.shape,
        "training_length": settings.window,
        "tokenizer": TOKENIZER,
        "training_log": LOG,
        **settings.architecture.declared(settings.shape).for_wrap(),
    }


def _validation_loss(model: LanguageModel, settings: TrainingSettings, corpus: Corpus) -> float:
    windows = validation_windows(
        corpus, rows=settings.validation_rows, length=settings.validation_length, window=settings.window
    )
    return evaluate(model, windows)


def validate_shipped(folder: Path, data: Path) -> dict[str, float]:
    """The loss of a shipped model on the held-out documents in `data`, beside what its training log and record say.

    Raises ValueError if `data` holds other texts than it was trained on.
    """
    record = json.loads((folder / RECORD).read_text())
    corpus = held_out_corpus(
        data,
        load_tokenizer(folder / TOKENIZER),
        sorted(record["corpus"]["validation"]),
        record["corpus"]["digest"],
    )
    settings = TrainingSettings(**record["settings"])
    return {
        "validation_loss": _validation_loss(load_shipped(folder), settings, corpus),
        "recorded_validation_loss": record.get("shipped_validation_loss", record["validation_loss"]),
        "logged_validation_loss": record["validation_loss"],
    }


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
    checkpoint: dict[str, Any], settings: TrainingSettings, corpus: Corpus, out: Path
) -> dict[str, Any]:
    validated = {row["step"]: row["validation_loss"] for row in read_log(out / LOG) if "validation_loss" in row}
    best = min(validated, key=lambda step: validated[step])
    interval = settings.log_every * settings.batch * settings.window  # tokens
    speeds = [row["tokens_per_second"] for row in read_log(out / LOG) if "tokens_per_second" in row]
    return {
        "model": settings.architecture.registered,
        "command": _command(settings, corpus, checkpoint),
        "seed": settings.seed,
        "steps": checkpoint["step"],
        "tokens": checkpoint["step"] * settings.batch * settings.window,
        "parameters": sum(weight.numel() for weight in checkpoint["weights"].values()),
        "validation_loss": validated[max(validated)],
        "best_validation_loss": validated[best],
        "best_validation_step": best,
        "unigram_entropy": unigram_entropies(corpus),
        "torch": checkpoint["torch"],
        "threads": checkpoint["threads"],
        "processes": checkpoint.get("processes", 1),
        "device": checkpoint.get("device", "cpu"),
        "median_tokens_per_second": statistics.median(speeds),
        "training_hours": round(sum(interval / speed for speed in speeds) / 3600, 3),
        "corpus": {
            "digest": corpus.digest,
            "training": {document.title: document.length for document in corpus.training},
            "validation": {document.title: document.length for document in corpus.validation},
        },
        "settings": settings.to_dict(),
    }


def _command(settings: TrainingSettings, corpus: Corpus, checkpoint: Mapping[str, Any]) -> str:
    """What trains the same model again, but for the folders; of several processes, ddp."""
    processes, device, units = checkpoint.get("processes", 1), checkpoint.get("device", "cpu"), corpus.units
    named = _preset_of(settings)
    always = ("steps", "batch", "window", "seed") if named else ("model", "steps", "batch", "window", "seed")
    default = TrainingSettings("hybrid" if named else settings.model, preset(named) if named else {}).to_dict()
    options = [f"--preset {named}"] if named else []
    options += [] if units == BYTE_PAIRS else [f"--units {units}"]
    for name, value in settings.to_dict().items():
        option = name.replace("_", "-")
        if isinstance(value, bool) and value != default[name]:
            options.append(f"--{option}" if value else f"--no-{option}")
        elif not isinstance(value, dict) and (name in always or value != default[name]):
            options.append(f"--{option} {value}")
    shape = {key: size for key, size in settings.shape.items() if size != default["shape"][key]}
    if units != BYTE_PAIRS:
        shape.pop("vocabulary", None)
    tables = {
        "shape": shape,
        "component-rate": settings.component_rates,
        "component-clip": settings.component_clips,
        "freeze": settings.freeze,
    }
    for option, table in tables.items():
        options += [f"--{option} {name}={_word(value)}" for name, value in table.items()]
    held_out = [document.title for document in corpus.validation]
    if sorted(held_out) != sorted(HELD_OUT):
        options += [f"--held-out {shlex.quote(title)}" for title in held_out]
    options += [f"--threads {checkpoint['threads']}", *([f"--device {device}"] if device != "cpu" else [])]
    several = f"torchrun --nproc-per-node {processes} --no-python " if processes > 1 else ""
    return f"{several}statecheck-reference train --data FOLDER --out WORKDIR {' '.join(options)}"


def _preset_of(settings: TrainingSettings) -> str | None:
    """The name of the shape, where it has one; the vocabulary is the corpus's."""
    if settings.model != "hybrid":
        return None
    shapes = {name: settings.architecture.complete(shape) for name, shape in PRESETS.items()}
    own = {"vocabulary": settings.shape["vocabulary"]}
    return next((name for name, shape in shapes.items() if {**shape, **own} == settings.shape), None)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
