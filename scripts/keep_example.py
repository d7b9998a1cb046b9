"""Keep the files of a finished run as the example report: docs/example/.

    make demo && python scripts/keep_example.py

The example is what README.md, docs/items/ and docs/images/ quote, so that every quoted number is of one run.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN, EXAMPLE = ROOT / "statecheck-runs/demo", ROOT / "docs/example"


def main() -> None:
    """Copy what people read and the data that it is made of."""
    gates = sorted(RUN.glob("VALIDATION_GATE_*.md"))
    if not gates:
        sys.exit(f"no finished run in {RUN}: run `make demo`")
    shutil.rmtree(EXAMPLE, ignore_errors=True)
    shutil.copytree(RUN / "images", EXAMPLE / "images")
    for path in (*gates, RUN / "statefulness_report.md", RUN / "report.json"):
        said = path.read_text("utf-8")  # with paths inside this checkout, wherever it lies
        (EXAMPLE / path.name).write_text(said.replace(f"{ROOT}/", ""), "utf-8")
    print(*sorted(path.relative_to(ROOT) for path in EXAMPLE.rglob("*.*")), sep="\n")


if __name__ == "__main__":
    main()
