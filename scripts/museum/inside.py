"""What runs in the environment of a release: plain confirmations and laws of one family, a JSON file an exhibit.

python -m museum.inside transformers==4.44.0 mamba2 OUT all 1-mamba2 4-mamba2
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from museum.catalogue import EXHIBITS, Exhibit

Record = dict[str, Any]


def main(release: str, family: str, out: Path, laws: str, ids: list[str]) -> None:
    """Write OUT/EXHIBIT@RELEASE.json for each of `ids`; `laws`: "none", "own" (those of the exhibits) or "all"."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
    warnings.filterwarnings("ignore")
    chosen = [exhibit for exhibit in EXHIBITS if exhibit.id in ids and release in dict(exhibit.releases())]
    found = {exhibit.id: confirmed(exhibit, release) for exhibit in chosen}
    only = sorted({exhibit.law for exhibit in chosen}) if laws == "own" else []
    said = None if laws == "none" else judged(release, family, only)
    for id, record in found.items():
        path = out / f"{id}@{release}.json"
        path.write_text(json.dumps(record | {"laws": said}, indent=1) + "\n")


def confirmed(exhibit: Exhibit, release: str) -> Record:
    """The plain confirmation: the error, what was compared, and what was raised."""
    import torch

    plain = _library(release)
    record: Record = {
        **exhibit._asdict(),
        "id": exhibit.id,
        "release": release,
        "has": dict(exhibit.releases())[release],
    }
    try:
        with torch.no_grad() if release.startswith("transformers") else nullcontext():
            error, compared = plain.CONFIRMATIONS[exhibit.confirmation](_built(release, exhibit.family))
    except Exception as raised:
        error, compared = float("inf"), f"raises {type(raised).__name__}: {str(raised)[:200]}"
    return record | {"error": error, "compared": compared}


def judged(release: str, family: str, only: list[str]) -> Record:
    """What statecheck says: status, reason and measurements of each law, or why the model could not be wrapped.

    `only`: of these laws; of all if it is empty.
    """
    import statecheck as sc

    start = time.perf_counter()
    try:
        model = sc.wrap(_built(release, family), width=_library(release).WIDTH)
        report = sc.check_model(model, suite="conformance", seed=0, only=only)
    except Exception as raised:
        return {"refused": f"{type(raised).__name__}: {raised}", "only": only}
    items = {
        row.id: {
            "status": row.status.value,
            "reason": row.reason,
            "measured": {m.name: m.value for m in row.measurements},
            "notes": [m.note for m in row.measurements if m.note],
        }
        for row in report
    }
    return {"items": items, "only": only, "seconds": round(time.perf_counter() - start, 1)}


def _library(release: str) -> ModuleType:
    if release.startswith("keras"):
        from museum import plain_keras

        return plain_keras
    from museum import plain_transformers

    return plain_transformers


def _built(release: str, family: str) -> Any:
    if release.startswith("keras"):
        return _library(release).build(family)
    from museum.families import build

    return build(family)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], sys.argv[5:])
