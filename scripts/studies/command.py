"""The two things that a study does: collect its runs into a file of results, and report that file."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch


def collect_or_report(
    name: str,
    answers: str,
    results: Path,
    collect: Callable[[Path], Any],
    report: Callable[[Any], Iterable[str]],
    arguments: list[str] | None = None,
) -> int:
    """The command `python -m studies.NAME collect --work FOLDER` or `... report`; 0, or 2 for runs that can't be read.

    `collect(folder)` gives what is written to `results`, as JSON can hold it, and `report` the lines that are printed.
    """
    parser = argparse.ArgumentParser(prog=f"studies.{name}", description=answers)
    parser.add_argument("what", choices=["collect", "report"])
    parser.add_argument("--work", type=Path, help="where the runs are; `collect` reads them")
    told = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if told.what == "collect":
        if told.work is None:
            parser.error("collect: expected --work FOLDER")
        try:
            found = collect(told.work)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        results.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(report(json.loads(results.read_text()))))
    return 0
