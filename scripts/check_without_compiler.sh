#!/usr/bin/env bash
# Install from source where there is no C++ compiler: it succeeds, says nothing, and the kernels run in pure torch and
# say why. The fresh environment borrows the dependencies of .venv (a path file), as in check_wheel.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH CC CXX STATECHECK_KERNELS_FORM
bin=$(cd "${VENV:-.venv}/bin" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

mkdir "$scratch/source" "$scratch/bin" "$scratch/elsewhere"
cp -r pyproject.toml setup.py README.md LICENSE statecheck reference_models kernels "$scratch/source"
find "$scratch/source" -name '*.so' -delete
"$bin/python" -m venv "$scratch/venv"
fresh=$scratch/venv/bin
dependencies=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
own=$("$fresh/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')

for tool in env uname; do ln -s "$(command -v $tool)" "$scratch/bin/$tool"; done
cd "$scratch/elsewhere"
without_compiler() { PATH=$scratch/bin "$@"; }
without_compiler "$fresh/python" - <<'PYTHON'
import shutil
import sysconfig

names = {"c++", "g++", "gcc", "cc", "clang", "clang++", *filter(None, sysconfig.get_config_vars("CC", "CXX"))}
if found := [path for name in sorted(names) if (path := shutil.which(name.split()[0]))]:
    raise SystemExit(f"this check needs a place without a compiler, and {', '.join(found)} can be called")
PYTHON
said=$(without_compiler "$fresh/python" -m pip install --quiet --disable-pip-version-check --no-deps "$scratch/source" 2>&1)
[ -z "$said" ] || { printf 'the installation is not silent:\n%s\n' "$said" >&2; exit 1; }
echo "$dependencies" >"$own/dependencies.pth"

without_compiler "$fresh/python" - "$scratch/venv" <<'PYTHON'
import sys

import statecheck_kernels
import torch
from statecheck_kernels import cpu, wkv6

assert statecheck_kernels.__file__.startswith(sys.argv[1]), statecheck_kernels.__file__
x = torch.ones(1, 3, 2, 4)
form = wkv6(x, x, x, -x, torch.ones(2, 4)).form
assert form == "chunked", f"wkv6 ran in the form {form}, expected chunked"
assert "C++ compiler" in cpu.reason(), cpu.reason()
print(f"wkv6 runs in the form {form}: {cpu.reason()}")
PYTHON
without_compiler "$fresh/statecheck" doctor >doctor.txt || { cat doctor.txt >&2; exit 1; }
echo "an installation without a C++ compiler works"
