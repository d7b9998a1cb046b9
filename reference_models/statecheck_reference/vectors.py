"""Training of the reference GRU of vectors, and the folder that ships: `python -m statecheck_reference.vectors`.

The novels are read as sequences of vectors (`stylometry.py`), in passages of several windows, each passage from a
random place with the state carried from window to window. It takes a few minutes on one core: a run that is cut off is
started again. All of it, weights and log, depends on the settings, the texts and the number of threads alone.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from statecheck.atomic import atomic_write_bytes
from statecheck_reference.checkpointing import weights_digest
from statecheck_reference.corpus import HELD_OUT, read_texts
from statecheck_reference.stylometry import FEATURES, style_vectors
from statecheck_reference.training_log import TrainingLog, significant
from statecheck_reference.vector_gru import VectorGRU, VectorGRUConfig

MODEL = "reference-vectors"
FOLDER = Path(__file__).resolve().parent / "vector_gru"
TEXT_FOLDER = Path(__file__).resolve().parent / "text"
VECTORS, WEIGHTS, CONFIG, LOG, RECORD = (
    "vectors.npz",
    "model.safetensors",
    "config.json",
    "training_log.jsonl",
    "training.json",
)


@dataclass(frozen=True)
class VectorTraining:
    """Truncated back-propagation with Adam; `window` in vectors, `passage_windows` until a row forgets."""

    steps: int = 10_000
    batch: int = 16
    window: int = 32
    passage_windows: int = 8
    seed: int = 0
    peak_rate: float = 3e-3
    warm_up: int = 200
    clip: float = 1.0
    log_every: int = 10
    validate_every: int = 250
    validation_rows: int = 64

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 1: linear warm-up, then half a cosine down to a tenth."""
        if step <= self.warm_up:
            return self.peak_rate * step / self.warm_up
        done = (step - self.warm_up) / max(self.steps - self.warm_up, 1)
        return self.peak_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def fit_vectors(
    settings: VectorTraining,
    config: VectorGRUConfig,
    training: Sequence[Tensor],
    validation: Sequence[Tensor],
    log: Path,
) -> VectorGRU:
    """The model trained on documents (blocks, width); the log at `log` is written anew.

    Raises ValueError if no document is as long as one passage and the vector after it.
    """
    torch.manual_seed(settings.seed)
    model = VectorGRU(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.peak_rate, betas=(0.9, 0.99))
    held_out = _passages(validation, settings, settings.validation_rows, seed=0)
    writer = TrainingLog(log)
    losses, norms = [], []
    for step in range(1, settings.steps + 1):
        turn, place = divmod(step - 1, settings.passage_windows)
        if place == 0:
            passages = _passages(training, settings, settings.batch, seed=(settings.seed, turn))
            model.set_states(None)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        loss, norm = _step(model, optimizer, _window(passages, settings, place), settings.clip)
        losses.append(loss)
        norms.append(norm)
        if step % settings.log_every == 0:
            row = {"step": step, "train_loss": _mean(losses), "gradient_norm": _mean(norms)}
            if step % settings.validate_every == 0:
                row["validation_loss"] = significant(_passage_loss(model, held_out, settings))
            writer.append(row)
            losses, norms = [], []
    writer.close()
    model.set_states(None)
    return model.eval()


def _passages(documents: Sequence[Tensor], settings: VectorTraining, rows: int, seed: int | tuple[int, int]) -> Tensor:
    """`rows` passages and the vector after each, (rows, passage + 1, width): every place is as likely as any other."""
    length = settings.window * settings.passage_windows + 1
    places = np.array([max(0, len(document) - length + 1) for document in documents])
    if not places.any():
        raise ValueError(f"vectors: expected a document of at least {length} blocks, the longest is shorter")
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(documents), size=rows, p=places / places.sum())
    starts = generator.integers(0, places[chosen])
    return torch.stack([documents[i][start : start + length] for i, start in zip(chosen, starts, strict=True)])


def _window(passages: Tensor, settings: VectorTraining, place: int) -> Tensor:
    """The window number `place` of each passage, and the vector after it: (rows, window + 1, width)."""
    start = place * settings.window
    return passages[:, start : start + settings.window + 1]


