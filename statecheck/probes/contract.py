"""The contract of a probe: a function of :class:`Evidence` and named options that returns an Outcome.

    @probe("X1", "What it asks")
    def my_probe(evidence: Evidence, *, threshold_free_option: int = 3) -> Outcome: ...

Probes measure; they hold no thresholds and give no verdicts. Each draws its random numbers from its own generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from statecheck.adapters.contract import quiet
from statecheck.errors import CapabilityMissing, InputRefused
from statecheck.protocol import Capability, ModelFacts, StatefulModel
from statecheck.recording import Record, Schedule, record
from statecheck.statistics import Estimate
from statecheck.verdict import Absence, Measurement, Outcome, Status, Where

ASSUMED_TRAINING_LENGTH = 256
ENOUGH_DOCUMENTS = 16
MOST_DOCUMENTS = 32  # of the shared trace; D4 takes what it needs

Probe = TypeVar("Probe", bound=Callable[..., Outcome])
Found = TypeVar("Found")


@dataclass(frozen=True)
class Label:
    """What `@probe` puts on a function: the catalogue's row, without its target."""

    id: str
    title: str
    needs: tuple[str, ...]
    cost: str


def probe(id: str, title: str, *, needs: Sequence[str] = ("states",), cost: str = "") -> Callable[[Probe], Probe]:
    """Label a function as a probe. It registers nothing: pass the function on, or name it in an entry point.

    >>> @probe("X1", "An example")
    ... def example(evidence):
    ...     return Outcome()
    >>> example.statecheck_label.id
    'X1'
    """

    def mark(function: Probe) -> Probe:
        function.statecheck_label = Label(id, title, tuple(needs), cost)  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True)
class Effort:
    """What a search may take on each route of a law, in seconds of its thread; `case`: the one claim to look at."""

    examples: int = 40
    seconds: float = 10.0
    case: str = ""


@dataclass
class Evidence:
    """A model and what it is run on. `rows` are documents: (time,) ids or (time, features) vectors each.

    `natural` says that the rows are real sequences, whose next element is worth predicting; on seeded tokens a check
    that needs text is SKIP. The shared trace is made once and kept.
    """

    model: StatefulModel
    rows: tuple[Tensor, ...]
    source: str
    natural: bool
    seed: int = 0
    training_log: Path | None = None
    notes: tuple[str, ...] = ()
    effort: Effort = Effort()
    _records: dict[Schedule, Record] = field(default_factory=dict, repr=False)
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def facts(self) -> ModelFacts:
        """The facts of the model."""
        return self.model.facts

    @property
    def training_length(self) -> int:
        """T_tr in tokens: what the facts say, else 256."""
        return self.facts.training_length or ASSUMED_TRAINING_LENGTH

    def generator(self, name: str) -> np.random.Generator:
        """Random numbers for one purpose: the same for the same (seed, name), whatever else is run."""
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

    def streams(self, length: int, *, most: int = MOST_DOCUMENTS, name: str = "trace") -> Tensor:
        """(n, length) or (n, length, features): one seeded window of each document, n <= `most`.

        A document shorter than `length` is continued with others in a seeded order, as in training streams.
        """
        generator = self.generator(name)
        chosen = sorted(generator.permutation(len(self.rows))[:most].tolist())
        windows = [self._window(i, length, generator) for i in chosen]
        return torch.stack(windows).to(self.facts.device)

    def _window(self, index: int, length: int, generator: np.random.Generator) -> Tensor:
        row = self.rows[index]
        if len(row) >= length:
            start = int(generator.integers(0, len(row) - length + 1))
            return row[start : start + length]
        pieces, have = [row], len(row)
        while have < length:
            piece = self.rows[int(generator.integers(0, len(self.rows)))]
            pieces.append(piece)
            have += len(piece)
        return torch.cat(pieces)[:length]

    def once(self, name: str, make: Callable[[], Found]) -> Found:
        """What `make` brings, made at the first call under this name: an experiment that several items read."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def record(self, schedule: Schedule) -> Record:
        """The shared trace on this schedule; made at the first call. Its random numbers come from (seed, "trace")."""
        if schedule not in self._records:
            self._records[schedule] = record(self.model, self.streams(schedule.final), schedule)
        return self._records[schedule]

    def standard_record(self, *, final: float = 4.0) -> Record:
        """The shared trace of phase 3.9: T0 = T_tr, T = 4 T_tr, W = T_tr / 8, lag 64, from T_tr / 4 on.

        Where the model stops taking input before 4 T_tr, the trace ends at 2 T_tr, or where that fails as well.
        """
        result = self.record(self.schedule(final=final))
        return result if result.ended is None or final <= 2 else self.record(self.schedule(final=2.0))

    @property
    def most_tokens(self) -> int:
        """Tokens that the model is known to take from no history: 4 T_tr, or fewer where the shared trace ended."""
        whole = self.record(self.schedule())
        return whole.schedule.final if whole.ended is None else whole.ended[0]

    def schedule(self, *, final: float = 4.0) -> Schedule:
        """The positions of the shared trace; lengths in units of the training length."""
        return Schedule.of(self.training_length, baseline=1.0, final=final, window=0.125, lag=64, start=0.25)

    def unfit(self, names: Sequence[str], record: Record, needed: int) -> tuple[Absence, ...]:
        """INCONCLUSIVE for each of `names` if documents are too few or the trace ended before `needed`; else ()."""
        if not record.groups:
            reason = "no recurrent matrix or vector among the states (KV, convolution windows and flags are left out)"
            return tuple(Absence(name, Status.NOT_APPLICABLE, reason) for name in names)
        if record.reached < needed:
            why = "states are not finite" if record.nonfinite else "the model takes no more input"
            return tuple(Absence(name, Status.INCONCLUSIVE, f"{why} after token {record.reached}") for name in names)
        return self.too_few(names, record.n)

    def incomparable(self, names: Sequence[str]) -> tuple[Absence, ...]:
        """NOT_APPLICABLE for each of `names` if the model has one component; () if there are two or more."""
        components = list(self.facts.components)
        if len(components) > 1:
            return ()
        reason = f"the model has one component ({', '.join(components)}): there is nothing to compare it with"
        return tuple(Absence(name, Status.NOT_APPLICABLE, reason) for name in names)

    def too_few(self, names: Sequence[str], n: int | None = None) -> tuple[Absence, ...]:
        """INCONCLUSIVE for each of `names` if there are under 16 documents; () if there are enough."""
        have = len(self.rows) if n is None else n
        if have >= ENOUGH_DOCUMENTS:
            return ()
        reason = f"{have} documents: an interval over documents needs at least {ENOUGH_DOCUMENTS}"
        return tuple(Absence(name, Status.INCONCLUSIVE, reason) for name in names)

    def measure(
        self, name: str, estimate: Estimate, where: Where | None = None, *, unit: str = "", note: str = ""
    ) -> Measurement:
        """A measurement from an estimate, with this evidence's seed."""
        e = estimate
        where = where or Where()
        return Measurement(name, e.value, unit, where, e.low, e.high, e.n, self.seed, e.intervals, note)

    def require_text(self) -> None:
        """Raise :class:`CapabilityMissing` (SKIP) unless there are real sequences and a loss."""
        if not self.natural:
            raise CapabilityMissing(f"needs text or the user's own sequences; this run is on {self.source}")
        if self.facts.loss is None:
            width = f"outputs have width {self.facts.output_width}, inputs {self.facts.width or self.facts.vocabulary}"
            raise CapabilityMissing(f"needs a loss and none is declared: {width}; say wrap(..., loss=...)")


