"""What a user calls MODEL: a registered name, a path, or package.module:factory. Reads names alone and imports nothing.

The same word can be a registered name and something in the working directory. A registered name means the registered
model wherever one stands, unless a checkpoint of that name lies there: then the word is refused as ambiguous, since
judging the wrong model would be the one error that nobody notices. `./NAME` always means the path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from statecheck.catalogue import model_entry_points, suggest
from statecheck.errors import UsageError
from statecheck.wording import one_line

DEFAULT = "reference"
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
CHECKPOINT_FILES = ("model.safetensors", "model.safetensors.index.json")
_CODE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


_SCRIPT = re.compile(r"\.py:[^\W\d]\w*$")


class Kind(Enum):
    """What a word names."""

    REGISTERED = "registered model"
    PATH = "path"
    CODE = "code"


@dataclass(frozen=True)
class Named:
    """A MODEL, read: `name` is the registered name, the path, or "package.module:factory"."""

    kind: Kind
    name: str


def read_spec(spec: str | None, registered: Collection[str] | None = None) -> Named:
    """Tell what `spec` names; None is the registered `reference`. `registered` are the known names (None: look).

    Raises :class:`statecheck.errors.UsageError` for a name that nothing bears, with the nearest one, and for a
    registered name that is also the name of a checkpoint here.

    >>> read_spec("my_package.models:build", [])
    Named(kind=<Kind.CODE: 'code'>, name='my_package.models:build')
    >>> read_spec("runs/step-100.pt", []).kind
    <Kind.PATH: 'path'>
    """
    known = model_entry_points().keys() if registered is None else registered
    if spec is None:
        return Named(Kind.REGISTERED, DEFAULT)
    if not spec.strip():
        raise UsageError("MODEL is an empty word: give a registered name, a checkpoint, or package.module:factory")
    if spec in known:
        return _registered(spec)
    if _SCRIPT.search(spec) and not os.path.lexists(spec):
        raise UsageError(_unknown(spec, known))
    if _is_path(spec):
        return Named(Kind.PATH, spec)
    if _CODE.fullmatch(spec):
        return Named(Kind.CODE, spec)
    raise UsageError(_unknown(spec, known))


def _registered(name: str) -> Named:
    if os.path.isfile(name) or any(os.path.lexists(os.path.join(name, file)) for file in CHECKPOINT_FILES):
        raise UsageError(
            f"{name!r} is a registered model and a checkpoint in this folder: write {os.curdir}{os.sep}{name} for the"
            " checkpoint, or run in another folder for the registered model"
        )
    return Named(Kind.REGISTERED, name)


def _is_path(spec: str) -> bool:
    """Whatever exists, has a separator, or ends like weights: the loader then says what is wrong with it."""
    separators = {os.sep, os.altsep or os.sep}
    return os.path.lexists(spec) or any(s in spec for s in separators) or spec.endswith(WEIGHT_SUFFIXES)


def _unknown(spec: str, known: Collection[str]) -> str:
    said = f"MODEL {one_line(spec, 120)!r} is no registered model, no file or folder, and not package.module:factory"
    module, colon, factory = spec.partition(":")
    if colon and module.endswith(".py"):
        dotted = os.path.normpath(module.removesuffix(".py")).replace(os.sep, ".")
        return f"{said}; did you mean {one_line(dotted, 80)}:{one_line(factory, 80)}?"
    if "." in spec and not colon:
        package, _, attribute = spec.rpartition(".")
        return f"{said}; if it is code, write {one_line(package, 80)}:{one_line(attribute, 80)}"
    return said + (suggest(spec, known) if known else "; no package that registers models is installed")
