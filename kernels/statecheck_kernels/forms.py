"""Which forms there are, which of them can be used here, and which one a call gets.

A CUDA tensor gets `triton` where that can be imported, a CPU tensor gets `cpu` where the compiled library loads, and
all else gets `chunked`. The environment variable STATECHECK_KERNELS_FORM names one form for all calls of a process that
name none themselves.
"""

import importlib
import importlib.util
import os
import warnings
from functools import cache
from typing import Any, cast

import torch

from statecheck_kernels.contract import Form

VARIABLE = "STATECHECK_KERNELS_FORM"
FORMS = ("reference", "chunked", "cpu", "triton")
_MODULES = {"triton": "triton_form"}  # the others are named as their module


def choose(device: torch.device, form: str | None = None) -> str:
    """The form that a call with tensors on `device` gets; `form` is what the caller named.

    Raises ValueError, with what there is, where the named form (or the environment's) is unknown or can't be used.

    >>> choose(torch.device("cpu"), "chunked")
    'chunked'
    >>> choose(torch.device("cpu"), "fast")
    Traceback (most recent call last):
    ValueError: form is 'fast', expected one of reference, chunked, cpu, triton
    """
    named = form if form is not None else os.environ.get(VARIABLE) or None
    if named is None:
        best = {"cuda": "triton", "cpu": "cpu"}.get(device.type, "chunked")
        if reason := why_not(best, device):
            _tell(best, reason)
            return "chunked"
        return best
    source = "form" if form is not None else f"the environment variable {VARIABLE}"
    if named not in FORMS:
        raise ValueError(f"{source} is {named!r}, expected one of {', '.join(FORMS)}")
    if reason := why_not(named, device):
        others = ", ".join(name for name in FORMS if not why_not(name, device))
        raise ValueError(f"{source} is {named!r}, which can't run here: {reason}; these can: {others}")
    return named


@cache
def _tell(best: str, reason: str) -> None:
    """Say once that the slower form does the work, and why."""
    warnings.warn(
        f"statecheck_kernels runs its pure-torch form, which is slower, as {best!r} can't be used: {reason}",
        RuntimeWarning,
        stacklevel=5,  # whoever called wkv6, ssd, ...
    )


def load(name: str) -> Form:
    """The module of a form; ImportError where its package is absent."""
    return cast(Form, importlib.import_module(f"statecheck_kernels.{_MODULES.get(name, name)}"))


def why_not(name: str, device: torch.device) -> str | None:
    """Why form `name` can't run on tensors of `device`, None if it can."""
    if name == "cpu":
        return _cpu_missing() or (None if device.type == "cpu" else f"it takes CPU tensors, these are on {device}")
    if name == "triton":
        return _triton_missing() or (
            None if _triton_runs_on(device) else f"it takes CUDA tensors, these are on {device}"
        )
    return None


def describe() -> list[tuple[str, bool, str]]:
    """(form, usable, reason or detail) of every form, for a person who wants to know why one runs or not.

    >>> [name for name, usable, detail in describe()]
    ['reference', 'chunked', 'cpu', 'triton']
    """
    cpu = _cpu_missing()
    return [
        ("reference", True, "the recurrences step by step, for comparison"),
        ("chunked", True, "pure torch, any device"),
        ("cpu", cpu is None, cpu or f"compiled library, vectors of {_instruction_set()}, CPU tensors"),
        _describe_triton(),
    ]


def backend(form: str) -> str:
    """What computed, for a report: the form of a :class:`Scan`, with the instruction set where it is compiled.

    >>> backend("chunked")
    'statecheck_kernels chunked'
    """
    return f"statecheck_kernels {form}" + (f" ({_instruction_set()})" if form == "cpu" else "")


def _instruction_set() -> str:
    return str(importlib.import_module("statecheck_kernels.cpu").instruction_set())


def _describe_triton() -> tuple[str, bool, str]:
    if missing := _triton_missing():
        return "triton", False, missing
    if _triton_form().interpreted():
        return "triton", True, "interpreted on the CPU (TRITON_INTERPRET is set): right, and very slow"
    return "triton", True, f"GPU kernels, on {torch.cuda.get_device_name()}"


def _cpu_missing() -> str | None:
    """Why the compiled library is not there, None if it is."""
    if not _has("statecheck_kernels.cpu"):
        return "this installation has no package statecheck_kernels.cpu"
    library = importlib.import_module("statecheck_kernels.cpu")
    return None if library.available() else str(library.reason())


@cache
def _has(package: str) -> bool:
    """True if the package is there with its `__init__`: a folder of leftovers does not count. Looked for once."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _triton_missing() -> str | None:
    """Why triton's kernels can't run here, on any device; None if they can."""
    if not _has("statecheck_kernels.triton_form"):
        return "this installation has no package statecheck_kernels.triton_form"
    return _triton_form().reason() or None


def _triton_runs_on(device: torch.device) -> bool:
    return device.type == "cuda" or (device.type == "cpu" and bool(_triton_form().interpreted()))


def _triton_form() -> Any:
    return importlib.import_module("statecheck_kernels.triton_form")  # imports no triton
