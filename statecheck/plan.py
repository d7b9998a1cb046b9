"""The plan of a run: what is asked, of which model, on which data, as a value that can be written down and compared.

A run is a list of cells. A worker process executes them one by one; the results of all cells are the run.

>>> plan = Plan("run", {"spec": "reference"}, None, {}, 0, (Cell("S0"), Cell("D1")), {"statecheck": "0.1.0"})
>>> Plan.from_json(plan.to_json()) == plan
True
>>> import dataclasses
>>> plan.differences(dataclasses.replace(plan, seed=7))
['seed: 0 there, 7 now']
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any
from urllib.parse import quote

from statecheck.errors import UsageError

FORMAT = "statecheck run 1"
#: A folder with more files than this is a home directory, not a checkpoint or a set of documents.
MOST_FILES = 5000
PACKAGES = ("statecheck", "torch", "numpy")


@dataclass(frozen=True)
class Cell:
    """The smallest piece of work. `kind` names the function that a worker runs, `options` go to it as they are."""

    id: str
    kind: str = "item"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """Where its result is kept: the id, with everything quoted that a file name can't hold.

        >>> Cell("mine/probe").file_name
        'mine%2Fprobe.json'
        """
        return quote(self.id, safe="") + ".json"


@dataclass(frozen=True)
class Plan:
    """All that decides the numbers of a run; limits of time and memory are no part of it.

    `request` says what MODEL and its data are (None: no model is loaded), `suite` holds name, digest and text,
    `files` the SHA-256 of every file and folder that was named.
    """

    command: str
    request: Mapping[str, Any] | None
    suite: Mapping[str, str] | None
    files: Mapping[str, str]
    seed: int
    cells: tuple[Cell, ...]
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `plan.json` holds it."""
        return {
            "format": FORMAT,
            "command": self.command,
            "request": self.request,
            "suite": self.suite,
            "files": dict(self.files),
            "seed": self.seed,
            "cells": [{"id": cell.id, "kind": cell.kind, "options": dict(cell.options)} for cell in self.cells],
            "versions": dict(self.versions),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_json`; KeyError or TypeError for anything else."""
        cells = tuple(Cell(row["id"], row["kind"], row["options"]) for row in data["cells"])
        parts = {key: data[key] for key in ("command", "request", "suite", "files", "seed", "versions")}
        return Plan(cells=cells, **parts)

    def cell(self, id: str) -> Cell:
        """The cell with this id; KeyError if there is none."""
        return {cell.id: cell for cell in self.cells}[id]

    def differences(self, other: Plan) -> list[str]:
        """What is otherwise in `other`, a line each; empty if the two are the same plan."""
        if self == other:
            return []
        lines = list(_changed("", {"command": self.command, "seed": self.seed}, vars(other)))
        lines += _changed("", self.request or {}, other.request or {})
        if self.suite != other.suite:
            names = [(plan.suite or {}).get("name", "none") for plan in (self, other)]
            lines.append(f"suite: {names[0]} there, {names[1]} now" if names[0] != names[1] else "the suite's text")
        lines += [
            f"the content of {path}"
            for path in sorted({*self.files} & {*other.files})
            if self.files[path] != other.files[path]
        ]
        lines += _changed("version of ", self.versions, other.versions)
        ids = [", ".join(cell.id for cell in plan.cells) for plan in (self, other)]
        if ids[0] != ids[1]:
            lines.append(f"items: {ids[0]} there, {ids[1]} now")
        there, now = self._options(), other._options()
        lines += _changed("", dict.fromkeys(now) | there, now)
        return lines or ["options of the cells"]

    def _options(self) -> dict[str, Any]:
        return {name: value for cell in self.cells for name, value in cell.options.items()}


def _changed(label: str, there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in there:
        if there[key] != now.get(key):
            yield f"{label}{key}: {_plain(there[key])} there, {_plain(now.get(key))} now"


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on, without importing them."""
    found = {"python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def digests(paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file or folder that exists, by path. What can't be read is left to the loader to refuse."""
    return {path: digest(Path(path)) for path in paths if os.path.lexists(path)}


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder.

    Raises :class:`UsageError` for a folder of more than 5,000 files.
    """
    if not path.is_dir():
        return _file_digest(path)
    files = sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    if len(files) > MOST_FILES:
        raise UsageError(f"{path} holds {len(files)} files, expected at most {MOST_FILES}: name the folder itself")
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(path)}\0{_file_digest(file)}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _file_digest(path: Path) -> str:
    if not path.is_file():
        return "not a regular file"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"
