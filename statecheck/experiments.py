"""Experiments that several probes share: losses of targets, and a component's outputs or states taken from a donor.

A *donor* is another document, at the same position: in resample ablation its outputs (or its states) stand in for the
document's own, so that what is left of the component is typical and says nothing of this document. A donor's outputs
are those of its intact run: what a second layer makes of an ablated first one would be nobody's.

Losses are nats for ids. For vectors they are mean squared errors as shares of the targets' variance, so that no
threshold hangs on the scale of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from statecheck import states as functions
from statecheck.dynamics import Array
from statecheck.errors import CapabilityMissing
from statecheck.protocol import Capability, ModelFacts, StatefulModel, States, fresh

Donors = NDArray[np.int64]  # (times, n): for each time, the donor of each document
Outputs = dict[str, list[Tensor]]  # name of a module -> its output at each call, in order

AFTER = 64  # elements whose loss is taken after a boundary; no more than the training length
OFFSETS = (0, 7, 19, 31)  # of the boundaries before the training length: no call length is in step with all
CALL = 128  # tokens of one call: bounds the memory for outputs
RECORD_BYTES = 512 * 2**20  # of recorded outputs; documents are ablated in as many groups as that takes


def boundaries(last: int) -> list[int]:
    """Elements after which documents are cut: `last` and three before it, closer together where `last` is under 64.

    >>> boundaries(256), boundaries(16)
    ([225, 237, 249, 256], [9, 12, 15, 16])
    """
    return sorted({max(1, last - offset * min(last, 64) // 64) for offset in OFFSETS})


# Losses -----------------------------------------------------------------------------------------------------------


def calls(model: StatefulModel, inputs: Tensor) -> Iterator[Tensor]:
    """Outputs for `inputs` (n, time), read on from the current states in calls of at most 128 tokens (one token where
    the model takes no more on a warm state)."""
    step = CALL if Capability.CHUNKS in model.facts.capabilities else 1
    for start in range(0, inputs.shape[1], step):
        yield model(inputs[:, start : start + step])


def read(model: StatefulModel, inputs: Tensor) -> Tensor:
    """Outputs for `inputs` (n, time), read on from the current states, side by side."""
    return torch.cat(list(calls(model, inputs)), dim=1)


def losses(outputs: Tensor, targets: Tensor, loss: str | None) -> Tensor:
    """Loss of each element (n, time), float64: cross-entropy in nats for ids, mean squared error for vectors.

    Cross-entropies are taken in the outputs' own precision, float32 at least: more digits than the outputs have cost
    ten times as much and mean nothing.
    """
    if loss == "cross_entropy":
        flat = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).flatten(0, 1)
        return functional.cross_entropy(flat, targets.flatten(), reduction="none").view(targets.shape).double()
    return (outputs.double() - targets.double()).square().mean(dim=2)


def document_losses(model: StatefulModel, windows: Tensor) -> Tensor:
    """Mean loss of the elements after the first of `windows` (n, time + 1), read on from the current states, (n,)."""
    targets, parts, at = windows[:, 1:], [], 0
    for outputs in calls(model, windows[:, :-1]):
        own = targets[:, at : at + outputs.shape[1]]
        parts.append(losses(outputs, own, model.facts.loss))
        at += outputs.shape[1]
    return torch.cat(parts, dim=1).mean(dim=1)


def loss_unit(facts: ModelFacts) -> str:
    """The unit of a difference of losses after :func:`loss_scale`."""
    return "nats" if facts.loss == "cross_entropy" else "of the targets' variance"


def loss_scale(windows: Tensor, facts: ModelFacts) -> float:
    """What losses are divided by: 1 for ids; for vectors the mean over features of the variance of `windows`.

    >>> from types import SimpleNamespace
    >>> loss_scale(torch.tensor([[[1.0], [3.0]]]), SimpleNamespace(loss="mse"))
    1.0
    """
    if facts.loss == "cross_entropy":
        return 1.0
    values = windows.double().flatten(0, 1)
    return float((values - values.mean(dim=0)).square().mean()) or 1.0


# Donors -----------------------------------------------------------------------------------------------------------


def draw_donors(n: int, times: int, generator: np.random.Generator) -> Donors:
    """(times, n): seeded permutations without a fixed point; a document has no donor twice while there are others.

    Steps around one circle in a random order, so that every document is a donor `times` times; `times` = n - 1 is the
    full enumeration of the ordered pairs. Raises ValueError for a single document.

    >>> donors = draw_donors(5, 4, np.random.default_rng(0))
    >>> np.sort(donors, axis=0).T.tolist()
    [[1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3]]
    """
    if n < 2:
        raise ValueError(f"donors: expected at least 2 documents, found {n}")
    circle, steps = generator.permutation(n), generator.permutation(np.arange(1, n))
    found = np.empty((times, n), dtype=np.int64)
    for row in range(times):
        found[row, circle] = np.roll(circle, steps[row % (n - 1)])
    return found


def credited(table: Array, donors: Donors) -> Array:
    """A value for each document, (n,), whose mean is that of `table` (times, n) of effects, of document i with its
    donor donors[t, i].

    Each document is credited with its effects as a recipient and as a donor, less the mean: the spread of effects over
    donors belongs into an interval over documents as well as that over recipients.

    >>> credited(np.array([[1.0, 2.0, 6.0]]), np.array([[1, 2, 0]]))  # document 0 was the donor of document 2
    array([4., 0., 5.])
    """
    as_donor = np.zeros(table.shape[1])
    np.add.at(as_donor, donors.ravel(), table.ravel())
    return table.mean(axis=0) + as_donor / len(table) - table.mean()


def transplanted(own: Mapping[str, Tensor], foreign: Mapping[str, Tensor], names: Iterable[str]) -> States:
    """States to be given to a model, in memory of their own: `names` from `foreign`, the others from `own`."""
    return functions.clone(functions.replace(own, foreign, names))


def of_donors(states: Mapping[str, Tensor], donors: NDArray[np.int64]) -> States:
    """The states of each document's donor (n,). Raises :class:`CapabilityMissing` for a state without a row each."""
    for name, value in states.items():
        if value.shape[:1] != (len(donors),):
            found = f"state {name!r} has shape {tuple(value.shape)} for a batch of {len(donors)}"
            raise CapabilityMissing(f"{found}: it can't be exchanged between documents; see S0")
    return functions.rows(states, torch.from_numpy(donors))


