"""The training log: one JSON object a line, a pure function of the run's settings.

Rows: step 0 (the untrained model: `output_entropy` against `log_vocabulary`, validation), then every `log_every` steps

    {"step": 10, "train_loss": 7.9, "lr": 1e-4, "gradient_norm": 0.8, "gradient_norms": {...}, ...}

with `validation_loss`, `perplexity`, `state_rms` and `health` at the steps that validate. Losses in nats a token;
`train_loss` and `gradient_norm` (before clipping) are means over the steps since the row before. Of the last step, by
component where there are several (else by layer): `gradient_norms`, before clipping, and `relative_updates`, the RMS of
the optimiser's step over the RMS of the parameters before it; `gates`, the mean of each layer's fusion gate over its
batch, of models that have one. After the validation windows: `state_rms` of each state, and `health`, 0..1, of each
"component.layer". No clock time is written here: two runs with the same settings give the same bytes.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TrainingLog:
    """Appends rows to a JSONL file; `mark()` makes them safe on the disk and says how far the file reaches."""

    def __init__(self, path: Path, *, keep_bytes: int = 0) -> None:
        """Open `path` and cut it to its first `keep_bytes` (what the checkpoint knows); 0 starts a new log.

        Raises ValueError if the file is shorter than that.
        """
        self._file = path.open("ab")
        found = path.stat().st_size
        if found < keep_bytes:
            self._file.close()
            raise ValueError(
                f"training log: expected at least {keep_bytes} bytes in {path}, as its checkpoint says, found {found}; "
                "put the log back or start over in another work directory"
            )
        os.truncate(path, keep_bytes)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row in one go; ValueError for NaN or infinity, which JSON can't hold."""
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def mark(self) -> int:
        """Flush to the disk and return the length of the file in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, in order; a last line cut short by a kill is left out."""
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def significant(value: float, digits: int = 7) -> float:
    """`value` to a few significant digits: a log twice as short.

    >>> significant(0.123456789), significant(0.0)
    (0.1234568, 0.0)
    """
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
