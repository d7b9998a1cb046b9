"""Peak memory of a call beyond its inputs and outputs, in a process of its own.

How: a fresh process warms up on small inputs, makes the real ones, sets the kernel's mark of the peak back
(`/proc/self/clear_refs`), reads its resident size, calls, and reads the peak. So what C++ allocates counts as much as
what torch does. What the call gives back (outputs, and gradients) is taken off; what is left is set over the size of
inputs and outputs, in a backward pass too: there the gradients are taken off and not counted in the size. glibc is
told to map every larger block by itself, so that what is freed is gone before the measurement.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bars import bar
from benchmarks.clock import Spread
from benchmarks.inputs import QUICK, Sizes, make
from benchmarks.ours import form_that_runs, ours
from benchmarks.rows import Row
from benchmarks.settings import Settings

REPOSITORY = Path(__file__).parents[2]
FOLDERS = [str(REPOSITORY / name) for name in ("kernels", "reference_models", ".")]  # a checkout needs no installation
LONGER = 4  # times the length that is timed: far above what the process itself needs
PLAIN_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STATUS = Path("/proc/self/status")
MEGABYTE = 1e6


def memory(kernel: str, settings: Settings) -> list[Row]:
    """A row for the forward pass and one with the backward pass."""
    rows = []
    for name, backward in (("forward", False), ("forward + backward", True)):
        row = Row(kernel, "memory", name, bar=bar(kernel, "memory", name))
        if not STATUS.exists():
            rows.append(replace(row, note="needs Linux: /proc"))
            continue
        sizes = settings.sizes if settings.quick else replace(settings.sizes, length=LONGER * settings.sizes.length)
        told = {
            "kernel": kernel,
            "backward": backward,
            "form": settings.form,
            "sizes": sizes.to_dict(),
            "threads": settings.threads,
        }
        found = in_a_process("benchmarks.memory", told, PLAIN_MALLOC)
        ratio = found["extra"] / found["inputs_and_outputs"]
        beyond = "inputs, outputs and gradients" if backward else "inputs and outputs"
        extra, size = found["extra"] / MEGABYTE, found["inputs_and_outputs"] / MEGABYTE
        note = f"form {found['form']}, T = {sizes.length}: {extra:.1f} MB beyond {beyond}, over {size:.1f} MB"
        rows.append(replace(row, note=note, ratio=Spread.of([ratio])))
    return rows


def in_a_process(module: str, told: dict[str, Any], more_environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs a module of this folder with `told` as JSON and returns the JSON of the last line that it prints.

    Raises RuntimeError with the end of what it wrote if it fails.
    """
    path = os.pathsep.join([*FOLDERS, *filter(None, sys.path)])
    threads = {"OMP_NUM_THREADS": str(told.get("threads", 1))}
    environment = {**os.environ, **threads, "PYTHONPATH": path, **(more_environment or {})}
    run = subprocess.run(
        [sys.executable, "-m", module, json.dumps(told)], env=environment, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"expected {module} to end with 0, found {run.returncode}:\n{run.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def reset_peak() -> int:
    """Sets this process's mark of its peak back to what is resident now, and returns that, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The largest resident size since :func:`reset_peak`, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"expected {field} in {STATUS}, found none")


def _measure(told: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(told["threads"])
    kernel, backward = told["kernel"], told["backward"]
    _call(kernel, told["form"], QUICK, backward)
    ran = form_that_runs(kernel, make(kernel, QUICK), told["form"])
    return {"form": ran, **_call(kernel, told["form"], Sizes(**told["sizes"]), backward)}


def _call(kernel: str, form: str | None, sizes: Sizes, backward: bool) -> dict[str, int]:
    variant = ours(kernel, form, "ours")
    own = variant.prepared(make(kernel, sizes), gradients=backward)
    upstream = torch.ones_like(own["v" if kernel == "wkv6" else "x"])
    before = reset_peak()
    outputs, gradients = variant.both(own, upstream) if backward else (variant.forward(own), {})
    highest = peak()
    given_back = _bytes(outputs, *gradients.values())
    return {"extra": highest - before - given_back, "inputs_and_outputs": _bytes(outputs, *own.values())}


def _bytes(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
