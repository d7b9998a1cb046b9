"""A claim as a Python script that runs as it stands: for a bug report, without histories, routes or a search.

    x = load_file("inputs.safetensors")["x"]
    model = sc.wrap(torch.load("model.pt", weights_only=False).eval())
    expected = model(x)
    model.set_states(None)
    found = torch.cat([model(x[:, 0:5]), model(x[:, 5:6])], 1)

What is expected is computed first, as :func:`statecheck.histories.playing.sides` does, with the same calls in the same
order: the script prints the same deviation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import safetensors.torch

from statecheck.histories.operations import Admit, Claim, Crop, Feed, Forget, History, Lose, Move, Operation, Rows, Slot
from statecheck.histories.playing import Sequences
from statecheck.histories.recorded import Batch, Record, Whole, begin, own, wholes
from statecheck.protocol import Capability, StatefulModel, native_of

INPUTS, SCRIPT = "inputs.safetensors", "script.py"
NAMES = ("x", "y", "pad")  # of the sequences
CALL = """\
def call(inputs, mask=None):  # the state is taken out, copied and given back before the call
    model.set_states({name: value.clone() for name, value in model.get_states().items()})
    return model(inputs, mask=mask)
"""
FEWEST_TO_FOLD = 3  # single steps that are written as a loop


def write(
    folder: Path,
    model: StatefulModel,
    claim: Claim,
    route: str,
    recipe: Sequence[str],
    floor: float,
    *,
    apart: bool = False,
    plain: str = "",
) -> list[Path]:
    """The script and its inputs, written into `folder`; the script is run from there. The arguments of `script`.

    `plain` is the text of another script, that holds its inputs itself.
    """
    text = plain or script(model, claim, route, recipe, floor, apart=apart)
    sequences = Sequences.of(model, claim)
    used = {n: getattr(sequences, n).contiguous().cpu() for n in NAMES if f'["{n}"]' in text or (plain and n == "x")}
    paths = [folder / SCRIPT, folder / INPUTS]
    paths[0].write_text(text, encoding="utf-8")
    safetensors.torch.save_file(used, paths[1])
    return paths


def script(
    model: StatefulModel, claim: Claim, route: str, recipe: Sequence[str], floor: float, *, apart: bool = False
) -> str:
    """A claim on a route as a script that prints expected and found at the first wrong element, and the relative error.

    `recipe` are lines that define `model`, in the mode that it is tested in; `floor` is the noise floor; `apart`: what
    is found is played on a copy of the model that never read, as the laws RESET and MACHINE do it.

    >>> import torch, statecheck as sc
    >>> model = sc.wrap(torch.nn.GRU(4, 8, batch_first=True))
    >>> claim = Claim.parse("2x6@3: feed(0:5) feed(5:6) == whole(0:6)")
    >>> print(script(model, claim, "native", ["model = make()"], 1.2e-7))
    # 2x6@3: feed(0:5) feed(5:6) == whole(0:6), native
    import torch
    from safetensors.torch import load_file
    from statecheck.deviation import deviation
    <BLANKLINE>
    torch.set_grad_enabled(False)
    x = load_file("inputs.safetensors")["x"]
    model = make()
    <BLANKLINE>
    expected = model(x)
    model.set_states(None)
    found = torch.cat([model(x[:, 0:5]), model(x[:, 5:6])], 1)
    print(deviation(found, expected))
    print("noise floor of the model: 1.2e-07 relative")
    <BLANKLINE>
    """
    writer = _Writer(model, claim, route)
    writer.expect()
    writer.restart(apart=apart)
    writer.find()
    body = "\n".join(writer.lines)
    head = [
        f"# {claim}, {route}",
        *(["import copy"] if "copy.deepcopy" in body else []),
        "import torch",
        f"from safetensors.torch import {'load, load_file, save' if 'load(save(' in body else 'load_file'}",
        *(["import statecheck as sc"] if any("sc." in line for line in recipe) else []),
        "from statecheck.deviation import deviation",
        "",
        "torch.set_grad_enabled(False)",
        *_loading(body, model.facts.device),
        *recipe,
        "",
        *([CALL] if "call(" in body else []),
    ]
    told = f'print("noise floor of the model: {floor:.2g} relative")'
    return "\n".join([*head, body, "print(deviation(found, expected))", told, ""])


def _loading(body: str, device: str) -> list[str]:
    """Lines for the sequences that the others name."""
    loaded = f'load_file("{INPUTS}"' + ("" if device == "cpu" else f', device="{device}"') + ")"
    names = [name for name in NAMES if re.search(rf"\b{name}\b", body)]
    if names == ["x"]:
        return [f'x = {loaded}["x"]']
    values = ", ".join(f'data["{name}"]' for name in names)
    return [f"data = {loaded}", f"{', '.join(names)} = {values}"]


@dataclass
class _Writer:
    """Lines for one claim. `cold`: the model holds no history at this line."""

    model: StatefulModel
    claim: Claim
    route: str
    lines: list[str] = field(default_factory=list)
    cold: bool = True
    pending: list[str] = field(default_factory=list)  # outputs of calls that are heard, not yet in a line
    outputs: int = 0

    # The two sides ---------------------------------------------------------------------------------------------------

    def expect(self) -> None:
        """expected = ..."""
        if not self.claim.expected:
            asked = [whole for call in wholes(self.claim) for whole in call]
            self.assign("expected", [self.recorded(whole, last=whole is asked[-1]) for whole in asked])
            return
        first, *others = self.claim.expected
        alike = others and all(history.operations == first.operations for history in others)
        if alike and all(len(history.of) == 1 for history in self.claim.expected):
            rows = ", ".join(str(history.of[0]) for history in self.claim.expected)
            self.lines += ["expected = []", f"for row in ({rows}):"]
            before, self.lines = self.lines, []
            self.restart(apart=False, sure=True)
            self.lines.append(f"expected.extend({self.joined(self.played(first, spec='row : row + 1'), first)})")
            self.lines = [*before, *(f"    {line}" for line in self.lines)]
            return
        parts = []
        for history in self.claim.expected:
            self.restart(apart=False)
            parts.append(self.joined(self.played(history), history))
            if history is not self.claim.expected[-1]:
                parts = [*parts[:-1], self.named(parts[-1])]
        self.assign("expected", parts)

    def find(self) -> None:
        """found = ..."""
        parts = self.played(self.claim.found)
        if self.claim.expected:
            self.lines.append(f"found = {self.joined(parts, self.claim.found)}")
        else:
            self.assign("found", parts)

    def restart(self, *, apart: bool, sure: bool = False) -> None:
        """No history from here on; on a copy where the claim needs one or the model can't forget."""
        if apart:
            self.lines.append("model = model.rebuild()")
        elif not self.cold or sure:
            forgets = Capability.RESET in self.model.facts.capabilities
            self.lines.append("model.set_states(None)" if forgets else "model = model.rebuild()")
        self.cold = True

    def assign(self, name: str, parts: list[str]) -> None:
        """The rows of all parts, below each other."""
        self.lines.append(f"{name} = {parts[0] if len(parts) == 1 else '[' + ', '.join(f'*{p}' for p in parts) + ']'}")

    def named(self, expression: str) -> str:
        """A variable with this value: what comes later must not come before it."""
        if expression.isidentifier():
            return expression
        self.outputs += 1
        self.lines.append(f"part{self.outputs} = {expression}")
        return f"part{self.outputs}"

    def recorded(self, whole: Whole, *, last: bool) -> str:
        columns = [
            f"{'y' if first.other else 'x'}[{self.rows([piece.row for piece in column])}, {first.start}:{first.stop}]"
            for column in zip(*whole.read, strict=True)
            for first in column[:1]
        ]
        read = sum(piece.stop - piece.start for piece in whole.read[0])
        outputs = self.whole(_cat(columns, 1)) + ("" if read == whole.last else f"[:, {-whole.last}:]")
        return outputs if last else self.named(outputs)

    # One history ------------------------------------------------------------------------------------------------------

    def played(self, history: History, spec: str = "") -> list[str]:
        """The outputs that are heard, as expressions; lines for all that comes before the last of them."""
        record = Record(Batch.of(begin(history, self.claim.rows)))
        self.pending = []
        for i, operation in enumerate(history.operations):
            if isinstance(operation, Feed):
                self.feed(operation, record.batch, history, spec)
            else:
                later = any(isinstance(o, Slot) and o == operation for o in history.operations[i + 1 :])
                self.say(*self.done(operation, record.batch, history, later=later))
            record.do(operation)
        return self.pending

    def say(self, *lines: str) -> None:
        """Lines, behind those of the outputs that were heard before."""
        if lines:
            self.flush()
            self.lines += lines

    def flush(self) -> None:
        """Lines for the outputs that were heard before."""
        self.pending = [self.named(part) for part in self.pending]

    def feed(self, feed: Feed, batch: Batch, history: History, spec: str) -> None:
        inputs, mask = self.inputs(feed, batch, history, spec)
        if feed.word == "whole":
            outputs = self.whole(inputs, mask if feed.padded else "")
        else:
            outputs = f"{self.caller()}({inputs}{mask and f', mask={mask}'})"
            self.cold = False
        if not feed.heard:
            self.say(outputs)
            return
        chosen = [row for row, free in enumerate(batch.free) if not free]
        some = f"[{chosen}]" if any(batch.free) else ""
        if feed.padded:
            outputs = f"[row[real] for row, real in zip({outputs}{some}, mask{some})]"
        else:
            outputs += some + (f"[:, :{feed.first}]" if feed.first else "")
        self.pending.append(outputs)

    def caller(self) -> str:
        """The model, or `call` where a state goes out and in on the functional route."""
        return "model" if self.cold or self.route == "native" else "call"

    def whole(self, inputs: str, mask: str = "") -> str:
        if native_of(self.model).uncached is not None:
            return f"model.native.uncached({inputs}, {mask or None})"
        if not self.cold:
            self.flush()
            self.restart(apart=False)
        self.cold = False
        return f"model({inputs}{mask and f', mask={mask}'})"

    def inputs(self, feed: Feed, batch: Batch, history: History, spec: str) -> tuple[str, str]:
        """Expressions for the inputs of a call and its mask, "" for none."""
        name, width = "y" if feed.word == "other" else "x", feed.stop - feed.start
        if feed.padded:
            self.say(f"inputs = {self.padded(feed, batch, name)}", f"mask = {self.mask(feed, batch)}")
            return "inputs", "mask"
        mask = f"torch.ones({len(batch.rows)}, {width}{self.on}).bool()" if history.padded else ""
        rows = spec or self.rows(batch.rows)
        if rows == ":" and (feed.start, feed.stop) == (0, self.claim.length):
            return name, mask
        return f"{name}[{rows}, {feed.start}:{feed.stop}]", mask

    def padded(self, feed: Feed, batch: Batch, name: str) -> str:
        rows = []
        for i, count in enumerate(own(feed, len(batch.rows))):
            row, left, width = batch.rows[i], feed.left[i] if feed.left else 0, feed.stop - feed.start
            parts = [
                f"pad[{row}, :{left}]" if left else "",
                f"{name}[{row}, {feed.start}:{feed.start + count}]",
                f"pad[{row}, {left + count}:{width}]" if left + count < width else "",
            ]
            rows.append(_cat([part for part in parts if part], 0))
        return f"torch.stack([{', '.join(rows)}])"

    def mask(self, feed: Feed, batch: Batch) -> str:
        width, counts = feed.stop - feed.start, own(feed, len(batch.rows))
        lefts = list(feed.left or (0,) * len(counts))
        bounds = [f">= torch.tensor({[[left] for left in lefts]}{self.on})"] if any(lefts) else []
        if any(feed.right):
            ends = [[left + count] for left, count in zip(lefts, counts, strict=True)]
            bounds.append(f"< torch.tensor({ends}{self.on})")
        sides = [f"torch.arange({width}{self.on}) {bound}" for bound in bounds]
        return sides[0] if len(sides) == 1 else " & ".join(f"({side})" for side in sides)

    @property
    def on(self) -> str:
        return "" if self.model.facts.device == "cpu" else ", device=x.device"

    def rows(self, rows: Sequence[int]) -> str:
        """Rows of the sequences as an index: a slice where they are one."""
        first, last = rows[0], rows[-1]
        if list(rows) != list(range(first, last + 1)):
            return str(list(rows))
        start, stop = ("" if first == 0 else first), ("" if last + 1 == self.claim.rows else last + 1)
        return f"{start}:{stop}"

    # Operations -------------------------------------------------------------------------------------------------------

    def done(self, operation: Operation, batch: Batch, history: History, *, later: bool) -> list[str]:
        """Lines for an operation; `later`: it comes again."""
        native = self.route == "native"
        match operation:
            case Rows(index):
                if native:
                    return [f"model.native.reorder(torch.tensor({list(index)}{self.on}))"]
                chosen = f"{{name: value[{list(index)}] for name, value in model.get_states().items()}}"
                return [f"model.set_states({chosen})"]
            case Crop(length):
                return [f"model.native.crop({length})"]
            case Forget():
                self.cold = True
                return ["model.native.reset()" if native else "model.set_states(None)"]
            case Lose():
                self.cold = True
                return ["model.set_states(None)"]
            case Move():
                return [f"state, model = {self.held}, model.rebuild()", self.give("state")]
            case Slot(word, name):
                return self.slot(word, name, later=later)
            case Admit(row, start, stop):
                asked = f"x[{self.rows([batch.rows[row]])}, {start}:{stop}]"
                mask = f", mask=torch.ones(1, {stop - start}{self.on}).bool()" if history.padded else ""
                seated = f"torch.cat([value[:{row}], request[name], value[{row + 1}:]])"
                return [
                    "batch = model.get_states()",
                    "model.set_states(None)",
                    f"model({asked}{mask})",
                    "request = model.get_states()",
                    f"model.set_states({{name: {seated} for name, value in batch.items()}})",
                ]
        return []

    def slot(self, word: str, name: str, *, later: bool) -> list[str]:
        native = self.route == "native"
        if word == "copy":
            return [f"{name} = copy.deepcopy({self.held})" if native else f"{name} = {self.held}"]
        if word == "file" and native:
            return [f'torch.save({self.held}, "{name}.pt")', f'{name} = torch.load("{name}.pt", weights_only=False)']
        if word == "file":
            return [f"{name} = load(save({{n: value.contiguous() for n, value in {self.held}.items()}}))"]
        if word == "park":
            self.cold = True
            return [f"{name} = {self.held}", "model.set_states(None)"]
        self.cold = False
        if word == "take" or not later:
            return [self.give(name)]
        copied = f"copy.deepcopy({name})" if native else f"{{n: value.clone() for n, value in {name}.items()}}"
        return [self.give(copied)]

    @property
    def held(self) -> str:
        return "model.native.held()" if self.route == "native" else "model.get_states()"

    def give(self, state: str) -> str:
        return f"model.native.hold({state})" if self.route == "native" else f"model.set_states({state})"

    def joined(self, parts: list[str], history: History) -> str:
        """The outputs of calls one after another, single steps in a row as a loop."""
        if len(parts) == 1:
            return parts[0]
        if history.padded:
            return f"[torch.cat(rows) for rows in zip({', '.join(map(self.named, parts))})]"
        return _cat(_folded(parts), 1)


