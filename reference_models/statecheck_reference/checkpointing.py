"""Checkpoints of a training run: whole or not at all, and loadable without running code."""

import fcntl
import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from statecheck.atomic import atomic_write_bytes, sweep_temporaries

CHECKPOINT, LOCK = "checkpoint.pt", "lock"


def kept_checkpoint(step: int) -> str:
    """The name of the checkpoint that was kept of a step.

    >>> kept_checkpoint(5000)
    'checkpoint-5000.pt'
    """
    return f"checkpoint-{step}.pt"


def save_checkpoint(folder: Path, content: Mapping[str, Any], name: str = CHECKPOINT) -> None:
    """Replace the checkpoint in `folder` by `content` (tensors, numbers, strings, dicts and lists of them)."""
    file = io.BytesIO()
    torch.save(dict(content), file)
    atomic_write_bytes(folder / name, file.getvalue())


def load_checkpoint(folder: Path, name: str = CHECKPOINT) -> dict[str, Any] | None:
    """What the last whole checkpoint in `folder` holds, None if there is none.

    Raises ValueError with one line if the file can't be read as weights and plain values.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint: {path} can't be read ({first}); delete it to start over") from error


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, whatever the order and the file format.

    >>> weights_digest({"w": torch.zeros(2)}) == weights_digest({"w": torch.zeros(2, dtype=torch.float64)})
    False
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep `folder` to this process; RuntimeError if another one trains in it. A killed process lets go by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"work directory: {folder} is in use by another run; wait for it or choose another one"
            ) from error
        sweep_temporaries(folder)
        yield