def _step(model: VectorGRU, optimizer: torch.optim.Optimizer, window: Tensor, clip: float) -> tuple[float, float]:
    """One update; the loss and the norm of the gradient before clipping. Raises RuntimeError if it is not finite."""
    model.set_states({name: state.detach() for name, state in model.get_states().items()})
    loss = functional.mse_loss(model(window[:, :-1]), window[:, 1:])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
    if not (math.isfinite(loss.item()) and math.isfinite(norm)):
        raise RuntimeError(f"vectors: the loss is {loss.item()} and the gradient norm {norm}; try a lower peak rate")
    optimizer.step()
    return loss.item(), norm


def _passage_loss(model: VectorGRU, passages: Tensor, settings: VectorTraining) -> float:
    """Mean squared error over whole passages from no history; the model's states are left as they were."""
    held = model.get_states()
    model.set_states(None)
    with torch.no_grad():
        windows = [_window(passages, settings, place) for place in range(settings.passage_windows)]
        errors = [functional.mse_loss(model(window[:, :-1]), window[:, 1:]).item() for window in windows]
    model.set_states(held)
    return sum(errors) / len(errors)


def _mean(values: Sequence[float]) -> float:
    return significant(sum(values) / len(values))


def write_bundled_vectors(text: Path, path: Path) -> None:
    """The documents of the folder `text` as vectors, in the form that `statecheck run --data NPZ` reads."""
    documents = [style_vectors(document) for document in read_texts(text).values()]
    lengths = [len(document) for document in documents]
    np.savez_compressed(
        path,
        vectors=np.concatenate(documents),
        batch_ids=np.repeat(np.arange(len(documents), dtype=np.int32), lengths),
        seq_in_article=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
    )


def export_vectors(model: VectorGRU, settings: VectorTraining, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write weights, config and record beside the log and the vectors."""
    config = model.config.to_dict()
    header = {"statecheck.model": MODEL, "statecheck.config": json.dumps(config)}
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    atomic_write_bytes(folder / WEIGHTS, save(weights, metadata=header))
    said = {
        "model": MODEL,
        "config": config,
        "training_length": settings.window,
        "training_log": LOG,
        "components": {"gru": ["layers.*"]},
        "selective": True,
    }
    atomic_write_bytes(folder / CONFIG, _json(said))
    record = {
        "model": MODEL,
        **facts,
        "parameters": sum(value.numel() for value in weights.values()),
        "weights_digest": weights_digest(weights),
        "features": [feature.name for feature in FEATURES],
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "settings": asdict(settings),
    }
    atomic_write_bytes(folder / RECORD, _json(record))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def train(
    data: Annotated[Path, typer.Option(help="Folder of UTF-8 .txt files, one document a file.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")] = FOLDER,
    held_out: Annotated[list[str], typer.Option(help="Document to validate on (repeat).")] = HELD_OUT,
    text: Annotated[Path, typer.Option(help="Documents whose vectors are bundled.")] = TEXT_FOLDER,
    steps: int = VectorTraining.steps,
    threads: int = 1,
) -> None:
    """Train the GRU of vectors on novels and write the folder that ships."""
    torch.set_num_threads(threads)
    settings = VectorTraining(steps=steps)
    out.mkdir(parents=True, exist_ok=True)
    documents = {title: torch.from_numpy(style_vectors(content)) for title, content in read_texts(data).items()}
    training = [vectors for title, vectors in documents.items() if title not in held_out]
    validation = [documents[title] for title in held_out]
    model = fit_vectors(settings, VectorGRUConfig(width=len(FEATURES)), training, validation, out / LOG)
    write_bundled_vectors(text, out / VECTORS)
    held = " ".join(f"--held-out {title}" for title in held_out)
    command = f"python -m statecheck_reference.vectors --data FOLDER --steps {steps} --threads {threads} {held}"
    lengths = {title: len(vectors) for title, vectors in documents.items()}
    export_vectors(model, settings, out, {"command": command, "blocks": lengths, "held_out": held_out})
    print((out / RECORD).read_text())


if __name__ == "__main__":
    typer.run(train)
