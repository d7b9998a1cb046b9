"""The libraries that a survey knows: which models they have, and a tiny one of each."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from statecheck.errors import InputRefused, UsageError
from statecheck.surveys.causal import build, causal_models
from statecheck.surveys.recurrent import MAKERS


def release(library: str) -> str:
    """The release that is installed. Raises :class:`InputRefused` where none is."""
    try:
        return version(library)
    except PackageNotFoundError:
        raise InputRefused(f"no {library} to survey: pip install {library}") from None


def models(library: str) -> list[str]:
    """The names of its models."""
    return list(causal_models() if library == "transformers" else MAKERS[library])


def made(library: str, name: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """A tiny model with random weights, and what `wrap` must be told of it. Raises what the library raises."""
    if name not in models(library):
        raise UsageError(f"{library} {release(library)} has no model {name}")
    if library == "transformers":
        return build(*causal_models()[name], seed=seed), {}
    module, told = MAKERS[library][name](seed)
    return module, told
