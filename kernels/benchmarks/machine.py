"""Where a run took place: the machine, what is installed, which compiled library answers."""

import os
import platform
from pathlib import Path
from typing import Any

import statecheck_kernels
import torch
from statecheck_kernels import forms

from benchmarks.peers import versions
from benchmarks.settings import Settings


def machine(settings: Settings, device: str) -> dict[str, Any]:
    """What a reader needs to repeat the run, by name."""
    found: dict[str, Any] = {
        "processor": f"{_processor()}, {os.cpu_count()} logical",
        "load": f"{os.getloadavg()[0]:.2f} (1 minute)" if hasattr(os, "getloadavg") else "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": settings.threads,
        "memory": "freed memory is kept (mallopt)" if settings.keep_memory else "as malloc does by default",
        "judged by": {"cpu": "process CPU time", "wall": "wall time"}[settings.clock]
        if device == "cpu"
        else "CUDA events",
        "sizes": _sizes(settings),
        "peers": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    if device == "cuda":
        found["GPU"] = torch.cuda.get_device_name()
    found["form that runs"] = forms.choose(torch.device(device), settings.form)
    for name, usable, detail in statecheck_kernels.describe():
        found[f"form {name}"] = detail if usable else f"not here: {detail}"
    return found


def _sizes(settings: Settings) -> str:
    s = settings.sizes
    return (
        f"B{s.batch} L{s.length}; selective_scan D{s.channels} N{s.state}; wkv6 and ssd H{s.heads} K=V=P=N={s.width}; "
        f"causal_conv1d D{s.channels} W{s.taps} with SiLU; float32"
    )


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