# Resample ablation of components ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ablation:
    """Mean loss of each document: `intact` (n,), and `without` each component (times, n), its donors' in its place.

    `by` says what was exchanged: "output" or "state".
    """

    intact: Array
    without: Mapping[str, Array]
    donors: Donors
    by: str

    def effects(self) -> Array:
        """Rise of the loss of each document by the ablation of each component, (n, components), as credited."""
        return np.stack([credited(table - self.intact, self.donors) for table in self.without.values()], axis=1)


def ablated_modules(model: StatefulModel) -> dict[str, tuple[str, ...]]:
    """For each component the modules whose outputs are its own: those that its patterns name, the outermost ones.

    {} where the model shows no modules, or some component names none of them.
    """
    module = getattr(model, "module", None)
    if not isinstance(module, nn.Module):
        return {}
    names = [name for name, _ in module.named_modules() if name]
    found = {component: _outermost(names, facts.modules) for component, facts in model.facts.components.items()}
    return found if all(found.values()) else {}


def _outermost(names: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    named = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return tuple(name for name in named if not any(name.startswith(f"{other}.") for other in named))


def ablate_outputs(
    model: StatefulModel, windows: Tensor, times: int, generator: np.random.Generator, *, most: int = RECORD_BYTES
) -> Ablation:
    """Losses of `windows` (n, time + 1) from no history, with the outputs of each component's modules taken from the
    intact run of another document at the same position: in all layers at once, `times` donors for every document.

    The intact outputs are recorded, at most about `most` bytes of them: donors come from one group of documents, of at
    least times + 1. Raises :class:`CapabilityMissing` where an output is not a tensor, batch first, and for modules
    that are never called.
    """
    modules = ablated_modules(model)
    everything = list(dict.fromkeys(name for names in modules.values() for name in names))
    size = max(times + 1, int(most // max(1, _bytes_of_a_document(model, windows, everything))))
    groups = np.array_split(np.arange(len(windows)), max(1, min(-(-len(windows) // size), len(windows) // (times + 1))))
    donors = [draw_donors(len(group), times, generator) for group in groups]
    intact, without = np.empty(len(windows)), {name: np.empty((times, len(windows))) for name in modules}
    for group, local in zip(groups, donors, strict=True):
        part = windows[torch.from_numpy(group)]
        intact[group], outputs = _recorded(model, part, everything)
        for component, names in modules.items():
            _require_called(component, names, outputs)
            for time, rows in enumerate(local):
                without[component][time, group] = _replayed(model, part, {n: outputs[n] for n in names}, rows)
    everyone = np.concatenate([group[local] for group, local in zip(groups, donors, strict=True)], axis=1)
    return Ablation(intact, without, everyone, "output")


def _require_called(component: str, names: Sequence[str], outputs: Outputs) -> None:
    if not any(outputs[name] for name in names):
        raise CapabilityMissing(
            f"component {component!r}: its modules ({', '.join(names)}) are never called, so that no output of theirs"
            " can be replaced; call the module itself, not its forward"
        )


def _bytes_of_a_document(model: StatefulModel, windows: Tensor, names: Sequence[str]) -> float:
    """What the recorded outputs of one document take, by trying two documents over a few tokens."""
    few = windows[:2, : min(17, windows.shape[1])]
    outputs = _recorded(model, few, names)[1]
    taken = sum(value.numel() * value.element_size() for recorded in outputs.values() for value in recorded)
    return taken / len(few) / (few.shape[1] - 1) * (windows.shape[1] - 1)


def _recorded(model: StatefulModel, windows: Tensor, names: Iterable[str]) -> tuple[Array, Outputs]:
    """Losses (n,) of a run from no history, and the outputs of the modules `names` in it."""
    outputs: Outputs = {name: [] for name in names}

    def keep(name: str, value: Tensor) -> None:
        _require_rows(name, value, len(windows))
        outputs[name].append(value.detach().clone())

    return _hooked_losses(model, windows, names, keep), outputs


def _replayed(model: StatefulModel, windows: Tensor, outputs: Outputs, donors: NDArray[np.int64]) -> Array:
    """Losses (n,) of a run from no history in which the modules give the recorded outputs of other rows."""
    index = torch.from_numpy(donors)
    coming = {name: iter(recorded) for name, recorded in outputs.items()}

    def exchange(name: str, value: Tensor) -> Tensor:
        recorded = next(coming[name], None)
        if recorded is None or recorded.shape != value.shape:
            raise CapabilityMissing(f"module {name!r} is not called alike in two runs: its output can't be replaced")
        return recorded.index_select(0, index.to(recorded.device))

    return _hooked_losses(model, windows, outputs, exchange)


def _hooked_losses(
    model: StatefulModel, windows: Tensor, names: Iterable[str], change: Callable[[str, Tensor], Tensor | None]
) -> Array:
    running = fresh(model)
    with hooked(running.module, names, change):  # type: ignore[attr-defined]
        return document_losses(running, windows).numpy(force=True)


@contextmanager
def hooked(module: nn.Module, names: Iterable[str], change: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """While the block runs, `change(name, output)` sees each output of the submodules `names`; what it returns takes
    the output's place (None: it stays). The output of a module that returns several things is the first of them.

    >>> layer = nn.Sequential(nn.Identity())
    >>> with hooked(layer, ["0"], lambda name, value: 2 * value):
    ...     layer(torch.ones(1))
    tensor([2.])
    """
    handles = [module.get_submodule(name).register_forward_hook(_hook(name, change)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, change: Callable[[str, Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        several = isinstance(output, (tuple, list)) and len(output) > 0
        value = output[0] if several else output
        if not isinstance(value, Tensor):
            raise CapabilityMissing(
                f"module {name!r} returns a {type(value).__name__}: its output can be replaced where it is a tensor, or"
                " the first of a tuple"
            )
        other = change(name, value)
        if other is None or not several:
            return other
        rest = (other, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)

    return hook


def _require_rows(name: str, value: Tensor, n: int) -> None:
    if value.shape[:1] != (n,):
        raise CapabilityMissing(
            f"module {name!r} returns an output of shape {tuple(value.shape)} for {n} documents: expected the batch in"
            " dimension 0, so that it can be taken from another document"
        )


def ablate_states(model: StatefulModel, windows: Tensor, times: int, generator: np.random.Generator) -> Ablation:
    """Losses of `windows` (n, time + 1) from no history, with all states of each component taken, before every token,
    from the intact run of another document at the same position: `times` donors for every document.

    For models without modules that can be ablated. Raises :class:`CapabilityMissing` without SET_STATES, and for a
    component that has no states.
    """
    model.facts.require(Capability.SET_STATES)
    donors = draw_donors(len(windows), times, generator)
    players = {name: states_of(model.facts, name) for name in model.facts.components}
    if empty := [name for name, own in players.items() if not own]:
        raise CapabilityMissing(f"component {empty[0]!r} has no states, and no modules whose outputs can be replaced")
    first = fresh(model)
    total = document_losses(first, windows[:, :2])
    intact = first.get_states()
    lanes = {(name, time): intact for name in players for time in range(times)}
    totals = dict.fromkeys(lanes, total)
    for at in range(1, windows.shape[1] - 1):
        token = windows[:, at : at + 2]
        foreign = [of_donors(intact, rows) for rows in donors]
        for (name, time), own in lanes.items():
            held, loss = _step(model, transplanted(own, foreign[time], players[name]), token)
            lanes[name, time], totals[name, time] = held, totals[name, time] + loss
        intact, loss = _step(model, functions.clone(intact), token)
        total = total + loss
    read = windows.shape[1] - 1
    without = {
        name: np.stack([totals[name, time].numpy(force=True) / read for time in range(times)]) for name in players
    }
    return Ablation(total.numpy(force=True) / read, without, donors, "state")


def _step(model: StatefulModel, held: States, token: Tensor) -> tuple[States, Tensor]:
    """States after one more token, and the loss of the element that follows it, (n,); `token` (n, 2) has both."""
    model.set_states(held)
    loss = document_losses(model, token)
    return model.get_states(), loss


def states_of(facts: ModelFacts, component: str, layer: int | None = None) -> list[str]:
    """All that a component remembers, in one layer or in all: convolution windows, keys, values and the rest too."""
    return facts.names(component=component, layer=layer, recurrent=False)
