"""One model of a survey: built, looked at, and run through the laws. A worker does this for the names it is sent."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

#: Laws of the quick profile: what a cache can get wrong. The others look at gradients, numbers and files.
QUICK = (
    *("STEP", "CHUNK", "PREFIX", "BATCH", "PADL", "PADR", "RESET", "FORK", "ALIAS", "REORDER", "CROP", "PARITY"),
    "DETERM",
)
QUICK_EXAMPLES = 12
CACHES_ALONE = {"kv", "mask", "position", "flag"}  # kinds of states of a model without a recurrent part


def surveyed(library: str, name: str, *, profile: str, folder: Path, seed: int = 0) -> dict[str, Any]:
    """What the laws say of one model, as plain data; its report, and a script for each broken law, go into `folder`.

    `profile` quick: models with keys alone get a short run. A model that can't be built or looked at says why under
    `reason`; `seconds` are of the processor.
    """
    from statecheck.adapters import wrap
    from statecheck.laws.contract import WORTH
    from statecheck.probes.contract import Effort
    from statecheck.report.violations import FLOOR
    from statecheck.surveys.libraries import made
    from statecheck.testing import check_model

    began = time.process_time()
    row: dict[str, Any] = {"model": name, "reason": "", "kinds": [], "recurrent": False, "laws": []}
    try:
        module, told = made(library, name, seed)
        row["class"] = type(module).__name__
    except Exception as error:
        return row | {"stage": "not built", "reason": _line(error), "seconds": _since(began)}
    try:
        model = wrap(module, **told)
    except Exception as error:
        return row | {"stage": "not observed", "reason": _line(error), "seconds": _since(began)}
    kinds = {state.kind.value for state in model.facts.states.values()}
    recurrent = bool(kinds - CACHES_ALONE)
    short = profile == "quick" and not recurrent
    report = check_model(
        model,
        suite="conformance",
        only=QUICK if short else (),
        seed=seed,
        examples=QUICK_EXAMPLES if short else Effort.examples,
        out=folder,
    )
    laws = [{"id": v.id, "status": str(v.status), "reason": v.reason} for v in report.verdicts]
    floors = [m.value for v in report.verdicts for m in v.shown if m.name == FLOOR]
    found = {"kinds": sorted(kinds), "recurrent": recurrent, "laws": laws, "verdict": report.verdict}
    found["bar"] = WORTH * max(floors, default=0.0)
    return row | found | {"stage": "run", "seconds": _since(began)}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _since(began: float) -> float:
    return round(time.process_time() - began, 1)


def main() -> None:
    """Serve: LIBRARY list prints the names; else names come on standard input, a line of JSON goes out for each.

    The other arguments are then the profile, and the folder in which each model has one of its own.
    """
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # what models print is not an answer
    import torch

    from statecheck.surveys.libraries import models, release

    torch.set_num_threads(1)
    library, profile, *folder = sys.argv[1:]
    if library == "transformers":
        import transformers

        transformers.logging.set_verbosity_error()
    if profile == "list":
        about = {"release": release(library), "torch": torch.__version__, "models": models(library)}
        print(json.dumps(about), file=answers, flush=True)
        return
    for name in map(str.strip, sys.stdin):
        row = surveyed(library, name, profile=profile, folder=Path(folder[0]) / name)
        print(json.dumps(row), file=answers, flush=True)


if __name__ == "__main__":
    main()
