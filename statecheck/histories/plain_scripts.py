"""A claim as a script of the library's own calls, without statecheck: what a maintainer can paste, read and run.

    out1 = model(input_ids=x[:, 0:7], use_cache=False)
    out2 = model(input_ids=x[:, 0:5], use_cache=True)
    out3 = model(input_ids=x[:, 5:7], use_cache=True, past_key_values=out2.past_key_values)

    expected = out1.logits[:, 5:]
    found = out3.logits

The calls are those that were made while the claim was played on the native route: a
:class:`statecheck.protocol.Transcript`. Here they are put in order, with what is compared of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from statecheck.deviation import Deviation, deviation
from statecheck.errors import ModelRaised, NotOffered
from statecheck.histories.operations import Claim, Feed, History
from statecheck.histories.playing import Sequences, sides
from statecheck.histories.recorded import Batch, Record, begin, own, wholes
from statecheck.protocol import StatefulModel, Transcript, native_of

END = """\
for row, (e, f) in enumerate(zip(expected, found)):
    error = (f - e).norm(dim=-1) / e.norm(dim=-1)
    print(f"row {row}: relative error of each position", [float(f"{value:.1e}") for value in error])
    wrong = int((error / error.max() >= 0.5).int().argmax())
    print(f"  position {wrong}: expected", e[wrong, :4].tolist(), "found", f[wrong, :4].tolist())
"""
Span = tuple[int, int | None]  # of the outputs of a row: from, to; None is the end


@dataclass(frozen=True)
class _Call:
    """Outputs of a call that are compared: of each row of its batch; None of a row that is not heard."""

    number: int
    spans: tuple[Span | None, ...]

    @property
    def alike(self) -> bool:
        """True if of all rows the same is heard."""
        return len(set(self.spans)) == 1 and None not in self.spans


Group = list[_Call]  # one after another


def plain_script(
    model: StatefulModel, claim: Claim, folder: Path | None, *, said: str = "", apart: bool = False
) -> tuple[str, Deviation]:
    """The script, and the deviation that it shows.

    Without `folder` it is of a model with random weights, which may keep the claim; else the weights are saved there.
    `said` is what the script begins with; `apart` as of :func:`statecheck.histories.playing.sides`.

    Raises :class:`NotOffered` where the calls of this model can't be written down, and :class:`CapabilityMissing`
    where there is nothing to compare with.
    """
    transcribed = native_of(model).transcribed
    if transcribed is None:
        raise NotOffered("calls of this model are not written down")
    sequences = Sequences.of(model, claim)
    twin, transcript = transcribed({"x": sequences.x, "y": sequences.y}, folder)
    try:
        with torch.no_grad():
            found, expected = sides(twin, claim, "native", apart=apart)
        shown, end = deviation(found, expected), _compared(claim, transcript.calls)
    except ModelRaised as error:
        shown, end = Deviation(float("inf"), str(error)), _wrong_by_itself(transcript, error)
    return "\n".join([*_head(said, claim, transcript, sequences), *transcript.lines, "", *end, ""]), shown


def _head(said: str, claim: Claim, transcript: Transcript, sequences: Sequences) -> list[str]:
    lines = "\n".join(transcript.lines)
    named = [name for name in ("x", "y") if f"{name}[" in lines]
    told = [line for line in transcript.recipe if line.startswith("#")]
    return [
        *([f"# {said}"] if said else []),
        *told,
        f"# case: {claim}",
        *(["import copy"] if "copy.deepcopy" in lines else []),
        "import torch",
        *(["import transformers"] if "transformers." in lines else []),
        *transcript.recipe[len(told) :],
        "",
        "",
        "torch.set_grad_enabled(False)",
        *(f"{name} = torch.tensor({getattr(sequences, name).tolist()})" for name in named),
    ]


def _wrong_by_itself(transcript: Transcript, error: ModelRaised) -> list[str]:
    """The last call raises, or gives another shape than its inputs ask for."""
    told = f"# {error}"
    if error.__cause__ is not None or not transcript.calls[-1]:
        return [told.replace("# the model raised", "# the line above raises")]
    return [told, f'print("shape", tuple({transcript.calls[-1]}.shape))']


def _compared(claim: Claim, calls: Sequence[str]) -> list[str]:
    """Lines for what is expected, what was found, and how far they are apart."""
    expected, found = _heard(claim)
    return [f"expected = {_written(expected, calls)}", f"found = {_written(found, calls)}", *END.splitlines()]


def _heard(claim: Claim) -> tuple[list[Group], list[Group]]:
    """What is compared, as groups of calls, numbered in the order of :func:`statecheck.histories.playing.sides`."""
    expected: list[Group] = []
    made = 0
    for history in claim.expected:
        expected.append(_heard_in(history, claim.rows, made))
        made += sum(isinstance(operation, Feed) for operation in history.operations)
    for whole in () if claim.expected else [whole for call in wholes(claim) for whole in call]:
        read = sum(piece.stop - piece.start for piece in whole.read[0])
        span = (0 if read == whole.last else -whole.last, None)
        expected.append([_Call(made, (span,) * len(whole.read))])
        made += 1
    found = _heard_in(claim.found, claim.rows, made)
    return expected, [found] if claim.expected else [[call] for call in found]


def _heard_in(history: History, rows: int, made: int) -> Group:
    record = Record(Batch.of(begin(history, rows)))
    group = []
    for operation in history.operations:
        if isinstance(operation, Feed):
            if operation.heard:
                group.append(_Call(made, _spans(operation, record.batch)))
            made += 1
        record.do(operation)
    return group


def _spans(feed: Feed, batch: Batch) -> tuple[Span | None, ...]:
    counts = own(feed, len(batch.rows))
    spans: list[Span | None] = []
    for row, (count, free) in enumerate(zip(counts, batch.free, strict=True)):
        left = feed.left[row] if feed.left else 0
        stop = left + min(count, feed.first or count)
        spans.append(None if free else (left, None if stop == feed.stop - feed.start else stop))
    return tuple(spans)


def _written(groups: list[Group], calls: Sequence[str]) -> str:
    """Groups below each other: tensors (batch, time, features) where all rows are alike, else lists of rows."""
    parts = [_group(group, calls) for group in groups]
    return parts[0] if len(parts) == 1 else f"[{', '.join(f'*{part}' for part in parts)}]"


def _group(group: Group, calls: Sequence[str]) -> str:
    if all(call.alike for call in group):
        return _cat([calls[call.number] + _index(call.spans[0], all_rows=True) for call in group], ", 1")
    rows = [
        _cat([f"{calls[call.number]}[{row}]{_index(call.spans[row])}" for call in group], "")
        for row, span in enumerate(group[0].spans)
        if span is not None
    ]
    return f"[{', '.join(rows)}]"


def _cat(parts: list[str], dimension: str) -> str:
    return parts[0] if len(parts) == 1 else f"torch.cat([{', '.join(parts)}]{dimension})"


def _index(span: Span | None, *, all_rows: bool = False) -> str:
    assert span is not None
    start, stop = span
    if not start and stop is None:
        return ""
    written = f"{start or ''}:{'' if stop is None else stop}"
    return f"[:, {written}]" if all_rows else f"[{written}]"
