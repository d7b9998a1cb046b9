"""`statecheck ls` and `statecheck show`: what can be asked for, read from the catalogue without loading torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path

from statecheck.catalogue import ItemEntry, items, model_entry_points, suggest
from statecheck.errors import UsageError
from statecheck.suite import SuiteItem, bundled, load_suite
from statecheck.verdict import Criterion
from statecheck.wording import one_line


def ls() -> int:
    """Print the items, the suites and the registered models."""
    table = items()
    suites = [load_suite(name, items=table) for name in bundled()]
    holders = {id: [suite.name for suite in suites if id in [item.id for item in suite.items]] for id in table}
    _print("items", [(e.id, e.title, f"needs {', '.join(e.needs)}", ", ".join(holders[e.id])) for e in table.values()])
    _print("suites", [(suite.name, suite.title, f"{len(suite.items)} items") for suite in suites])
    _print("models", [(name, point.value) for name, point in sorted(model_entry_points().items())])
    return 0


def show(id: str, *, suite: str | None = None) -> int:
    """Print what one item asks, needs and costs, how it is judged and by what source.

    Without `suite`, by phase39 if the item is in it, else by the first bundled suite that holds it.
    """
    table = items()
    if id not in table:
        raise UsageError(f"no item {id!r}{suggest(id, table)}")
    entry = table[id]
    print(f"{entry.id}: {entry.title}")
    print(f"needs: {', '.join(entry.needs)}; cost: {entry.cost or 'not said'}")
    print(f"\n{docstring(entry)}")
    suite = suite or _home(id, table)
    rows = [item for item in load_suite(suite, items=table).items if item.id == id]
    print(f"\nthresholds in suite {suite}:" if rows else f"\nnot in suite {suite}")
    for item in rows:
        _print_thresholds(item)
    return 0


def _home(id: str, table: Mapping[str, ItemEntry]) -> str:
    """The bundled suite that an item is explained by."""
    held = [name for name in bundled() if id in [item.id for item in load_suite(name, items=table).items]]
    return "phase39" if "phase39" in held or not held else held[0]


def docstring(entry: ItemEntry) -> str:
    """The docstring of the item's function, read from its source: nothing is imported but parent packages.

    >>> from statecheck.catalogue import ITEMS
    >>> docstring(ITEMS["S3"]).startswith("S3")
    True
    """
    module, _, function = entry.target.partition(":")
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return f"({module} has no source to read)"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    text = ast.get_docstring(found[0]) if found else None
    return cleandoc(text) if text else "(no description)"


def _print_thresholds(item: SuiteItem) -> None:
    if item.options:
        print("  options: " + ", ".join(f"{name} = {value}" for name, value in item.options.items()))
    for criterion in item.criteria:
        print(f"  {criterion.measurement}: {_bounds(criterion)}")
        print(f"    source: {criterion.source}")
        if criterion.advice:
            print(f"    advice: {criterion.advice}")


def _bounds(criterion: Criterion) -> str:
    sides = (("PASS", criterion.passes, " and "), ("WARN", criterion.warns, " and "), ("FAIL", criterion.fails, " or "))
    return "; ".join(f"{word} {joint.join(map(str, bounds))}" for word, bounds, joint in sides if bounds)


def _print(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    print(f"{title}:")
    plain = [[one_line(text) for text in row] for row in rows]
    widths = [max(len(row[column]) for row in plain) for column in range(len(plain[0]))] if plain else []
    for row in plain:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    if not plain:
        print("  none")
