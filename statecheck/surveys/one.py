"""One model of a survey: built, looked at, and run through the laws. A worker does this for the names it is sent."""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

#: Laws of the quick profile: what a cache can get wrong. The others look at gradients, numbers and files.
QUICK = (
    *("STEP", "CHUNK", "PREFIX", "BATCH", "PADL", "PADR", "RESET", "FORK", "ALIAS", "REORDER", "CROP", "PARITY"),
    "DETERM",
)
QUICK_EXAMPLES = 12
CACHES_ALONE = {"kv", "mask", "position", "flag"}  # kinds of states of a model without a recurrent part


def surveyed(name: str, *, profile: str, seed: int = 0) -> dict[str, Any]:
    """What the laws say of one model, as plain data. `profile` quick: models with keys alone get a short run.

    A model that can't be built or looked at says why under `reason`.
    """
    from statecheck.adapters import wrap
    from statecheck.probes.contract import Effort
    from statecheck.surveys.causal import build, causal_models
    from statecheck.testing import check_model

    began = time.monotonic()
    row: dict[str, Any] = {"model": name, "reason": "", "kinds": [], "recurrent": False, "laws": []}
    try:
        config_class, model_class = causal_models()[name]
        row["class"] = model_class.__name__
        module = build(config_class, model_class, seed=seed)
    except Exception as error:
        return row | {"stage": "not built", "reason": _line(error), "seconds": _since(began)}
    try:
        model = wrap(module)
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
    )
    laws = [{"id": v.id, "status": str(v.status), "reason": v.reason} for v in report.verdicts]
    found = {"kinds": sorted(kinds), "recurrent": recurrent, "laws": laws, "verdict": report.verdict}
    return row | found | {"stage": "run", "seconds": _since(began)}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def main() -> None:
    """Serve: `list` prints the names; otherwise names come on standard input, a line of JSON goes out for each."""
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # what models print is not an answer
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if sys.argv[1] == "list":
        from statecheck.surveys.causal import causal_models

        about = {"release": transformers.__version__, "torch": torch.__version__, "models": list(causal_models())}
        print(json.dumps(about), file=answers, flush=True)
        return
    for line in sys.stdin:
        print(json.dumps(surveyed(line.strip(), profile=sys.argv[1])), file=answers, flush=True)


if __name__ == "__main__":
    main()
