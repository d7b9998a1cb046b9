"""The training log: one JSON object a line.

Rows: step 0 (the untrained model: `checks` G1 and G2, validation), then every `log_every` steps

    {"step": 10, "train_loss": 7.9, "lr": 1e-4, "gradient_norm": 0.8, "gradient_norms": {...}, ...}

Losses in nats a token; `train_loss` and `gradient_norm` (before clipping) are means over the steps since the row
before, `tokens_per_second` is their speed. Of the last step, by component where there are several (else by layer):
`gradient_norms`, before clipping, `gradient_ratio`, of the first two components, and `relative_updates`, the RMS of the
optimiser's step over the RMS of the parameters before it; `gates`, the mean of each layer's fusion gate over its batch,
of models that have one.

At the steps that validate: `validation_loss` and `perplexity`; after the validation windows `state_rms` and
`state_entropy` of each state; of each "component.layer" `evolution` and `pinned`, the cosine and the pinned share of
G3.5, and `health`, 0..1; `sample`, a few words that the model wrote, after a "|". `checks` G3 stands in the first row
from step 1,000 on, or the last.

Everything but `tokens_per_second` is a pure function of the run's settings: :func:`without_clock`.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CLOCK = ("tokens_per_second",)


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


def without_clock(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what no two runs share.

    >>> without_clock([{"step": 10, "tokens_per_second": 900.0}])
    [{'step': 10}]
    """
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def significant(value: float, digits: int = 7) -> float:
    """`value` to a few significant digits: a log twice as short.

    >>> significant(0.123456789), significant(0.0)
    (0.1234568, 0.0)
    """
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
