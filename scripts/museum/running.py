"""All exhibits, each in the environment of its releases; what is there already is not run again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from museum.catalogue import EXHIBITS, Exhibit
from museum.environments import ROOT, prepare

Job = tuple[str, str]  # release, family


def wanted(only: Sequence[str]) -> list[tuple[Exhibit, str]]:
    """Exhibits and their releases; `only` holds ids, families, numbers, laws or releases, any of which may match.

    Raises SystemExit for a word that matches nothing.
    """
    every = [(exhibit, release) for exhibit in EXHIBITS for release, _ in exhibit.releases()]
    for word in only:
        if not any(word in names(*pair) for pair in every):
            raise SystemExit(
                f"nothing is called {word!r}: say an id (1-mamba2), a family, a law or a release; see `ls`"
            )
    return [pair for pair in every if not only or set(only) & names(*pair)]


def names(exhibit: Exhibit, release: str) -> set[str]:
    """All that an exhibit in a release can be called."""
    return {exhibit.id, exhibit.family, str(exhibit.number), exhibit.law, release, release.split("==")[1]}


def run(only: Sequence[str], envs: Path, out: Path, share: Path | None, *, laws: str, limit: float) -> bool:
    """Run what has no result yet, a process for each release and family; False if one of them failed.

    `laws`: "none", "own" (those of the exhibits) or "all"; a result with more of them than asked for is enough.
    """
    out.mkdir(parents=True, exist_ok=True)
    jobs: dict[Job, list[str]] = defaultdict(list)
    for exhibit, release in wanted(only):
        if not _done(out / f"{exhibit.id}@{release}.json", laws):
            jobs[release, exhibit.family].append(exhibit.id)
    good = True
    for n, ((release, family), ids) in enumerate(sorted(jobs.items()), 1):
        start = time.perf_counter()
        error = _run_one(prepare(envs, release, share), release, family, ids, out, laws, limit)
        good = good and not error
        print(f"{n}/{len(jobs)} {release} {family}: {time.perf_counter() - start:.0f} s {error}", flush=True)
    return good


def _done(path: Path, laws: str) -> bool:
    """Whether a result is there, with the laws that are asked for."""
    if not path.exists():
        return False
    said = json.loads(path.read_text())["laws"]
    return laws == "none" or (said is not None and (laws == "own" or not said["only"]))


def _run_one(python: Path, release: str, family: str, ids: Sequence[str], out: Path, laws: str, limit: float) -> str:
    """Why a job failed; "" if it did not."""
    line = [str(python), "-m", "museum.inside", release, family, str(out.resolve()), laws, *ids]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch"}
    try:
        done = subprocess.run(
            line, env=environment, capture_output=True, text=True, timeout=limit, cwd=out, check=False
        )
    except subprocess.TimeoutExpired:
        return f"took more than {limit:.0f} s"
    return "" if not done.returncode else f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
