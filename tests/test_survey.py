"""`statecheck survey`: the whole way, on a small library of the name rwkv; the pages; what confirms a finding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from statecheck.surveys.recurrent import MAKERS
from statecheck.surveys.running import CONFIRMING, LIBRARIES, confirm
from statecheck.surveys.tables import page

#: A leaky sum with a token shift, called as the models of the package rwkv. A call of more than one token FORGETS.
LIBRARY = """
import torch
from types import SimpleNamespace

class RWKV(torch.nn.Module):
    def __init__(self, model, strategy):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.args = SimpleNamespace(n_layer=1, vocab_size=20)
        self.w = {name: torch.randn(20, 6, generator=draw) for name in ("emb.weight", "head.weight")}
        self.decay = torch.rand(6, generator=draw)

    def forward(self, tokens, state, full_output=False):
        if state is None or (FORGETS and len(tokens) > 1):
            state = [torch.zeros(6), torch.zeros(6)]
        ys = []
        for x in self.w["emb.weight"][tokens]:
            h = self.decay * state[0] + (x + 0.5 * state[1]).tanh()
            state[0], state[1] = h, x
            ys.append(h)
        logits = torch.stack(ys) @ self.w["head.weight"].T
        return (logits if full_output and len(tokens) > 1 else logits[-1]), state
"""


def library(folder: Path, *, forgets: bool) -> Path:
    """A folder with an installed package rwkv."""
    (folder / "rwkv").mkdir(parents=True)
    (folder / "rwkv" / "__init__.py").touch()
    (folder / "rwkv" / "model.py").write_text(f"FORGETS = {forgets}\n{LIBRARY}", encoding="utf-8")
    (folder / "rwkv-1.2.3.dist-info").mkdir()
    (folder / "rwkv-1.2.3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: rwkv\nVersion: 1.2.3\n")
    return folder


def survey(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path or ""), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "statecheck", "survey", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_survey_tells_which_laws_a_library_breaks_and_resumes(tmp_path: Path) -> None:
    place = library(tmp_path / "site", forgets=True)
    done = survey("rwkv", "--out", str(tmp_path / "out"), "--jobs", "1", path=place)
    assert done.returncode == 0, done.stderr
    assert "1 models: 1 run; a law is broken in 1" in done.stdout
    folder = tmp_path / "out" / "rwkv-1.2.3-quick"
    text = (folder / "survey.md").read_text(encoding="utf-8")
    assert text.startswith("# Survey of rwkv 1.2.3")
    assert "| rwkv7 |" in text
    row = json.loads((folder / "models" / "rwkv7.json").read_text(encoding="utf-8"))
    broken = {law["id"] for law in row["laws"] if law["status"] == "FAIL"}
    assert "CHUNK" in broken
    assert "RESET" not in broken
    assert (folder / "models" / "rwkv7" / "report.json").is_file()
    assert (folder / "models" / "rwkv7" / "violations" / "CHUNK.native" / "script.py").is_file()
    again = survey("rwkv", "--out", str(tmp_path / "out"), "--jobs", "1", path=place)
    assert "[1/" not in again.stderr  # nothing is run twice


def test_a_healthy_library_breaks_none(tmp_path: Path) -> None:
    done = survey("rwkv", "--out", str(tmp_path / "out"), path=library(tmp_path / "site", forgets=False))
    assert "a law is broken in 0" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("rwkv",), 4, "no rwkv to survey: pip install rwkv"),
        (("transformer",), 2, "did you mean transformers"),
        (("rwkv", "--profile", "long"), 2, "expected quick or full"),
    ],
)
def test_what_can_not_be_surveyed_is_one_line(arguments: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    done = survey(*arguments, "--out", str(tmp_path))
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_libraries_are_those_that_can_be_built() -> None:
    assert {"transformers", *MAKERS} == set(LIBRARIES)


def script(folder: Path, part: str, text: str) -> None:
    place = folder / "models" / "small" / "violations" / part
    place.mkdir(parents=True)
    (place / "script.py").write_text(text, encoding="utf-8")


def test_scripts_confirm_what_they_show_and_nothing_else(tmp_path: Path) -> None:
    printed = 'print("row 0: relative error of each position", [1e-07, {}])'
    script(tmp_path, "STEP.native", printed.format("0.25"))
    script(tmp_path, "CHUNK.native", printed.format("2e-06"))
    script(tmp_path, "BATCH.native", 'print("shape", (2, 2, 7))')
    script(tmp_path, "CROP.native", 'raise IndexError("too far")')
    script(tmp_path, "FORK.native", printed.format("float('nan')"))
    script(tmp_path, "RESET.functional", printed.format("0.5"))
    script(tmp_path, "ALIAS.native", f"from statecheck.deviation import deviation\n{printed.format('0.5')}")
    row = {"model": "small", "bar": 1e-5}
    confirm([row], tmp_path)
    assert row["confirmed"] == {
        "STEP.native": "0.25 relative",
        "CHUNK.native": "",
        "BATCH.native": "shape (2, 2, 7)",
        "CROP.native": "raises IndexError: too far",
        "FORK.native": "nan relative",
    }
    assert json.loads((tmp_path / "models" / "small.json").read_text(encoding="utf-8")) == row


def test_a_script_that_knows_statecheck_confirms_nothing(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import statecheck.errors", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", str(CONFIRMING)],
        input=f"{tmp_path / 'script.py'}\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "imported statecheck" in done.stderr
    assert done.stdout == ""


def test_the_page_shows_what_was_run_what_is_broken_and_what_was_not() -> None:
    ran = {"stage": "run", "model": "wave", "class": "Wave", "recurrent": True, "kinds": ["vector"], "reason": ""}
    laws = [
        {"id": "STEP", "status": "FAIL", "reason": "0.5 *relative*"},
        {"id": "SIZE", "status": "PASS", "reason": ""},
    ]
    absent = {"stage": "not built", "model": "tree", "recurrent": False, "laws": [], "reason": "KeyError: 'x'"}
    laws.append({"id": "LOAD", "status": "FAIL", "reason": "1"})
    rows = [{**ran, "laws": laws, "confirmed": {"STEP.native": "0.5 relative", "STEP.late": ""}}, absent]
    about = {"library": "sea", "release": "1", "profile": "quick", "torch": "2", "minutes": 3.2, "jobs": 2}
    text = page(rows, about)
    assert "| wave | **F** | · | **F** |" in text
    assert "Models with keys and values alone" not in text
    assert "- STEP: 0" in text
    assert "*relative" not in text.replace("\\*", "")  # what a model says is no markup
    assert "models/wave/violations/STEP.native/script.py) show it: 0" in text
    assert "do NOT show it" in text
    assert "- LOAD: 1\n  - not confirmed" in text
    assert "- `tree`: not built: KeyError: 'x'" in text