@contextmanager
def lent(model: StatefulModel) -> Iterator[None]:
    """A model for the time of a measurement outside of a run: evaluation mode, no gradients.

    Its modes, its states (none where it held none) and the global random numbers are put back.
    """
    module = getattr(model, "module", None)
    before = model.get_states()
    try:
        with quiet(module) if isinstance(module, torch.nn.Module) else nullcontext():
            yield
    finally:
        if before and Capability.SET_STATES in model.facts.capabilities:
            model.set_states(before)
        elif Capability.RESET in model.facts.capabilities:
            model.set_states(None)


def gather(
    model: StatefulModel,
    inputs: Tensor | Sequence[Tensor] | None,
    *,
    seed: int = 0,
    source: str | None = None,
    training_log: Path | None = None,
    notes: Sequence[str] = (),
) -> Evidence:
    """The evidence for a run: documents that were given, else seeded tokens or vectors.

    `inputs` are rows (batch, time) or (batch, time, features), or a sequence of documents. Raises
    :class:`InputRefused` if they do not fit the model's facts.
    """
    facts = model.facts
    extra = [] if facts.training_length else [f"training length assumed to be {ASSUMED_TRAINING_LENGTH} tokens"]
    if inputs is None:
        rows, made = _seeded(facts, seed)
        return Evidence(model, rows, source or made, False, seed, training_log, (*notes, *extra))
    rows = tuple(torch.as_tensor(row) for row in inputs)
    _fit(rows, facts)
    kind = torch.int64 if facts.inputs == "tokens" else getattr(torch, facts.dtype)
    rows = tuple(row.detach().to(kind) for row in rows)
    said = source or f"{len(rows)} sequences of the caller"
    return Evidence(model, rows, said, True, seed, training_log, (*notes, *extra))


def _seeded(facts: ModelFacts, seed: int) -> tuple[tuple[Tensor, ...], str]:
    length = 4 * (facts.training_length or ASSUMED_TRAINING_LENGTH) + 33
    generator = torch.Generator().manual_seed(seed)
    if facts.inputs == "tokens":
        assert facts.vocabulary is not None
        ids = torch.randint(0, facts.vocabulary, (MOST_DOCUMENTS, length), generator=generator)
        return tuple(ids), f"seeded uniform tokens of its vocabulary of {facts.vocabulary} (no text was given)"
    assert facts.width is not None
    vectors = torch.randn(MOST_DOCUMENTS, length, facts.width, generator=generator)
    return tuple(
        vectors.to(getattr(torch, facts.dtype))
    ), f"seeded normal vectors of width {facts.width} (no data was given)"


def _fit(rows: Sequence[Tensor], facts: ModelFacts) -> None:
    if not rows or any(row.dim() == 0 or len(row) < 2 for row in rows):
        raise InputRefused("inputs: expected at least one sequence of 2 elements or more in each row")
    dimensions = {row.dim() for row in rows}
    if facts.inputs == "tokens":
        if dimensions != {1} or any(row.is_floating_point() for row in rows):
            raise InputRefused(
                f"inputs: expected integer token ids (batch, time), found {rows[0].dtype} {tuple(rows[0].shape)} rows"
            )
        low, high = min(int(r.min()) for r in rows), max(int(r.max()) for r in rows)
        if low < 0 or high >= (facts.vocabulary or 0):
            raise InputRefused(f"inputs: ids {low} .. {high}, but the vocabulary is 0 .. {(facts.vocabulary or 0) - 1}")
    elif dimensions != {2} or any(row.shape[1] != facts.width for row in rows):
        raise InputRefused(
            f"inputs: expected vectors (batch, time, {facts.width}), found rows of shape {tuple(rows[0].shape)}"
        )
    elif not all(bool(torch.isfinite(row).all()) for row in rows):
        raise InputRefused("inputs: expected finite vectors, found NaN or infinity in them")
