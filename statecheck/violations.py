"""Each broken law as a folder that shows it: `violations/PADR.native/` with a script that runs, and its inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import torch
from torch import nn

from statecheck.catalogue import ITEMS
from statecheck.errors import StatecheckError, UsageError
from statecheck.histories.operations import Claim
from statecheck.histories.plain_scripts import plain_script
from statecheck.histories.playing import ROUTES
from statecheck.histories.scripts import INPUTS, SCRIPT, write
from statecheck.laws.contract import WORTH, compared, floor_of
from statecheck.naming import Kind, read_spec
from statecheck.noise import copied
from statecheck.protocol import Capability
from statecheck.verdict import Measurement, Outcome
from statecheck.wording import raised

if TYPE_CHECKING:
    from statecheck.plan import Plan
    from statecheck.probes.contract import Evidence

FOLDER, MODEL, WEIGHTS = "violations", "model.pt", "weights"
Recipe = Callable[[], Sequence[str]]
log = logging.getLogger("statecheck")


def write_violations(folder: Path, evidence: Evidence, outcome: Outcome, recipe: Recipe) -> list[Path]:
    """Write a folder below `folder`/violations for each measurement that a case broke; the paths of all files.

    A script is of the library's own calls where its adapter writes them down; else `recipe` gives the lines of it that
    define `model`. What can't be written as a script is left out, with a line
    in the log: the report has the case itself. Raises OSError where the folder can't be written.
    """
    return [path for number in outcome.measurements for path in _write(folder, evidence, number, recipe)]


def clear(folder: Path) -> None:
    """Remove what an earlier report left in `folder`/violations, and nothing else."""
    for pattern in (f"*/{SCRIPT}", f"*/{INPUTS}", MODEL, f"{WEIGHTS}/*"):
        for path in (folder / FOLDER).glob(pattern):
            path.unlink()
            with suppress(OSError):  # not empty
                path.parent.rmdir()


def _write(folder: Path, evidence: Evidence, number: Measurement, recipe: Recipe) -> list[Path]:
    try:
        claim = Claim.parse(number.broken)
    except UsageError:
        return []
    law, _, part = number.name.partition(".")
    route = part if part in ROUTES else "functional" if law == "HONEST" else "native"
    place = folder / FOLDER / quote(number.name, safe="")
    place.mkdir(parents=True, exist_ok=True)
    try:
        apart = _needs_a_copy(evidence, claim, route)
        plain = _plain(place, evidence, claim, route, _law(law), apart=apart)
        lines = [] if plain else recipe()
        return write(place, evidence.model, claim, route, lines, floor_of(evidence).value, apart=apart, plain=plain)
    except OSError:
        raise
    except Exception:
        log.warning("no script for %s: %s", number.name, claim, exc_info=True)
        with suppress(OSError):
            place.rmdir()
        return []


def _plain(place: Path, evidence: Evidence, claim: Claim, route: str, said: str, *, apart: bool) -> str:
    """The claim as a script of the library's own calls that shows that it is broken; "" where there is none.

    Of a model with random weights if that breaks it too: such a script needs no file.
    """
    if route != "native":
        return ""
    for weights in (None, place.parent / WEIGHTS):
        try:
            text, shown = plain_script(evidence.model, claim, weights, said=said, apart=apart)
        except StatecheckError as error:
            log.debug("no script of the library's own calls: %s", error)
            continue
        if shown.error > WORTH * floor_of(evidence).value:
            return text
    return ""


def _law(id: str) -> str:
    return f"{id}: {ITEMS[id].title}" if id in ITEMS else id


def _needs_a_copy(evidence: Evidence, claim: Claim, route: str) -> bool:
    """True if the claim is broken only where what is found is played on a copy that never read: by what outlives a
    reset, say."""
    if Capability.REBUILD not in evidence.facts.capabilities:
        return False
    with suppress(StatecheckError):
        return compared(evidence, claim, route).error <= WORTH * floor_of(evidence).value
    return False  # the model raises, as it did in the search


def recipe_of_plan(plan: Plan, evidence: Evidence, working_directory: str) -> list[str]:
    """Lines that make the model that a plan names, wherever the script is run."""
    request = dict(plan.request or {})
    named = read_spec(request.get("spec"))
    options = {key: request[key] for key in ("model", "loader", "device", "dtype") if request.get(key)}
    plain = {key: value for key, value in options.items() if (key, value) != ("device", "cpu")}
    seeded = f"torch.manual_seed({plan.seed})"
    path = ["import sys", f"sys.path.append({working_directory!r})"]
    if named.kind is Kind.CODE and not plain:
        module, _, factory = named.name.partition(":")
        made = [f"from {module} import {factory}", seeded, f"model = sc.wrap({factory}())"]
        return [*path, *made, *_evaluating(evidence)]
    asked = ", ".join([repr(named.name), *(f"{key}={value!r}" for key, value in plain.items())])
    needed = path if named.kind is Kind.CODE or "loader" in plain else []
    made = ["from statecheck.resolve import Request, resolve", seeded, f"model = resolve(Request({asked})).model"]
    return [*needed, *made, *_evaluating(evidence)]


def recipe_of_object(folder: Path, evidence: Evidence) -> list[str]:
    """Lines that load the model, which is saved beside the folders of violations.

    A model that can't be pickled (of a class in a function, say) is left to the reader.
    """
    file = folder / FOLDER / MODEL
    file.parent.mkdir(parents=True, exist_ok=True)
    loaded = f'torch.load("../{MODEL}", weights_only=False)'
    twin, why = copied(evidence.model), "it can't be copied"
    if any(type(part).__module__ == "__main__" for part in _modules(twin)):
        twin, why = None, "a class of it is defined in the script that was run"
    for kept, line in ((twin, loaded), (getattr(twin, "module", None), f"sc.wrap({loaded})")):
        if kept is None:
            continue
        try:
            torch.save(kept, file)
        except OSError:
            raise
        except Exception as error:
            why = f"it can't be saved ({raised(error)})"
            continue
        return [f"model = {line}", *_evaluating(evidence)]
    file.unlink(missing_ok=True)
    named = type(getattr(evidence.model, "module", evidence.model)).__name__
    return [f"model = sc.wrap({named}(...))  # build your model here: {why}", *_evaluating(evidence)]


def _modules(model: object) -> list[nn.Module]:
    module = getattr(model, "module", None)
    return list(module.modules()) if isinstance(module, nn.Module) else []


def _evaluating(evidence: Evidence) -> list[str]:
    """Laws are held in evaluation mode."""
    return ["model.module.eval()"] if isinstance(getattr(evidence.model, "module", None), nn.Module) else []
