"""The pages say what the program does: snippets run and print what is shown, links lead somewhere, tables are fresh."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from documentation import ROOT, SNIPPET, with_output
from torch import nn

import statecheck as sc
from statecheck.cli import app
from statecheck.errors import ContractError
from statecheck.faults import FAULTS
from statecheck.protocol import Capability

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WITH_SNIPPETS = [
    "README.md",
    "docs/wrapping.md",
    "docs/adding_a_probe.md",
    "docs/components.md",
    "docs/family.md",
    "docs/reference_hybrid.md",
]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
COMMAND = re.compile(r"(?:^ {4}|`|\$ )statecheck (?P<word>[a-z][a-z-]*)", re.MULTILINE)
NUMBER = re.compile(r"\d[\d.]*(?:e[-+]?\d+)?")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", WITH_SNIPPETS)
def test_snippets_print_what_the_page_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that come out of a computation may differ in their last digits on another machine."""
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)
    page = (ROOT / name).read_text("utf-8")
    assert SNIPPET.search(page)
    assert rounded(with_output(page, name)) == rounded(page)


def rounded(text: str) -> str:
    """Numbers to two significant digits."""
    return NUMBER.sub(lambda number: f"{float(number[0].rstrip('.')):.2g}", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(CODE.sub("", page.read_text("utf-8")))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_listed() -> None:
    """Each page under docs/ is linked from docs/index.md, or stands in a folder whose index is."""
    linked = {(ROOT / "docs" / link).resolve() for link in LINK.findall((ROOT / "docs/index.md").read_text("utf-8"))}
    pages = set((ROOT / "docs").glob("*.md")) - {ROOT / "docs/index.md"}
    assert pages <= linked


def test_commands_of_the_pages_exist() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    found = {word for page in PAGES for word in COMMAND.findall(page.read_text("utf-8"))}
    assert {"run", "calibrate", "show"} <= found <= known


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_item_pages.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_page_is_named() -> None:
    """The check sees a threshold that was changed by hand on one page."""
    script = runpy.run_path(str(ROOT / "scripts/make_item_pages.py"))
    page = "before\n<!-- BEGIN items: written by `make docs` -->\nold\n<!-- END items -->\nafter\n"
    fresh = "before\n<!-- BEGIN items: written by `make docs` -->\nnew\n<!-- END items -->\nafter\n"
    assert script["between"](page, "items", "new") == fresh
    with pytest.raises(ValueError, match="expected one"):
        script["between"](page, "faults", "new")


def test_culprits_explains_every_fault() -> None:
    page = (ROOT / "docs/culprits.md").read_text("utf-8")
    assert [name for name in FAULTS if name != "none" and f"- **{name}**:" not in page] == []


# What docs/wrapping.md says a missing capability costs ------------------------------------------------------------


class Observed(nn.Module):
    """Can be observed, and copied: no way to set or to forget."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.h: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, self.h = self.rnn(x, self.h)
        return outputs

    def get_states(self) -> dict[str, torch.Tensor]:
        return {} if self.h is None else {"h": self.h[0]}


class Stepwise(Observed):
    """Takes one element a call once it has a state."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.h is not None and x.shape[1] > 1:
            raise ValueError("one step at a time")
        return super().forward(x)


class Locked(Observed):
    """Holds something that can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_without_set_states_retention_is_skipped() -> None:
    report = sc.check_model(sc.wrap(Observed(), training_length=16), only=["S3", "D2", "D4"])
    assert report["D2.decay"].status is report["D2.selection"].status is sc.Status.SKIP
    assert report["D4.perplexity"].status is report["D4.benefit"].status is sc.Status.SKIP  # no sequences were given
    assert report["S3"].status is sc.Status.PASS


def test_without_reset_and_copy_it_is_refused() -> None:
    with pytest.raises(ContractError, match="can't forget in place"):
        sc.wrap(Locked(), width=4)


def test_without_chunks_it_is_stepped() -> None:
    model = sc.wrap(Stepwise(), training_length=16)
    assert Capability.CHUNKS not in model.facts.capabilities
    assert sc.check_model(model, only=["D1"])["D1"].status is sc.Status.PASS


def test_fifteen_documents_are_inconclusive() -> None:
    report = sc.check_model(sc.wrap(Observed(), training_length=16), inputs=torch.randn(15, 100, 4), only=["D1"])
    assert report["D1"].status is sc.Status.INCONCLUSIVE
    assert report["D1.growth"].status is sc.Status.INCONCLUSIVE
