#!/usr/bin/env bash
# Build the source distribution, the wheel from it, and prove that the wheel works from another directory.
# The fresh environment borrows the dependencies of .venv (a path file), so that torch is not installed twice;
# statecheck itself comes from the wheel alone, which is asserted.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH STATECHECK_KERNELS_FORM
bin=$(cd "${VENV:-.venv}/bin" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

rm -rf build
"$bin/python" -m build --outdir "$scratch/dist" . >"$scratch/build.log" 2>&1 || { tail -30 "$scratch/build.log" >&2; exit 1; }
rm -rf build
wheel=$(echo "$scratch"/dist/*.whl)
"$bin/python" scripts/wheel_contents.py "$wheel"

"$bin/python" -m venv "$scratch/venv"
fresh=$scratch/venv/bin
"$fresh/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$wheel"
dependencies=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
own=$("$fresh/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
echo "$dependencies" >"$own/dependencies.pth"

mkdir "$scratch/elsewhere"
cd "$scratch/elsewhere"
"$fresh/python" - "$scratch/venv" <<'PYTHON'
import sys

import statecheck
import statecheck_kernels
import statecheck_reference

for package in (statecheck, statecheck_kernels, statecheck_reference):
    assert package.__file__.startswith(sys.argv[1]), f"{package.__name__} comes from {package.__file__}"
print(f"statecheck {statecheck.__version__}, statecheck_kernels and statecheck_reference are those of the wheel")
PYTHON
"$fresh/python" - "$wheel" <<'PYTHON'
import sys

import torch
from statecheck_kernels import cpu, wkv6

x = torch.ones(1, 3, 2, 4)
form = wkv6(x, x, x, -x, torch.ones(2, 4)).form
expected = "chunked" if sys.argv[1].endswith("-any.whl") else "cpu"
assert form == expected, f"wkv6 ran in the form {form}, expected {expected}: {cpu.reason()}"
print(f"wkv6 runs in the form {form} ({cpu.reason() or cpu.instruction_set()})")
PYTHON
"$fresh/statecheck" ls >ls.txt
grep -q '^  reference  *statecheck_reference.registry:reference$' ls.txt
"$fresh/statecheck" run --suite smoke --out smoke
test -s smoke/VALIDATION_GATE_PASS.md
"$fresh/statecheck-reference" --help >/dev/null
echo "the wheel works from another directory"
