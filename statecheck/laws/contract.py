"""The contract of a law: a statement that must hold for every history, and the search for one that breaks it.

    @probe("STEP", "Prefill, then one element at a time, equals one whole call")
    def steps(evidence: Evidence) -> Outcome: ...

A law draws claims (:mod:`statecheck.histories.operations`): that one history gives the outputs of another. Its *oracle*
is a history that can't share the fault: mostly one whole call of the model without a cache. Hypothesis draws claims at
the edges where faults of a state sit, and shrinks one that is broken to the simplest.

Each law is held on two *routes* (:mod:`statecheck.histories.playing`), reported apart: `STEP.native` and
`STEP.functional`. Laws measure in *floors*, the noise floor of this model (:mod:`statecheck.noise`); a suite says how
many are too many. What a law could have missed is measured as well: `seen` is what it reads when the state is dropped
before the last call, in floors. Where even that is small the law has shown nothing, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Generic, TypeVar

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

from statecheck.deviation import Deviation, deviation
from statecheck.errors import CapabilityMissing, ContractError, ModelRaised, NotOffered, StatecheckError
from statecheck.histories.drawing import LONGEST, MOST_ROWS, far_edges, values
from statecheck.histories.operations import Claim, Feed, History
from statecheck.histories.playing import ROUTES, Sequences, lacking, plain, play, rebuilt, sides
from statecheck.noise import Floor, noise_floor
from statecheck.probes.contract import Evidence, probe
from statecheck.protocol import Capability, ModelFacts
from statecheck.verdict import Absence, Measurement, Outcome, Status

__all__ = ["Evidence", "Outcome", "probe"]

#: Floors from which a deviation is worth shrinking; the suite `conformance` fails from there.
WORTH = 15.0
WORTH_OF_GRADIENTS = 30.0  # in floors of their own, which are measured less surely
FEWEST = 5  # cases that must be judged before none of them broke the law
CONTROLS, MOST_CONTROLS = 5, 40  # claims of each search on which the state is dropped; most where none moves

Case = TypeVar("Case", bound=Hashable)


@dataclass
class Search(Generic[Case]):
    """What a search brought: each case's deviation, and the simplest that is off by more than is worth shrinking."""

    floor: float
    deviations: dict[Case, Deviation] = field(default_factory=dict)
    unusable: dict[Case, StatecheckError] = field(default_factory=dict)
    simplest: Case | None = None
    ended_early: bool = False

    @property
    def worst(self) -> float:
        """The largest deviation, in floors."""
        return max((found.error for found in self.deviations.values()), default=0.0) / self.floor


def search(
    cases: SearchStrategy[Case],
    measure: Callable[[Case], Deviation],
    *,
    floor: float,
    random: Random,
    examples: int,
    seconds: float,
    worth: float = WORTH,
) -> Search[Case]:
    """Draw up to `examples` cases within `seconds`; shrink the first that is off by more than `worth` floors.

    A case for which `measure` raises can't be judged. The same `random` brings the same
    cases; when time runs out, no case is measured any more. Time is that of this thread, so that a busy machine does
    not end a search.
    """
    result: Search[Case] = Search(floor)
    end = time.thread_time() + seconds

    def broken(case: Case) -> bool:
        if case in result.unusable:
            return False
        if case not in result.deviations:
            if time.thread_time() > end:
                result.ended_early = True
                return False
            try:
                result.deviations[case] = measure(case)
            except (CapabilityMissing, ModelRaised) as error:
                result.unusable[case] = error
                return False
        return result.deviations[case].error > worth * floor

    quiet = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    with suppress(NoSuchExample):
        result.simplest = find(cases, broken, settings=quiet, random=random)
    return result


def floor_of(evidence: Evidence) -> Floor:
    """The noise floor of the model, measured once for all laws."""
    length = max([LONGEST, *far_edges(evidence.facts)])
    inputs = values(evidence.facts, MOST_ROWS, length, seed=evidence.seed)
    return evidence.once("noise floor", lambda: noise_floor(evidence.model, inputs, seed=evidence.seed))


