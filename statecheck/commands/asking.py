"""From what was typed to what is planned: the request for a model and its data, limits, and the files they name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from statecheck.engine import Limits
from statecheck.errors import UsageError
from statecheck.naming import Kind, read_spec
from statecheck.plan import Cell, Plan, digests, versions

POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Asked:
    """MODEL and all that says how to read it, as typed."""

    spec: str | None = None
    model: str | None = None
    loader: str | None = None
    device: str = "cpu"
    dtype: str | None = None
    data: Path | None = None
    tokenizer: Path | None = None
    training_log: Path | None = None

    def request(self) -> dict[str, Any]:
        """The request as a plan holds it, with absolute paths. Raises UsageError for a MODEL that means nothing."""
        named = read_spec(self.spec)
        plain: dict[str, Any] = {
            "spec": os.path.abspath(named.name) if named.kind is Kind.PATH else named.name,
            "model": self.model,
            "loader": self.loader,
            "device": self.device,
            "dtype": self.dtype,
        }
        paths = {"data": self.data, "tokenizer": self.tokenizer, "training_log": self.training_log}
        return plain | {key: None if path is None else os.path.abspath(path) for key, path in paths.items()}

    @property
    def label(self) -> str:
        """A short name of the model, for a folder."""
        named = read_spec(self.spec)
        return Path(named.name).stem if named.kind is Kind.PATH else named.name.rpartition(":")[2]


def make_plan(
    command: str,
    request: Mapping[str, Any] | None,
    cells: Iterable[Cell],
    *,
    seed: int,
    suite: Mapping[str, str] | None,
) -> Plan:
    """The plan of a command, with the SHA-256 of every file that the request names."""
    named = [(request or {}).get(key) for key in ("spec", "data", "tokenizer", "training_log")]
    paths = [path for path in named if path is not None and os.path.isabs(path)]
    return Plan(command, request, suite, digests(paths), seed, tuple(cells), versions())


def make_limits(
    *, cell_seconds: float, load_seconds: float, max_memory: str | None, max_seconds: float | None = None
) -> Limits:
    """Limits as typed; without `max_memory`, 80 % of the memory that is available now."""
    memory = Limits.default_memory() if max_memory is None else parse_size(max_memory)
    return Limits(cell_seconds, load_seconds, inf if max_seconds is None else max_seconds, memory)


def parse_size(text: str) -> float:
    """Bytes from '512MB', '2.5 GB', '2GiB' or '1000000'; UsageError for anything else.

    >>> parse_size("1.5GB")
    1500000000.0
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    if not match or float(match[1]) == 0:
        raise UsageError(f"--max-memory {text}: expected a size above 0 like 800MB or 2GB")
    return float(match[1]) * (1024 if match[3] else 1000) ** POWERS[match[2]]
