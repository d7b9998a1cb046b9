"""Paste what commands print into the pages that show it: README.md (`run`) and docs/culprits.md (`matrix`).

    make demo && python scripts/paste_outputs.py [run] [matrix]      # all, or only those named
    python scripts/paste_outputs.py --check run                      # exit 1 if a page shows something else

The check leaves numbers out: their last digits depend on the machine. Statuses, places and sentences must be the same.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Mark -> the page, the command as a reader types it, and how it is run here: the report of the demo that is there,
#: the matrix anew.
OUTPUTS = {
    "run": ("README.md", "statecheck run", ("report", "statecheck-runs/demo")),
    "matrix": ("docs/culprits.md", "statecheck calibrate", ("calibrate", "--fresh")),
}
NUMBER = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?")


def main() -> int:
    """Run the commands and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *OUTPUTS], help="marks; all if left out")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    options = parser.parse_args()
    stale = [name for name in options.names or OUTPUTS if not paste(name, check=options.check)]
    for name in stale:
        print(f"{OUTPUTS[name][0]} does not show what `{OUTPUTS[name][1]}` prints: run scripts/paste_outputs.py {name}")
    return 1 if stale else 0


def paste(name: str, *, check: bool) -> bool:
    """Bring one page up to date; True if it is (numbers apart, when it is only checked)."""
    path, shown, arguments = ROOT / OUTPUTS[name][0], *OUTPUTS[name][1:]
    command = [sys.executable, "-m", "statecheck", *arguments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # the culprits are small: threads only wait for each other
    done = subprocess.run(command, cwd=ROOT, env=one_thread, stdout=subprocess.PIPE, text=True, check=False)
    lines = "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
    block = f"```text\n$ {shown}\n{lines}\n$ echo $?\n{done.returncode}\n```"
    page = path.read_text("utf-8")
    begin, end = f"<!-- BEGIN {name}: written by `python scripts/paste_outputs.py` -->", f"<!-- END {name} -->"
    before, rest = page.split(begin)
    there, after = rest.split(end)
    if check:
        return NUMBER.sub("#", there.strip()) == NUMBER.sub("#", block)
    path.write_text(f"{before}{begin}\n{block}\n{end}{after}", "utf-8")
    return True


if __name__ == "__main__":
    sys.exit(main())