def _cat(parts: list[str], dimension: int) -> str:
    if len(parts) == 1 and not parts[0].startswith("*"):
        return parts[0]
    return f"torch.cat([{', '.join(parts)}]{', 1' if dimension else ''})"


def _folded(parts: list[str]) -> list[str]:
    """Calls like model(x[:, 5:6]), model(x[:, 6:7]), ... as one loop."""
    found: list[tuple[str, int | None]] = []
    for part in parts:
        head, _, span = part.removesuffix("])").rpartition(", ")
        start, _, stop = span.partition(":")
        single = part.endswith("])") and start.isdigit() and stop.isdigit() and int(stop) == int(start) + 1
        found.append((head, int(start)) if single else (part, None))
    folded = []
    for (head, along), group in groupby(enumerate(found), lambda item: _key(*item)):
        run = list(group)
        times = [time for _, (_, time) in run if time is not None]
        if along is None or len(run) < FEWEST_TO_FOLD:
            folded += [parts[i] for i, _ in run]
        else:
            folded.append(f"*({head}, t : t + 1]) for t in range({times[0]}, {times[-1] + 1}))")
    return folded


def _key(index: int, part: tuple[str, int | None]) -> tuple[str, int | None]:
    """The same for steps that follow one another."""
    head, time = part
    return head, None if time is None else time - index
