"""The triton form in a process of its own, interpreted on the CPU: `triton_interpreted` has the tests themselves."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import statecheck_kernels
import torch
from statecheck_kernels import triton_form

HERE = Path(__file__).parent
KERNELS = Path(statecheck_kernels.__file__).parent.parent
MISSING = importlib.util.find_spec("triton") is None
needs_triton = pytest.mark.skipif(MISSING, reason="triton is not installed: pip install 'triton>=3.5'")


@pytest.fixture(autouse=True)
def _looked_up_anew() -> Iterator[None]:
    triton_form._missing.cache_clear()
    yield
    triton_form._missing.cache_clear()


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("operation", ["wkv6", "selective_scan", "ssd", "causal_conv1d"])
def test_interpreted_kernels_agree_with_the_reference(operation: str) -> None:
    options = ("-q", "-k", operation, "-p", "no:cacheprovider", "--strict-markers")
    found = _python("-m", "pytest", *options, str(HERE / "triton_interpreted.py"), TRITON_INTERPRET="1")
    summary = found.stdout.strip().splitlines()[-1]
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in summary
    assert "skipped" not in summary


@needs_triton
@pytest.mark.parametrize("operation", ["wkv6", "selective_scan", "ssd", "causal_conv1d"])
def test_interpreted_kernels_run_at_all(operation: str) -> None:
    """The quick part of the above."""
    chosen = f"{operation} and (test_results_and_gradients and float64 or test_packed and not chunks)"
    options = ("-q", "-k", chosen, "-p", "no:cacheprovider")
    found = _python("-m", "pytest", *options, str(HERE / "triton_interpreted.py"), TRITON_INTERPRET="1")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "2 passed" in found.stdout


def test_triton_is_imported_only_when_used() -> None:
    code = (
        "import sys; from statecheck_kernels import triton_form; triton_form.reason(); print('triton' in sys.modules)"
    )
    before = _python("-c", "import sys, torch; print('triton' in sys.modules)").stdout.strip()
    assert _python("-c", code).stdout.strip() == before == "False"


@pytest.mark.skipif(triton_form.available(), reason="the form can run here, nothing to refuse")
def test_what_it_can_not_run_on_is_refused_with_what_to_do() -> None:
    assert triton_form.reason()
    x = torch.ones(1, 2, 1)
    with pytest.raises(ValueError, match=r"the triton form can't run here: .*(pip install|TRITON_INTERPRET=1)"):
        triton_form.causal_conv1d(x, torch.ones(1, 1), None, False, torch.zeros(1, 1, 0), None, None)


@pytest.mark.parametrize(
    ("installed", "value", "expected"),
    [
        (None, "1", "triton is not installed: pip install 'triton>=3.5'"),
        ("3.4.1", "1", "triton 3.4.1 is too old, 3.5 or newer is needed: pip install 'triton>=3.5'"),
        ("3.10.0", "1", ""),
        ("3.5.0+git1", "true", ""),
    ],
)
def test_the_reason_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, installed: str | None, value: str, expected: str
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise triton_form.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(triton_form.metadata, "version", version)
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert triton_form.reason() == expected
    assert triton_form.available() == (expected == "")


def test_without_a_device_the_interpreter_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_form.metadata, "version", lambda name: "3.9.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "no CUDA or ROCm device is visible; set TRITON_INTERPRET=1" in triton_form.reason()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert triton_form.available()
    with pytest.raises(ValueError, match="found device 'cpu': move the inputs to a GPU"):
        triton_form.causal_conv1d(torch.ones(1, 2, 1), torch.ones(1, 1), None, False, torch.zeros(1, 1, 0), None, None)


def _python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own, with these environment variables and without TRITON_INTERPRET if it is not among them."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(KERNELS), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
