"""ONNX models with explicit states, as a session of onnxruntime runs them.

The contract that is tested:

    a call          session.run(None, {x, states}) -> outputs and next states, which go into the next call
    pairs           `carries` says which output goes into which input; else the output of the same name but for words
                    such as in, out, past, present, next, 0, n; else the only one of the same type and shape
    x, outputs      the input and the first output that are left; whole numbers (batch, time) are tokens
    no history      states of zeros: the batch where x has it, nothing where another size is open; or what `start` makes
    a fixed batch   of 1: a call for each row, with states of its own
    a fixed time    of 1, or x without a time: one element after the other; CHUNKS is missing then

What an output gives is copied out of the runtime, so that nothing can be told of memory that it shares, and no gradient
reaches anything. There are neither masks nor packed sequences. A graph with another fixed time, or with inputs beside x
and the states, is refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from statecheck.adapters.contract import Declared, asking, example
from statecheck.carrying import ROOT, Calls, Carrying, Reading, read_with
from statecheck.errors import ContractError
from statecheck.protocol import Capability, States

Start = Callable[[int], Any]
AFFIXES = (
    *("in", "input", "out", "output", "past", "present", "next", "new"),
    *("prev", "previous", "initial", "final", "n"),
)
DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}
ONE_ELEMENT = "the graph reads one element at a time"


@dataclass(frozen=True)
class Graph:
    """What a session takes and gives: nodes by name, `carries` from the name of a state's input to its output's."""

    x: Any
    outputs: str
    states: Mapping[str, Any]
    carries: Mapping[str, str]

    @property
    def one_row(self) -> bool:
        """True where the batch is fixed at 1."""
        return self.x.shape[0] == 1

    @property
    def timed(self) -> bool:
        """False where x is a single element without a dimension for time."""
        return len(self.x.shape) > (1 if self.tokens else 2)

    @property
    def tokens(self) -> bool:
        return "int" in self.x.type

    @property
    def one_element(self) -> bool:
        return not self.timed or self.x.shape[1] == 1


class Session(Calls):
    """A session of onnxruntime as calls; what is held is a mapping of states by the name of their input."""

    def __init__(self, session: Any, graph: Graph, start: Start | None) -> None:
        super().__init__()
        self._session, self._graph, self._start = session, graph, start
        if graph.one_element:
            self.reasons = {Capability.CHUNKS: ONE_ELEMENT}

    def forward(self, inputs: Tensor, held: Any) -> tuple[Tensor, Any]:
        if not self._graph.one_row:
            return self._read(inputs, held)
        rows = [self._read(row[None], None if held is None else held[i]) for i, row in enumerate(inputs)]
        return torch.cat([outputs for outputs, _ in rows]), [after for _, after in rows]

    def _read(self, inputs: Tensor, held: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        now = self._first(len(inputs)) if held is None else held
        outputs = []
        for part in inputs.split(1, dim=1) if self._graph.one_element else [inputs]:
            y, now = self._run(part if self._graph.timed else part[:, 0], now)
            outputs.append(y if self._graph.timed else y[:, None])
        return torch.cat(outputs, 1), now

    def _run(self, x: Tensor, held: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        graph = self._graph
        given = {graph.x.name: x.to(DTYPES[graph.x.type]), **held}
        names = [graph.outputs, *graph.carries.values()]
        found = self._session.run(names, {name: value.detach().cpu().numpy() for name, value in given.items()})
        y, *after = (torch.from_numpy(value).clone() for value in found)
        return y, dict(zip(graph.carries, after, strict=True))

    def _first(self, rows: int) -> dict[str, Tensor]:
        """The states before the first element."""
        if self._start is not None:
            return dict(self._start(rows))
        batch = self._graph.x.shape[0]
        sizes = {batch: rows} if not isinstance(batch, int) else {}
        return {
            name: torch.zeros(
                [n if isinstance(n, int) else sizes.get(n, 0) for n in node.shape], dtype=DTYPES[node.type]
            )
            for name, node in self._graph.states.items()
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        return Session(self._session, self._graph, copy.deepcopy(self._start, memo))  # a session has no state


class ByRow:
    """States that are held for each row apart, (rows, ...) as tensors."""

    def read(self, root: object, rows: int) -> States:
        held = cast(Mapping[str, list[dict[str, Tensor]]], root)[ROOT]
        return {f"{ROOT}.{name}": torch.stack([row[name] for row in held]) for name in held[0]}

    def write(self, states: Mapping[str, Tensor]) -> Any:
        rows = len(next(iter(states.values())))
        return {ROOT: [{n.partition(".")[2]: v[row].clone() for n, v in states.items()} for row in range(rows)]}


def is_session(model: object) -> bool:
    """True for what tells its inputs and outputs and runs, as onnxruntime's sessions do.

    >>> is_session(torch.nn.GRU(2, 2))
    False
    """
    return all(callable(getattr(model, name, None)) for name in ("get_inputs", "get_outputs", "run"))


def carried_by_session(
    session: Any, declared: Declared, start: Start | None, carries: Mapping[str, str] | None
) -> tuple[Carrying, Declared]:
    """The session as a module that holds its states, for `wrap_module`, and what it reads.

    Raises :class:`ContractError` where inputs and outputs can't be paired, or what it reads can't be told.
    """
    graph = _graph(session, carries)
    calls = Session(session, graph, start)
    said = replace(_inputs(graph, declared), title=declared.title or type(session).__name__)
    reading: Reading = ByRow()
    if not graph.one_row:
        reading = asking(read_with, lambda: calls, lambda rows, time: example(said, None, rows, time))
    return Carrying(calls, reading), said


def _graph(session: Any, said: Mapping[str, str] | None) -> Graph:
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    carries = dict(said) if said is not None else _pairs(inputs, outputs)
    strange = [*(set(carries) - set(inputs)), *(set(carries.values()) - set(outputs))]
    left = [name for name in inputs if name not in carries]
    results = [name for name in outputs if name not in carries.values()]
    have = f"its inputs are {', '.join(inputs)}, its outputs {', '.join(outputs)}"
    if strange:
        raise ContractError(f"carries: the graph has no {', '.join(map(repr, strange))}; {have}")
    if not carries or len(left) != 1 or not results:
        raise ContractError(
            f"can't tell which outputs of the graph go into which inputs: {have}; say carries={{input: output}} for"
            " every state, so that one input is left"
        )
    graph = Graph(inputs[left[0]], results[0], {name: inputs[name] for name in carries}, carries)
    if graph.timed and isinstance(graph.x.shape[1], int) and graph.x.shape[1] != 1:
        raise ContractError(
            f"the graph reads {graph.x.shape[1]} elements at a time: export it with a time that is open, or of 1"
        )
    return graph


def _pairs(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, str]:
    """Inputs and the outputs that go into them: by name, else by type and shape where these tell one pair."""
    named = {_core(name): name for name in outputs}
    found = {name: named[_core(name)] for name in inputs if _core(name) in named}
    if found:
        return found
    kinds = {name: (node.type, tuple(node.shape)) for name, node in {**inputs, **outputs}.items()}
    for name in inputs:
        alike = [other for other in outputs if kinds[other] == kinds[name]]
        rivals = [other for other in inputs if kinds[other] == kinds[name]]
        if len(alike) == len(rivals) == 1:
            found[name] = alike[0]
    return found


def _core(name: str) -> tuple[str, ...]:
    """The words of a name without those that tell an input from an output: h_in, hn and past_h are all h.

    >>> _core("h_in"), _core("cn"), _core("past_key_values.1.key"), _core("present.1.key"), _core("past.0")
    (('h',), ('c',), ('1', 'key'), ('1', 'key'), ('0',))
    """
    words = [word for word in re.split(r"[._/:]+", name.lower().replace("past_key_values", "past")) if word]
    kept = [word[0] if re.fullmatch(r"[hc][0n]", word) else word for word in words if word not in AFFIXES]
    if not all(word.isdigit() for word in kept):
        kept = [word for word in kept if word != "0"]
    return tuple(kept) or tuple(words)


def _inputs(graph: Graph, declared: Declared) -> Declared:
    if declared.width or declared.vocabulary:
        return declared
    width = graph.x.shape[-1]
    if graph.tokens or not isinstance(width, int):
        what = "vocabulary=N" if graph.tokens else "width=N"
        raise ContractError(
            f"can't tell what the graph reads from {graph.x.name} {graph.x.shape}: say wrap(..., {what})"
        )
    return replace(declared, width=width)
