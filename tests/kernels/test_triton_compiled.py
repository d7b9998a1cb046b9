"""Every kernel of the triton form compiles for GPUs that are not there. Nothing is run: that is `test_gpu`'s."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import statecheck_kernels

KERNELS = Path(statecheck_kernels.__file__).parent.parent
SCRIPT = "statecheck_kernels.triton_form.compile_ahead"
KINDS = {
    *("wkv6.forward_kernel", "wkv6.backward_kernel", "ssd.forward_kernel", "ssd.backward_kernel"),
    *("selective_scan.forward_kernel", "selective_scan.backward_kernel"),
    *("causal_conv1d.forward_kernel", "causal_conv1d.backward_inputs_kernel", "causal_conv1d.backward_weights_kernel"),
}
WATCHED = {"causal_conv1d.statistics_kernel", "wkv6.forward_kernel, second pass", "ssd.forward_kernel, second pass"}
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install 'triton>=3.5'"
)


def compile_ahead(cache: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script, with an empty cache, so that it compiles indeed, and with no interpreter if not in `variables`."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(KERNELS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = kept | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache)} | variables
    command = [sys.executable, "-W", "ignore", "-m", SCRIPT, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)


def kernels_of(table: str, target: str) -> set[str]:
    """Names in the rows of one target."""
    return {line[:44].strip() for line in table.splitlines() if f" {target} " in line}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_compiles(target: str, tmp_path: Path) -> None:
    found = compile_ahead(tmp_path, "--target", target)
    assert found.returncode == 0, found.stdout + found.stderr
    assert kernels_of(found.stdout, target) >= KINDS | WATCHED
    assert ", 0 failed" in found.stdout
    assert any(tmp_path.rglob("*.cubin" if target.startswith("sm") else "*.hsaco"))


@needs_triton
def test_the_packed_kernels_compile_for_one_target(tmp_path: Path) -> None:
    """The quick part of the above."""
    found = compile_ahead(tmp_path, "--target", "sm_90", "--case", "bfloat16, packed")
    assert found.returncode == 0, found.stdout + found.stderr
    assert kernels_of(found.stdout, "sm_90") == KINDS


@needs_triton
def test_a_kernel_that_does_not_compile_is_told(tmp_path: Path) -> None:
    """A block that is no power of two is an error of the compiler's; the row says so and the exit code is 1."""
    code = (
        "import sys; from statecheck_kernels.triton_form import compile_ahead, launching;"
        "launching.power = lambda size: 3;"
        "from statecheck_kernels.triton_form import wkv6_kernels, ssd_kernels, selective_scan_kernels;"
        "wkv6_kernels.power = ssd_kernels.power = selective_scan_kernels.power = launching.power;"
        "sys.exit(compile_ahead.main(['--target', 'sm_90', '--case', 'float32, statistics']))"
    )
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = kept | {"PYTHONPATH": str(KERNELS), "TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "FAILED" in found.stdout
    assert "power of 2" in found.stdout


@needs_triton
def test_it_does_not_start_under_the_interpreter(tmp_path: Path) -> None:
    found = compile_ahead(tmp_path, TRITON_INTERPRET="1")
    assert found.returncode == 2
    assert "TRITON_INTERPRET is set" in found.stderr
