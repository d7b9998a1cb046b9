"""The table of everything that can be asked for by name: items (laws, probes) and models.

Built-ins stand in a literal table of strings, so that listing them imports neither torch nor the code itself. Plug-ins
come in through the entry-point groups `statecheck.items` (a function labelled with `statecheck.probes.probe`) and
`statecheck.models` (a :class:`statecheck.protocol.RegisteredModel`). A second owner of a name is refused. The group
`statecheck.backends` is for `statecheck doctor` alone: a function that tells which forms of its kernels run here.

>>> ITEMS["D1"].title
'Divergence: does the state grow past its trained length?'
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from statecheck.errors import UsageError


@dataclass(frozen=True)
class ItemEntry:
    """One row. `target` is "module:function"; `needs` names the evidence, `cost` says what it takes."""

    id: str
    target: str
    title: str
    needs: tuple[str, ...] = ("states",)
    cost: str = "shared trace"
    function: Callable[..., Any] | None = None  # of a plug-in, which is at hand already

    def load(self) -> Callable[..., Any]:
        """The function itself (imports its module)."""
        if self.function is not None:
            return self.function
        module, _, function = self.target.partition(":")
        return getattr(import_module(module), function)


_PROBES = "statecheck.probes."
_LAWS = "statecheck.laws."

ITEMS: Mapping[str, ItemEntry] = {
    entry.id: entry
    for entry in (
        ItemEntry(
            "S0",
            _PROBES + "fundamentals:declared",
            "States exist as declared, and rows are a batch",
            cost="10 short calls",
        ),
        ItemEntry("S1", _PROBES + "fundamentals:sane", "States are finite, not all zero, and of sane scale"),
        ItemEntry("S2", _PROBES + "fundamentals:input_dependent", "Different inputs give different states"),
        ItemEntry(
            "S3", _PROBES + "fundamentals:deterministic", "The same input gives the same state", cost="2 short runs"
        ),
        ItemEntry(
            "S4",
            _PROBES + "interaction:contributes",
            "Every component contributes",
            ("text", "components"),
            "1 + 4 runs a component over T_tr",
        ),
        ItemEntry("G3.5", _PROBES + "evolution:evolves", "The state evolves and is not saturated"),
        ItemEntry("D1", _PROBES + "divergence:diverges", "Divergence: does the state grow past its trained length?"),
        ItemEntry(
            "D2",
            _PROBES + "collapse:collapses",
            "Collapse: frozen, saturated, dead, unselective or stuck",
            cost="shared trace + 1 step a layer",
        ),
        ItemEntry(
            "D3",
            _PROBES + "interaction:interaction",
            "Interaction: effect of ablating each component",
            ("text", "components"),
            "the runs of S4",
        ),
        ItemEntry(
            "D4",
            _PROBES + "long_range:remembers",
            "Long range: is a longer context read, and of use?",
            ("states", "text"),
            "6 context lengths",
        ),
        ItemEntry("health", _PROBES + "health:healthy", "State health score of every layer and component"),
        ItemEntry(
            "coupling",
            _PROBES + "coupling:couples",
            "Gradient-state coupling of the components",
            ("states", "text", "components"),
            "gradients at 4 boundaries over 64 tokens, 8 differences a component",
        ),
        ItemEntry(
            "flow",
            _PROBES + "flow:flow",
            "Information flow: share of each component's memory",
            ("states", "text", "components"),
            "4 x 2^components runs over 64 tokens",
        ),
        ItemEntry(
            "gradient-ratio",
            _PROBES + "gradient_ratio:balanced",
            "Gradient ratio of the components",
            ("text", "components"),
            "1 gradient a document over 2 T_tr",
        ),
        ItemEntry(
            "extended",
            _PROBES + "extended:stable",
            "Extended training: is the training log stable?",
            ("training log",),
            "reads a file",
        ),
        ItemEntry(
            "STEP",
            _LAWS + "step:steps",
            "Prefill, then one element at a time, equals one whole call",
            cost="one whole call a claim, and its steps",
        ),
        ItemEntry(
            "CHUNK",
            _LAWS + "chunk:chunks",
            "Several elements on a warm state equal one call over all",
            cost="two histories a claim",
        ),
        ItemEntry(
            "PREFIX", _LAWS + "prefix:prefixes", "What is read later changes nothing earlier", cost="two calls a claim"
        ),
        ItemEntry(
            "BATCH",
            _LAWS + "batch:batches",
            "A row in a batch equals the row alone",
            cost="each history, and each of its rows alone",
        ),
        ItemEntry(
            "PADL",
            _LAWS + "padl:left_padding",
            "Padding before a row changes nothing",
            cost="each history, and each of its rows alone",
        ),
        ItemEntry(
            "PADR",
            _LAWS + "padr:right_padding",
            "Padding behind a row changes nothing after it",
            cost="each history, and each of its rows alone",
        ),
        ItemEntry(
            "RESET",
            _LAWS + "reset:resets",
            "A model that forgot equals one that never read",
            cost="two histories a claim, one on a copy",
        ),
        ItemEntry(
            "FORK",
            _LAWS + "fork:forks",
            "A copied, saved or restored state goes on as the state itself",
            cost="two histories a claim",
        ),
        ItemEntry(
            "ALIAS",
            _LAWS + "alias:aliases",
            "A call changes no state, input or output that the caller holds",
            cost="two short histories a claim",
        ),
        ItemEntry(
            "REORDER",
            _LAWS + "reorder:reorders",
            "Reordered rows of a state are those of reordered inputs",
            cost="two histories a claim; beam search",
        ),
        ItemEntry("CROP", _LAWS + "crop:crops", "What is rolled back was never read", cost="two histories a claim"),
        ItemEntry(
            "PACK",
            _LAWS + "pack:packs",
            "Packed sequences equal separate ones, gradients too",
            cost="each packed row, and its sequences alone",
        ),
        ItemEntry(
            "GRAD",
            _LAWS + "grad:gradients_right",
            "Gradients are there, finite and right, through the state too",
            cost="gradients in float32 and float64",
        ),
        ItemEntry(
            "PARITY",
            _LAWS + "parity:parities",
            "Ways to compute the same agree: cached, training, with gradients",
            cost="two calls a claim",
        ),
        ItemEntry(
            "NUM",
            _LAWS + "num:numerics",
            "Long inputs, extreme gates and low precision stay within bounds",
            cost="calls of 1 to 2,000 elements",
        ),
        ItemEntry(
            "LOAD",
            _LAWS + "load:loads",
            "Saving and loading changes no parameter and no output",
            cost="two copies of the model",
        ),
        ItemEntry(
            "DETERM", _LAWS + "determ:deterministic", "The same history twice gives the same", cost="each history twice"
        ),
        ItemEntry(
            "HONEST",
            _LAWS + "honest:honest",
            "The state is the whole memory: sufficient, complete, necessary",
            cost="three histories a claim",
        ),
        ItemEntry("SIZE", _LAWS + "size:sizes", "The state is as large, and grows, as declared", cost="two histories"),
        ItemEntry(
            "MACHINE",
            _LAWS + "machine:mixes",
            "Whatever is done with a state, it holds what was read",
            cost="a mixed history a claim",
        ),
    )
}


#: The items that are laws: what they find is a case that can be played again.
LAWS = tuple(id for id, entry in ITEMS.items() if entry.target.startswith(_LAWS))
#: Those of them that draw what is no history: a case says nothing to them.
CASELESS = frozenset({"ALIAS", "GRAD", "LOAD", "NUM", "PACK", "SIZE"})


def items(extra: Iterable[Callable[..., Any]] = ()) -> dict[str, ItemEntry]:
    """Built-in items, then those of installed plug-ins, then `extra` functions labelled with `@probe`.

    Raises :class:`UsageError` for a plug-in without a label and for a name that is already taken.
    """
    table = dict(ITEMS)
    for point in entry_points(group="statecheck.items"):
        _add(table, _load_plugin(point), f"plug-in {point.name!r} ({point.value})")
    for function in extra:
        _add(table, function, f"function {getattr(function, '__qualname__', function)!r}")
    return table


def _load_plugin(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise UsageError(
            f"plug-in {point.name!r} ({point.value}) raised {type(error).__name__} on import: {error}"
        ) from error


def _add(table: dict[str, ItemEntry], function: Any, owner: str) -> None:
    entry = label_of(function, owner)
    if entry.id in table:
        taken = table[entry.id].target or "taken by another plug-in"
        raise UsageError(f"{owner} calls itself {entry.id!r}, which is already {taken}: give it another id")
    table[entry.id] = entry


def label_of(function: Any, owner: str) -> ItemEntry:
    """The row for a function that `@probe` labelled; UsageError with expected and found if it has no label."""
    label = getattr(function, "statecheck_label", None)
    if label is None:
        found = type(function).__name__
        raise UsageError(
            f"{owner}: expected a function labelled with @statecheck.probe(id, title), found a {found} without a label"
        )
    return ItemEntry(label.id, "", label.title, label.needs, label.cost, function)


def model_entry_points() -> dict[str, EntryPoint]:
    """Registered models by name, not loaded. Raises :class:`UsageError` if two packages claim one name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group="statecheck.models"):
        if point.name in found and found[point.name].value != point.value:
            raise UsageError(
                f"two packages register the model {point.name!r}: {found[point.name].value} and {point.value}"
            )
        found[point.name] = point
    return found


def backend_entry_points() -> tuple[EntryPoint, ...]:
    """What installed packages tell of the backends they bring, by name, not loaded: see :mod:`statecheck.doctor`."""
    return tuple(sorted(entry_points(group="statecheck.backends"), key=lambda point: (point.name, point.value)))


def suggest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' or the list of what is known.

    >>> suggest("helth", ["D1", "health"])
    '; did you mean health?'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