def hold(
    evidence: Evidence,
    code: str,
    claims: SearchStrategy[Claim],
    *,
    routes: Sequence[str] = ROUTES,
    apart: bool = False,
    part: str = "",
    trusting: bool = False,
) -> Outcome:
    """Search for a broken claim on each of `routes`: `code`.native and `code`.functional, in floors.

    `apart`: what is expected is played on a copy of the model that never read; `part` names the measurement of a single
    route, `code`.`part`; `trusting`: what is expected is not held against whole calls. A route whose operation the
    library does not offer is NOT_APPLICABLE; one that lacks a capability, or whose time ran out before its examples
    did, is SKIP, unless a broken claim was found.
    """

    def measure(claim: Claim, route: str, *, trusting: bool = trusting) -> Deviation:
        absent = lacking(evidence.model, claim, route)
        if absent:
            raise NotOffered(f"the library offers no {absent} of its own")
        try:
            found = compared(evidence, claim, route, apart=apart)
        except ModelRaised as error:
            _blame_elsewhere(evidence, claim, route)
            return Deviation(float("inf"), str(error))
        if found.error > WORTH * floor_of(evidence).value and not trusting:
            _blame_the_expected(evidence, claim, route, apart=apart)
        return found

    def control(claim: Claim, route: str) -> float | None:
        forgetful = replace(claim, found=claim.found.forgetful())
        if forgetful != claim:
            with suppress(StatecheckError):
                return compared(evidence, forgetful, route, apart=apart).error
        return None

    names = {route: f"{code}.{part or route}" for route in routes}
    reasons = {route: _lacks(evidence.facts, route, apart=apart) for route in routes}
    if evidence.effort.case:
        claims = _only(evidence.effort.case)
    judged: list[Held | Absence] = []
    for route in routes:
        if reasons[route]:
            judged.append(Absence(names[route], Status.SKIP, reasons[route]))
            continue
        loss = partial(control, route=route)
        doubting, believing = (partial(measure, route=route, trusting=either) for either in (trusting, True))
        judged.append(run_search(evidence, names[route], claims, doubting, loss, otherwise=believing))
    return outcome_of(evidence, judged)


def compared(evidence: Evidence, claim: Claim, route: str, *, apart: bool = False) -> Deviation:
    """How far what was found is from what was expected. What the protocol breaks in a call is an infinite deviation."""
    try:
        found, expected = sides(evidence.model, claim, route, apart=apart)
    except ContractError as error:
        return Deviation(float("inf"), str(error))
    return deviation(found, expected)


def _blame_the_expected(evidence: Evidence, claim: Claim, route: str, *, apart: bool) -> None:
    """Raises :class:`ExpectedIsWrong` if what is expected disagrees with whole calls over what its rows have read."""
    calls = [o for history in (claim.found, *claim.expected) for o in history.operations if isinstance(o, Feed)]
    if any(o.word == "whole" or o.first for o in calls):
        return
    model = rebuilt(evidence.model) if apart else evidence.model
    for history in claim.expected:
        with suppress(ModelRaised, ContractError):
            wrong = deviation(*sides(model, replace(claim, found=history, expected=()), route))
            if wrong.error > WORTH * floor_of(evidence).value:
                raise ExpectedIsWrong(f"there is nothing to compare with: what is expected is {wrong}; see STEP")


class ExpectedIsWrong(CapabilityMissing):
    """The history that a claim compares with breaks a law of its own."""


def _blame_elsewhere(evidence: Evidence, claim: Claim, route: str) -> None:
    """Raises :class:`CapabilityMissing` if the model raises on parts of a claim that its statement is not about.

    These are the claim's other sequences alone, and one whole call over as many elements (longer than it can read).
    """
    model = evidence.model
    others = tuple(o for o in claim.found.operations if isinstance(o, Feed) and o.word == "other")
    try:
        if others:
            play(model, History(others, claim.found.of), Sequences.of(model, claim), route)
        plain(model, values(evidence.facts, 1, claim.length, claim.seed))
    except ModelRaised as error:
        raise CapabilityMissing(f"there is nothing to compare with: {error}") from error


@dataclass(frozen=True)
class Held:
    """A part of a law that was judged, and what else it tells."""

    measurement: Measurement
    shown: tuple[Measurement, ...] = ()
    broken: str = ""


