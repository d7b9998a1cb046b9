"""The one door of all checks: :func:`run_item`. The command line, `check_model` and pytest go through it alike.

Whatever a check or the model does, an Outcome comes back: a missing capability is SKIP, what the model raised is FAIL,
any other fault is ERROR with its place. Only a wrong suite option (UsageError) and KeyboardInterrupt pass through.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statecheck.catalogue import ItemEntry, suggest
from statecheck.errors import CapabilityMissing, ContractError, ModelRaised, StatecheckError, UsageError
from statecheck.suite import SuiteItem
from statecheck.verdict import Absence, Outcome, Status
from statecheck.wording import listed, one_line, raised

if TYPE_CHECKING:
    from statecheck.probes.contract import Evidence

log = logging.getLogger("statecheck")
PACKAGE = Path(__file__).parent


def run_item(entry: ItemEntry, item: SuiteItem, evidence: Evidence) -> Outcome:
    """What the check `entry` brings on `evidence` with the options of the suite's `item`. Nothing is judged here.

    The model runs in evaluation mode without gradients (a check turns them on where it needs them). A check that
    leaves parameters, dtypes or hooks of the model changed is ERROR: all later numbers would be of another model.
    Raises :class:`UsageError` for an option that the check does not know.
    """
    from statecheck.guard import borrowed

    module = getattr(evidence.model, "module", None)
    with borrowed(module, seed=evidence.seed) as loan:
        outcome = _attempt(entry, item, evidence)
    if evidence.effort.case:
        outcome = _of_the_case(outcome, item)
    if not loan.changed or any(absence.name == item.id for absence in outcome.absences):
        return outcome
    return _absent(
        item,
        Status.ERROR,
        f"left the model otherwise than it found it: {listed(loan.changed)}; a check must put back what it changes,"
        " and a model that writes its own parameters when it is called can't be checked",
    )


def check_options(function: Callable[..., Any], item: SuiteItem) -> None:
    """Raise :class:`UsageError` for an option of the suite that the check does not take, with the closest that it does.

    >>> check_options(lambda evidence, lag=64: None, SuiteItem("X1", True, {"lagg": 3}, ()))
    Traceback (most recent call last):
    statecheck.errors.UsageError: item X1 has no option 'lagg'; did you mean lag?
    """
    known = list(inspect.signature(function).parameters)[1:]
    for name in item.options:
        if name not in known:
            hint = suggest(name, known) if known else "; it takes none"
            raise UsageError(f"item {item.id} has no option {name!r}{hint}")


def _attempt(entry: ItemEntry, item: SuiteItem, evidence: Evidence) -> Outcome:
    try:
        function = entry.load()
        check_options(function, item)
        outcome = function(evidence, **item.options)
    except UsageError:
        raise
    except CapabilityMissing as error:
        return _absent(item, Status.SKIP, one_line(error))
    except (ModelRaised, ContractError) as error:
        return _absent(item, *_blame(error))
    except SystemExit as error:
        return _absent(item, Status.ERROR, f"the model exited the process (sys.exit({error.code!r})) while it ran")
    except Exception as error:
        log.debug("%s failed", item.id, exc_info=True)
        return _absent(item, Status.ERROR, f"{raised(error)}{_place(error)}")
    if isinstance(outcome, Outcome):
        return outcome
    found = type(outcome).__name__
    return _absent(item, Status.ERROR, f"{entry.target} returned {found}: a check returns a statecheck.Outcome")


def _of_the_case(outcome: Outcome, item: SuiteItem) -> Outcome:
    """Parts of an item that have nothing to do with the one case that was asked for."""
    found = {number.name for number in outcome.measurements} | {absence.name for absence in outcome.absences}
    if item.id in found:
        return outcome
    others = dict.fromkeys(criterion.measurement for criterion in item.criteria)
    reason = "another case was asked for"
    absent = (Absence(name, Status.NOT_APPLICABLE, reason) for name in others if name not in found)
    return replace(outcome, absences=(*outcome.absences, *absent))


def _blame(error: StatecheckError) -> tuple[Status, str]:
    """FAIL with what the model did; a machine that has no memory left is no fault of the model."""
    log.debug("the model failed", exc_info=error)
    cause = error.__cause__
    if isinstance(cause, MemoryError) or "allocate memory" in str(cause) or "out of memory" in str(cause):
        return Status.ERROR, f"not enough memory: {one_line(cause)}"
    return Status.FAIL, one_line(error)


def _place(error: BaseException) -> str:
    """Where an exception comes from: the innermost line of statecheck in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    if not ours:
        return ""
    return f" ({Path(ours[-1].filename).relative_to(PACKAGE.parent).as_posix()}:{ours[-1].lineno})"


def _absent(item: SuiteItem, status: Status, reason: str) -> Outcome:
    return Outcome(absences=(Absence(item.id, status, reason),))
