"""Who may import whom, what stays unloaded, and that the public face is what it says."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import statecheck_kernels

import statecheck

PACKAGE = Path(statecheck.__file__).parent
HEAVY = ("torch", "numpy", "pandas", "matplotlib", "scipy")

#: A module imports only from its own row and from rows above it.
ROWS = (
    "errors protocol wording atomic escaping",
    "verdict states deviation statistics dynamics tasks",
    "plots",
    "histories noise slopes holding layout carrying tracing recording observing proving gathering experiments"
    " transplants gradients signals checkpoint",
    "adapters",
    "laws probes",
    "benchmarks monitor",
    "catalogue faults",
    "plan suite suites store gate compare expected report",
    "naming own_code resolve documents",
    "runner guard supervisor engine worker session violations doctor",
    "testing",
    "surveys",
    "commands cli __main__",
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row.split()}
#: Inside these folders nobody imports a sibling, the file `contract` apart; `adapters/__init__` alone gathers them.
NO_SIBLINGS = ("adapters", "laws", "probes", "tasks")
PARENT_SIDE = (
    *("cli", "engine", "supervisor", "runner", "store", "plan", "suite", "gate", "compare", "report.record"),
    *("report.terminal", "report.markdown", "catalogue", "verdict", "errors", "protocol", "commands.run"),
    *("commands.single", "commands.tables", "commands.asking", "commands.progress", "commands.conform"),
    *("expected", "report.violations", "report.junit", "report.github"),
)


def modules() -> list[str]:
    """Dotted names below `statecheck`, without it."""
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if name != "__init__")


def path_of(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(source: str) -> Iterator[str]:
    """Dotted names below `statecheck` that a source imports, anywhere in it, TYPE_CHECKING blocks apart."""
    tree = ast.parse(source)
    skipped = {id(inner) for node in ast.walk(tree) if _typing_only(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("statecheck.") for alias in node.names if _ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and _ours(node.module):
            if node.module == "statecheck":
                yield from (alias.name for alias in node.names)
            else:
                yield node.module.removeprefix("statecheck.")


def _typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _ours(name: str) -> bool:
    return name.split(".")[0] == "statecheck"


def violations(importer: str, source: str) -> list[str]:
    """What a module imports and may not."""
    found = []
    top, _, inside = importer.partition(".")
    for imported in imports(source):
        other, _, sibling = imported.partition(".")
        if other not in RANK:
            found.append(f"{importer} imports {imported}, which is in no row")
        elif RANK[other] > RANK[top]:
            found.append(f"{importer} imports {imported} from a row below it")
        elif (
            other == top
            and top in NO_SIBLINGS
            and inside
            and sibling.split(".")[0]
            not in (
                *("contract", ""),
                inside.split(".")[0],  # a package of its own
            )
        ):
            found.append(f"{importer} imports its sibling {imported}")
    return found


@pytest.mark.parametrize("name", modules())
def test_imports_only_from_rows_above(name: str) -> None:
    assert name.split(".")[0] in RANK, f"{name} is in no row: add it to ROWS"
    assert violations(name, path_of(name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("verdict", "from statecheck.suite import Suite"),
        ("states", "def f():\n    import statecheck.cli"),
        ("probes.collapse", "from statecheck.probes.evolution import evolves"),
        ("errors", "from statecheck import check_model"),
    ],
)
def test_the_rule_sees_a_violation(importer: str, source: str) -> None:
    assert len(violations(importer, source)) == 1


def test_typing_imports_are_free() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from statecheck.cli import app\n"
    assert violations("errors", source) == []


def test_no_sibling_package_is_imported() -> None:
    for name in modules():
        tree = ast.parse(path_of(name).read_text(encoding="utf-8"))
        named = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
        named += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        for other in ("statecheck_reference", "statecheck_kernels"):
            assert not [one for one in named if one.split(".")[0] == other], f"{name} imports {other}"


def top_level_imports(path: Path) -> set[str]:
    """First names of what a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path} imports relatively"
            found.add(node.module.split(".")[0])
    return found


KERNELS = Path(statecheck_kernels.__file__).parent
KERNEL_FILES = sorted(str(path.relative_to(KERNELS)) for path in KERNELS.rglob("*.py"))


@pytest.mark.parametrize("name", KERNEL_FILES)
def test_kernels_import_torch_alone(name: str) -> None:
    allowed = {"torch", "statecheck_kernels", *sys.stdlib_module_names}
    if name.startswith("triton_form/"):
        allowed.add("triton")
    assert top_level_imports(KERNELS / name) <= allowed


def test_kernels_load_without_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None
import statecheck_kernels, statecheck_kernels.cpu, statecheck_kernels.triton_form
print({name: usable for name, usable, _ in statecheck_kernels.describe()}["triton"])
"""
    assert run(code) == "False\n"


def test_no_module_of_the_kernels_takes_the_name_of_a_public_function() -> None:
    modules_and_folders = {Path(name).stem for name in KERNEL_FILES} | {Path(name).parent.name for name in KERNEL_FILES}
    assert statecheck_kernels.__all__ == sorted(statecheck_kernels.__all__)
    assert modules_and_folders & set(statecheck_kernels.__all__) == set()


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = f"print(sorted(set(sys.modules) & set({HEAVY!r})))"


@pytest.mark.parametrize(
    "code",
    ["import statecheck", *(f"import statecheck.{name}" for name in PARENT_SIDE)],
)
def test_parent_side_loads_nothing_heavy(code: str) -> None:
    assert run(f"import sys\n{code}\n{LOADED}") == "[]\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["conform", "--help"], ["ls"], ["show", "D1"], ["show", "STEP"]]
)
def test_these_commands_load_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["statecheck", *{arguments!r}]
from statecheck.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
{LOADED}
"""
    assert run(code).splitlines()[-1] == "[]"


def test_public_face_is_sorted_and_complete() -> None:
    assert statecheck.__all__ == sorted(statecheck.__all__)
    assert set(statecheck.__all__) <= set(dir(statecheck))


def test_public_face_works_after_every_submodule_was_imported() -> None:
    """No submodule takes the place of a public function."""
    code = f"""
import importlib, types
import statecheck
for name in {modules()!r}:
    importlib.import_module("statecheck." + name)
shadowed = [name for name in statecheck.__all__ if isinstance(getattr(statecheck, name), types.ModuleType)]
assert not shadowed, shadowed
import torch
model = statecheck.wrap(torch.nn.GRU(3, 4, batch_first=True), training_length=8)
outputs, states = statecheck.advance(statecheck.fresh(model), torch.zeros(2, 5, 3), None)
assert outputs.shape == (2, 5, 4) and states
assert statecheck.trace(model, torch.randn(2, 16, 3), every=4) is not None
assert callable(statecheck.check_model) and callable(statecheck.parametrize_with_checks)
print(statecheck.__version__)
"""
    assert run(code).strip()


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'wrapp'"):
        statecheck.wrapp  # noqa: B018
