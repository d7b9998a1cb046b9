"""The examples do what they say: the probe of one's own has its four proofs, and both scripts run as shown."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import environment, statecheck
from torch import nn

import statecheck as sc
from statecheck.testing import plant

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / "examples" / "my_suite.toml"
LIBRARY = ROOT / "examples" / "ci_for_a_model_library"
PROBE = runpy.run_path(str(ROOT / "examples" / "my_probe.py"))
entropy: Callable[[torch.Tensor], np.ndarray] = PROBE["entropy"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def gru() -> sc.StatefulModel:
    torch.manual_seed(0)
    return sc.wrap(nn.GRU(8, 32, num_layers=2, batch_first=True), training_length=64)


def spread(model: sc.StatefulModel, **options: object) -> sc.Verdict:
    return sc.check_model(model, suite=SUITE, only=["spread"], probes=[PROBE["energy_spread"]], **options)["spread"]


def test_a_healthy_model_passes_with_an_interval() -> None:
    verdict = spread(gru())
    (number,) = verdict.measurements
    assert verdict.status is sc.Status.PASS
    assert 0.3 < number.low < number.value < number.high < 1


@pytest.mark.parametrize("layer", [0, 1])
def test_the_culprit_fails_and_the_layer_is_named(layer: int) -> None:
    verdict = spread(plant(gru(), "channel-explodes", severity=1.2, layer=layer))
    assert verdict.status is sc.Status.FAIL
    assert verdict.measurements[0].where.layer == layer


def test_numbers_derived_by_hand() -> None:
    """D equal units: log D / log D. One unit: 0. Two equal units of four: log 2 / log 4. Nothing at all: 0."""
    rows = torch.tensor([[1.0, -1, 1, -1], [0, 3, 0, 0], [2, 0, 0, -2], [0, 0, 0, 0]])
    assert entropy(rows) == pytest.approx([1, 0, 0.5, 0])


def test_without_a_recurrent_state_it_is_not_applicable() -> None:
    class Window(nn.Module):
        """A convolution window, which is no recurrent state."""

        def __init__(self) -> None:
            super().__init__()
            self.held: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.held = x[:, -1]
            return x

        def get_states(self) -> dict[str, torch.Tensor]:
            return {} if self.held is None else {"window": self.held}

    verdict = spread(sc.wrap(Window(), width=4, training_length=8, states={"window": {"kind": "conv"}}))
    assert verdict.status is sc.Status.NOT_APPLICABLE


def test_too_few_documents_are_inconclusive() -> None:
    assert spread(gru(), inputs=torch.randn(15, 80, 8)).status is sc.Status.INCONCLUSIVE


def test_a_misspelt_option_is_refused(tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE.read_text().replace("at = 1.0", "att = 1.0"))
    with pytest.raises(Exception, match="no option 'att'; did you mean at"):
        sc.check_model(gru(), suite=suite, only=["spread"], probes=[PROBE["energy_spread"]])


def test_the_probe_fits_in_thirty_lines() -> None:
    lines = (ROOT / "examples" / "my_probe.py").read_text().split("@sc.probe")[1].split("if __name__")[0]
    assert len([line for line in lines.splitlines() if line.strip()]) <= 30


def run_example(name: str) -> str:
    done = subprocess.run(
        [sys.executable, f"examples/{name}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["my_probe.py", "wrap_your_model.py"])
def test_the_scripts_run(name: str) -> None:
    assert "VALIDATION_GATE_PASS" in run_example(name)


def test_the_factory_runs_from_the_command_line(tmp_path: Path) -> None:
    done = statecheck("run", "examples.wrap_your_model:make", "--suite", "smoke", "--out", tmp_path / "run", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "VALIDATION_GATE_PASS.md").is_file()


# The CI of a library: its README shows what is printed -----------------------------------------------------------


def shown(command: str) -> list[str]:
    """The lines that the library's README shows below a command."""
    blocks = re.findall(
        r"^```console\n\$ (.*?)\n(.*?)^```", (LIBRARY / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    return dict(blocks)[command].splitlines()


def without_numbers(line: str) -> str:
    """A line without measured numbers, which may differ on another machine, and without times."""
    return re.sub(r"-?\d+\.\d+(e[-+]\d+)?s?|feature \d+", "#", line)


def test_the_test_of_a_library_passes_with_its_known_failures() -> None:
    command = "python -m pytest -q test_state_laws.py"
    done = subprocess.run(
        [sys.executable, *command.split()[1:], "-p", "no:cacheprovider"],
        cwd=LIBRARY,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert without_numbers(done.stdout.splitlines()[-1]) == without_numbers(shown(command)[0])


def test_the_command_prints_what_the_readme_of_the_library_shows(tmp_path: Path) -> None:
    command = "statecheck conform my_library:tiny --law CHUNK"
    done = statecheck(*command.split()[1:], "--out", tmp_path / "run", cwd=LIBRARY, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 1, done.stderr
    lines, expected = done.stdout.splitlines(), shown(command)
    start = lines.index(expected[0])
    found = lines[start : start + len(expected)]
    assert list(map(without_numbers, found)) == list(map(without_numbers, expected))


def test_the_workflow_runs_commands_that_exist() -> None:
    """The test that it names is there, and the command takes its options."""
    lines = (LIBRARY / "laws.yml").read_text().splitlines()
    commands = [line.partition("run: ")[2] for line in lines if "- run: " in line]
    assert "pytest test_state_laws.py" in commands
    (conform,) = [command for command in commands if command.startswith("statecheck")]
    options = re.findall(r"--[a-z-]+", conform)
    assert options
    assert set(options) <= set(re.findall(r"--[a-z-]+", statecheck("conform", "--help").stdout))
    assert (LIBRARY / "test_state_laws.py").is_file()
