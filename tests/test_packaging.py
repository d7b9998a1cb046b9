"""What is imported is declared: a dependency that only happens to be installed breaks elsewhere."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"statecheck", "statecheck_reference"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
#: Imported where pytest or the text extra is at hand already: in `parametrize_with_checks` and in scripts.
ON_DEMAND = {"pytest"}


def names(requirements: list[str]) -> set[str]:
    """Distribution names of requirement strings."""
    return {requirement.split(">")[0].split("=")[0].strip().lower() for requirement in requirements}


def imported(folder: Path) -> set[str]:
    """Top-level packages that the Python files below a folder import, those of Python itself apart."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize("folder", ["statecheck", "reference_models/statecheck_reference"])
def test_every_import_is_a_declared_dependency(folder: str) -> None:
    found = {name.lower() for name in imported(ROOT / folder)} - OURS - ON_DEMAND
    assert found - names(PROJECT["dependencies"]) == set()


def test_every_dependency_is_imported() -> None:
    found = imported(ROOT / "statecheck") | imported(ROOT / "reference_models/statecheck_reference")
    assert names(PROJECT["dependencies"]) - {name.lower() for name in found} == set()


def test_every_dependency_is_pinned_for_setup() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = names([line for line in lines if "==" in line])
    wanted = names([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])
    assert wanted <= pinned
