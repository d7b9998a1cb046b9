"""What is imported is declared: a dependency that only happens to be installed breaks elsewhere."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"statecheck", "statecheck_kernels", "statecheck_reference"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SETUP = (ROOT / "setup.py").read_text("utf-8")
#: Imported where it is at hand already: in `parametrize_with_checks`, where its extra is asked for, in a survey of it.
ON_DEMAND = {"pytest", "transformers", "triton"}
FOLDERS = {
    "statecheck": ROOT / "statecheck",
    "statecheck_kernels": ROOT / "kernels/statecheck_kernels",
    "statecheck_reference": ROOT / "reference_models/statecheck_reference",
}


def names(requirements: list[str]) -> set[str]:
    """Distribution names of requirement strings."""
    return {requirement.split(";")[0].split(">")[0].split("=")[0].strip().lower() for requirement in requirements}


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


@pytest.mark.parametrize("package", FOLDERS)
def test_every_import_is_a_declared_dependency(package: str) -> None:
    found = {name.lower() for name in imported(FOLDERS[package])} - OURS - ON_DEMAND
    assert found - names(PROJECT["dependencies"]) == set()


@pytest.mark.parametrize("package", FOLDERS)
def test_every_package_is_known_to_setuptools(package: str) -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    assert ROOT / tool["setuptools"]["package-dir"][package] == FOLDERS[package]
    assert "py.typed" in tool["setuptools"]["package-data"][package]
    assert (FOLDERS[package] / "py.typed").exists()
    assert package in tool["mypy"]["packages"]


def test_every_source_of_the_library_is_in_its_hash_and_in_the_wheel() -> None:
    """A file of another kind would be neither compared nor shipped."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    assert {"cpu/src/*.cpp", "cpu/src/*.hpp"} <= set(tool["setuptools"]["package-data"]["statecheck_kernels"])
    sources = list((FOLDERS["statecheck_kernels"] / "cpu/src").iterdir())
    assert {path.suffix for path in sources} == {".cpp", ".hpp"}
    assert [path.name for path in sources if path.suffix == ".cpp"] == ["_cpu.cpp"]


def test_the_library_is_built_without_fast_math() -> None:
    """Loading a library linked so makes the whole process flush small numbers to zero."""
    assert re.findall(r'"(-ffast-math|-Ofast|-funsafe-math-optimizations|-march[^"]*)"', SETUP) == []
    assert '"-O2"' in SETUP


def test_every_dependency_is_imported() -> None:
    found = set().union(*map(imported, FOLDERS.values()))
    assert names(PROJECT["dependencies"]) - {name.lower() for name in found} == set()


def test_every_dependency_is_pinned_for_setup() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = names([line for line in lines if "==" in line])
    extras = PROJECT["optional-dependencies"]
    wanted = names([*PROJECT["dependencies"], *(one for extra in extras.values() for one in extra)])
    assert wanted <= pinned
