#!/usr/bin/env bash
# `make demo`: check the bundled model on its bundled text and say where the report is.
# The verdict is information: whatever it is, the demo succeeds. It fails when no whole report came out.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
out=statecheck-runs/demo

run() {
    code=0
    "$bin/statecheck" run --out "$out" "$@" || code=$?
}

mkdir -p statecheck-runs
run "$@"
if [ "$code" = 2 ] && [ -e "$out/plan.json" ]; then
    echo "$out holds a run of another plan (other weights, suite or version): starting over"
    run --fresh "$@"
fi

"$bin/python" - "$code" "$out" <<'PYTHON'
import json
import sys
from pathlib import Path

code, out = int(sys.argv[1]), Path(sys.argv[2])
MEANINGS = {0: "the gate passed", 1: "the gate failed", 3: "neither passed nor failed, as a check came out in between or could not be judged"}


def fail(reason: str) -> None:
    sys.exit(f"demo: exit code {code}: {reason}")


if code not in MEANINGS:
    fail("the run did not come to a verdict (see the line above)")
try:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
except (OSError, ValueError) as error:
    fail(f"no whole report in {out} ({error})")
if report["exit_code"] != code:
    fail(f"the report in {out} says {report['exit_code']}")
if errors := [item["id"] for item in report["items"] if item["status"] == "ERROR"]:
    fail(f"statecheck or the machine failed in {', '.join(errors)}: see the reasons above")
gate = out / f"VALIDATION_GATE_{report['verdict']}.md"
print(f"""
The demo is done. The verdict is {report["verdict"]}: {MEANINGS[code]} (exit code {code} of `statecheck run`).
  the decision:  {gate}
  the report:    {out / "statefulness_report.md"}
  its data:      {out / "report.json"}""")
PYTHON
