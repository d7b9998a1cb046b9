"""Compile every kernel for GPUs that need not be there: `python -m statecheck_kernels.triton_form.compile_ahead`.

The interpreter, which runs the kernels on a CPU, sees no error of type, lowering, registers or shared memory; the
compiler does. Each recurrence is called as on a GPU, on small CPU tensors, forward and backward, with and without
statistics, packed and not; where a kernel would be launched, it is compiled for exactly those arguments instead.
Nothing runs: the results are not looked at. Must run without TRITON_INTERPRET, in a process of its own.

Prints a row for each kernel and target: seconds, bytes of the binary, registers a thread, bytes spilled a thread,
bytes of shared memory ("-" where the tool that tells is not there). Exit code 1 if any does not compile, 2 if it can't
start.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statecheck_kernels.contract import Observe
from statecheck_kernels.triton_form import interpreted

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}


class Row(NamedTuple):
    """What became of one kernel on one target."""

    kernel: str
    case: str
    target: str
    seconds: float
    size: int
    registers: str
    spilled: str
    shared: str
    error: str

    def __str__(self) -> str:
        place = f"{self.kernel:<44} {self.case:<30} {self.target:<7} {self.seconds:6.1f}"
        if self.error:
            return f"{place}  FAILED: {self.error}"
        return f"{place} {self.size:7d} {self.registers:>5} {self.spilled:>5} {self.shared:>6}"


class Target:
    """Stands where triton's driver of a device does, and says what to compile for. There is no device."""

    def __init__(self, name: str, index: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target, self.index = GPUTarget(*TARGETS[name]), index

    def get_current_device(self) -> int:
        """One for each target: triton keeps what it compiled by device."""
        return self.index

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> Any:
        """What to compile for."""
        return self.target


def cases() -> dict[str, Callable[[], None]]:
    """Name -> call; together they reach every kernel in every shape that is compiled apart."""
    found: dict[str, Callable[[], None]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for packed in (False, True):
            for watched in (False, True):
                name = str(dtype).removeprefix("torch.")
                name = f"{name}{', packed' if packed else ''}{', statistics' if watched else ''}"
                found[name] = partial(_call_all, dtype, packed, watched)
    return found | {"float32, divided, statistics": partial(_call_wide, torch.float32)}


def _call_all(dtype: torch.dtype, packed: bool, watched: bool) -> None:
    """All four, forward; backward too without statistics, which has nothing to do with them."""
    from statecheck_kernels.triton_form import causal_conv1d_kernels, selective_scan_kernels, ssd_kernels, wkv6_kernels

    def tensor(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, requires_grad=not watched)

    def state(*shape: int) -> Tensor:
        return torch.zeros(rows, *shape, requires_grad=not watched)

    B, T, rows = (1, 64, 3) if packed else (2, 64, 2)
    sequences = torch.tensor([0, 5, 5, 64]) if packed else None
    observe = Observe(entropy=True) if watched else None
    H, K, D, N, W = 4, 64, 256, 16, 4
    matrix, step = (B, T, H, K), tensor(B, T, D)
    r, k, v, log_w = (tensor(*matrix) for _ in range(4))
    results = [
        wkv6_kernels.wkv6(r, k, v, log_w, tensor(H, K), state(H, K, K), sequences, observe),
        ssd_kernels.ssd(
            *(r, tensor(B, T, H), tensor(H), tensor(B, T, 2, 128), tensor(B, T, 2, 128), tensor(H)),
            *(state(H, K, 128), sequences, observe),
        ),
        selective_scan_kernels.selective_scan(
            *(step, step, tensor(D, N), tensor(B, T, N), tensor(B, T, N), tensor(D)),
            *(state(D, N), sequences, observe),
        ),
        causal_conv1d_kernels.causal_conv1d(
            step, tensor(D, W), tensor(D), True, state(D, W - 1), sequences, observe
        ),
    ]  # fmt: skip
    if not watched:
        torch.autograd.backward([y.sum() + last.sum() for y, last, _ in results])


def _call_wide(dtype: torch.dtype) -> None:
    """Heads of more units than one program holds: the second pass of the recurrences that rarely need one."""
    from statecheck_kernels.triton_form import ssd_kernels, wkv6_kernels

    x, k, v, log_w = torch.zeros(4, 1, 8, 1, 256, dtype=dtype)
    state, one = torch.zeros(1, 1, 256, 256), torch.zeros(1, dtype=dtype)
    wkv6_kernels.wkv6(x, k, v, log_w, log_w[0, 0], state, None, Observe())
    ssd_kernels.ssd(x, x[..., 0], one, k, v, None, state, None, Observe())


def compiled(target: str, names: list[str]) -> Iterator[Row]:
    """Every case for one target, in the order of the calls; a kernel compiled for the same arguments before is left."""
    from triton.runtime import driver

    from statecheck_kernels.triton_form import launching

    rows: list[Row] = []
    seen: set[int] = set()

    def compile_only(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        row = _compile(kernel, case, target, arguments, constants, seen)
        rows.extend([] if row is None else [row])

    driver.set_active(Target(target, list(TARGETS).index(target)))
    launching.launch = compile_only
    calls = cases()
    for case in names:
        calls[case]()
        yield from rows
        rows.clear()


def _compile(
    kernel: Any, case: str, target: str, arguments: tuple[Any, ...], constants: dict[str, Any], seen: set[int]
) -> Row | None:
    """One kernel for what it would be launched with; None if that has been compiled before."""
    module = kernel.fn.__module__.rpartition(".")[2].removesuffix("_kernels")
    second = ", second pass" if constants.get("COUNT") else ""
    name = f"{module}.{kernel.fn.__name__}{second}"
    began = time.perf_counter()
    try:
        made = kernel.warmup(*arguments, grid=(1,), **constants)
        asm = made.asm
    except Exception as error:  # whatever the compiler says belongs in the table
        return Row(name, case, target, time.perf_counter() - began, 0, "-", "-", "-", _told(error))
    if id(made) in seen:
        return None
    seen.add(id(made))
    seconds = time.perf_counter() - began
    size = len(asm["cubin"] if "cubin" in asm else asm["hsaco"])
    return Row(name, case, target, seconds, size, *resources(asm), str(made.metadata.shared), "")


def _told(error: BaseException) -> str:
    """The last lines of an error and of what caused it: triton has the place in one and the reason in the other."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")] or [type(error).__name__]
    own = " / ".join(lines[-2:])
    return own if error.__cause__ is None else f"{own} / {_told(error.__cause__)}"


def resources(asm: Any) -> tuple[str, str]:
    """(registers a thread, bytes spilled a thread) of a binary; "-" where they can't be told."""
    if "amdgcn" in asm:
        found = [
            re.findall(rf"\.{key}:\s+(\d+)", asm["amdgcn"]) for key in ("vgpr_count", "private_segment_fixed_size")
        ]
    else:
        text = _usage(asm["cubin"])
        found = [re.findall(rf"{key}:(\d+)", text) for key in ("REG", "STACK")]
    registers, spilled = (max(numbers, key=int, default="-") for numbers in found)
    return registers, spilled


def _usage(cubin: bytes) -> str:
    """What cuobjdump, which triton brings along, says of a CUDA binary."""
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=False).stdout


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    parser.add_argument("--case", action="append", choices=list(cases()), help="default: all")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("triton") is None:
        print("triton is not installed: pip install 'triton>=3.5'", file=sys.stderr)
        return 2
    if interpreted():
        print("TRITON_INTERPRET is set, so triton compiles nothing: unset it and start again", file=sys.stderr)
        return 2
    print(f"{'kernel':<44} {'case':<30} {'target':<7} {'s':>6} {'bytes':>7} {'regs':>5} {'spill':>5} {'shared':>6}")
    rows = []
    for target in options.target or list(TARGETS):
        for row in compiled(target, options.case or list(cases())):
            print(row, flush=True)
            rows.append(row)
    failed = sum(bool(row.error) for row in rows)
    print(f"{len(rows) - failed} compiled, {failed} failed, on {torch.__version__=}; nothing was run")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
