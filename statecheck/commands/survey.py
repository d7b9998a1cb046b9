"""`statecheck survey`: the laws on every model of an installed library, as a table with its evidence."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from statecheck.atomic import atomic_write_text
from statecheck.catalogue import suggest
from statecheck.errors import UsageError
from statecheck.surveys.running import LIBRARIES, confirm, installed, run
from statecheck.surveys.tables import page


def survey(library: str, *, profile: str, only: Sequence[str], out: Path, jobs: int, limit: float) -> int:
    """Survey `library` into the folder `out`: survey.md, survey.json and a file a model. Resumes where it was left.

    Exit code 0 when it has run, whatever it found: a survey is no gate.
    """
    if library not in LIBRARIES:
        raise UsageError(f"no survey of {library!r}{suggest(library, LIBRARIES)}")
    if profile not in ("quick", "full"):
        raise UsageError(f"--profile {profile}: expected quick or full")
    about = {**installed(library), "library": library, "profile": profile, "jobs": jobs}
    names = _chosen(about.pop("models"), only)
    began = time.monotonic()
    folder = out / f"{library}-{about['release']}-{profile}"
    done = 0

    def show(row: Mapping[str, Any]) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{len(names)}] {_told(row)}", file=sys.stderr, flush=True)

    rows = run(library, names, folder, profile=profile, jobs=jobs, limit=limit, show=show)
    confirm(rows, folder)
    about["minutes"] = (time.monotonic() - began) / 60
    atomic_write_text(folder / "survey.md", page(rows, about))
    atomic_write_text(folder / "survey.json", json.dumps({**about, "rows": rows}, indent=1, allow_nan=False) + "\n")
    print(_summary(rows))
    print(folder / "survey.md")
    return 0


def _chosen(known: Sequence[str], only: Sequence[str]) -> list[str]:
    for name in only:
        if name not in known:
            raise UsageError(f"--only {name}: not a model of this release{suggest(name, known)}")
    return [name for name in known if name in only] if only else list(known)


def _told(row: Mapping[str, Any]) -> str:
    if row["stage"] != "run":
        return f"{row['model']}: {row['stage']}: {row['reason'][:100]}"
    broken = [law["id"] for law in row["laws"] if law["status"] == "FAIL"]
    return f"{row['model']}: {row['seconds']:.0f} s, {'broken: ' + ', '.join(broken) if broken else 'no law broken'}"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    stages = Counter(row["stage"] for row in rows)
    broken = sum(any(law["status"] == "FAIL" for law in row["laws"]) for row in rows)
    counted = ", ".join(f"{number} {stage}" for stage, number in stages.items())
    return f"{len(rows)} models: {counted}; a law is broken in {broken}"
