"""config.json of a checkpoint folder: which registered model the weights belong to, and what goes with them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from statecheck.checkpoint.files import inside, read_json, refusal
from statecheck.wording import one_line

CONFIG = "config.json"
Patterns = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class FolderConfig:
    """What config.json says. Files are inside the folder; patterns are those of :func:`statecheck.wrap`."""

    path: Path
    model: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    training_length: int | None = None
    tokenizer: Path | None = None
    training_log: Path | None = None
    components: Patterns | None = None
    parameters: Patterns | None = None
    modules: Patterns | None = None
    selective: bool | Mapping[str, bool] | None = None
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # pattern -> fields of StateFacts
    signals: Mapping[str, str] = field(default_factory=dict)  # pattern -> kind of a signal


KEYS = tuple(one.name for one in fields(FolderConfig) if one.name != "path")


def read_config(folder: Path) -> FolderConfig:
    """Read and check `folder`/config.json.

    A file without the key "model" was written by another library: it names no registered model, and nothing else in it
    is read. Raises :class:`statecheck.errors.CheckpointRefused` for an unknown key, a value of the wrong type, and a
    file that lies outside the folder.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "config.json").write_text('{"model": "reference", "training_length": 512}')
    46
    >>> read_config(folder).training_length
    512
    """
    path = inside(folder, CONFIG, folder)
    data = read_json(path)
    if "model" not in data:
        return FolderConfig(path)
    for key in data:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(KEYS)}"
            raise refusal(path, f"unknown key {one_line(key, 60)!r}", remedy)
    return FolderConfig(
        path=path,
        model=_typed(path, data, "model", str),
        config=_typed(path, data, "config", dict) or {},
        training_length=_length(path, data),
        tokenizer=_file(folder, path, data, "tokenizer"),
        training_log=_file(folder, path, data, "training_log"),
        components=_patterns(path, data, "components"),
        parameters=_patterns(path, data, "parameters"),
        modules=_patterns(path, data, "modules"),
        selective=_selective(path, data),
        states=_states(path, data),
        signals=_signals(path, data),
    )


_NAMES = {str: "a string", dict: "an object", int: "a whole number"}


def _typed(path: Path, data: Mapping[str, Any], key: str, kind: type) -> Any:
    value = data.get(key)
    if value is not None and type(value) is not kind:
        raise refusal(path, f"{key!r} is {one_line(value, 60)}", f"it should be {_NAMES[kind]}")
    return value


def _length(path: Path, data: Mapping[str, Any]) -> int | None:
    value: int | None = _typed(path, data, "training_length", int)
    if value is not None and value < 1:
        raise refusal(path, f"'training_length' is {value}", "it should be at least 1 token")
    return value


def _selective(path: Path, data: Mapping[str, Any]) -> bool | Mapping[str, bool] | None:
    """true or false for all components, or COMPONENT -> true or false."""
    value = data.get("selective")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, dict) and all(isinstance(one, bool) for one in value.values()):
        return value
    raise refusal(
        path, f"'selective' is {one_line(value, 60)}", "it should be true, false, or COMPONENT: true or false"
    )


def _states(path: Path, data: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """PATTERN -> what is said of the states that it names; `wrap` knows which fields there are."""
    table: Mapping[str, Any] = _typed(path, data, "states", dict) or {}
    for pattern, said in table.items():
        if not isinstance(said, dict):
            found = f"states.{one_line(pattern, 60)} is {one_line(said, 60)}"
            raise refusal(path, found, 'it should be an object of fields, as {"kind": "matrix", "head_axis": 1}')
    return table


def _signals(path: Path, data: Mapping[str, Any]) -> Mapping[str, str]:
    """PATTERN -> kind of the signals that it names."""
    table: Mapping[str, Any] = _typed(path, data, "signals", dict) or {}
    for pattern, kind in table.items():
        if not isinstance(kind, str):
            raise refusal(path, f"signals.{one_line(pattern, 60)} is {one_line(kind, 60)}", 'it should be "gate", say')
    return table


def _file(folder: Path, path: Path, data: Mapping[str, Any], key: str) -> Path | None:
    name = _typed(path, data, key, str)
    if name is None:
        return None
    found = inside(folder, name, path)
    if not os.path.isfile(found):
        raise refusal(path, f"{key!r} names {one_line(name, 120)!r}, which is no file there", "copy it or drop the key")
    return found


def _patterns(path: Path, data: Mapping[str, Any], key: str) -> Patterns | None:
    """NAME -> pattern or list of patterns, as tuples."""
    table = _typed(path, data, key, dict)
    if table is None:
        return None
    lists = {name: [value] if isinstance(value, str) else value for name, value in table.items()}
    for name, value in lists.items():
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            found = f"{key}.{one_line(name, 60)} is {one_line(value, 60)}"
            raise refusal(path, found, "it should be a pattern or a list of patterns")
    return {name: tuple(value) for name, value in lists.items()}