def run_search(
    evidence: Evidence,
    name: str,
    cases: SearchStrategy[Case],
    measure: Callable[[Case], Deviation],
    control: Callable[[Case], float | None] = lambda case: None,
    floor: float | None = None,
    otherwise: Callable[[Case], Deviation] | None = None,
    worth: float = WORTH,
) -> Held | Absence:
    """One part of a law by search, and what it would have seen of a state that is dropped (`control`, relative).

    `floor` is that of the outputs, unless it is given: that of gradients, say. `otherwise` measures instead where no
    case has an expected side that is right. INCONCLUSIVE where hardly a case could be judged.
    """
    effort, floor = evidence.effort, floor or floor_of(evidence).value
    random = Random(int(evidence.generator(name).integers(2**32)))
    search_for = partial(
        search, cases, floor=floor, random=random, examples=effort.examples, seconds=effort.seconds, worth=worth
    )
    found = search_for(measure)
    if otherwise and not found.deviations and any(isinstance(e, ExpectedIsWrong) for e in found.unusable.values()):
        found = search_for(otherwise)
    examples = len(found.deviations)
    if found.simplest is not None:
        note = f"simplest: {found.simplest} gives {found.deviations[found.simplest]}"
        return Held(Measurement.exact(name, found.worst, unit="floors", n=examples, note=note), (), str(found.simplest))
    if found.ended_early:
        reason = f"not run to its end: time was up after {examples} examples"
        return Absence(name, Status.SKIP, reason, unfinished=True)
    if not examples:
        reasons = sorted(found.unusable.values(), key=lambda reason: not isinstance(reason, NotOffered))
        absent = Status.NOT_APPLICABLE if reasons and isinstance(reasons[0], NotOffered) else Status.SKIP
        return Absence(name, absent, str(reasons[0]) if reasons else "no example was drawn")
    if examples < min(FEWEST, effort.examples) and not effort.case:
        first = next(iter(found.unusable.values()), "few were drawn")
        reason = f"{examples} of {examples + len(found.unusable)} cases could be judged alone: {first}"
        return Absence(name, Status.INCONCLUSIVE, reason)
    judged = Measurement.exact(name, found.worst, unit="floors", n=examples)
    controls = _controls(list(found.deviations), control, worth * floor)
    if not controls:
        return Held(judged)
    seen = max(controls) / floor
    if seen < worth:
        reason = f"dropping the state moves the outputs by {seen:.2g} floors alone: this law sees nothing here"
        return Absence(name, Status.INCONCLUSIVE, reason)
    told = f"of a state that is dropped; the law sees what is {worth / seen:.1g} of that"
    return Held(judged, (Measurement.exact(f"{name}.seen", seen, unit="floors", note=told),))


def _controls(cases: Sequence[Case], control: Callable[[Case], float | None], enough: float) -> list[float]:
    """What dropping the state moves in the last of the cases; in more of them while that is not `enough`."""
    errors: list[float] = []
    for case in cases[: -MOST_CONTROLS - 1 : -1]:
        if len(errors) >= CONTROLS and max(errors) >= enough:
            break
        error = control(case)
        errors += [] if error is None else [error]
    return errors


def outcome_of(evidence: Evidence, parts: Sequence[Held | Absence]) -> Outcome:
    """The outcome of a law from its parts, with the noise floor that they are measured in."""
    held = [part for part in parts if isinstance(part, Held)]
    floor = floor_of(evidence)
    shown = [Measurement.exact("noise floor", floor.value, unit="relative", note=str(floor))] if held else []
    return Outcome(
        tuple(replace(part.measurement, broken=part.broken) for part in held),
        tuple(part for part in parts if isinstance(part, Absence)),
        (*shown, *(one for part in held for one in part.shown)),
    )


def _lacks(facts: ModelFacts, route: str, *, apart: bool) -> str:
    """Why a route can't be gone; "" if it can."""
    needed = [Capability.SET_STATES] if route == "functional" else []
    try:
        for capability in [*needed, *([Capability.REBUILD] if apart else [])]:
            facts.require(capability)
    except CapabilityMissing as missing:
        return str(missing)
    return ""


def _only(case: str) -> SearchStrategy[Claim]:
    from hypothesis import strategies as st

    return st.just(Claim.parse(case))
