"""The sentences of a report: the answer a person can act on, and what to do about each row that did not pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from statecheck.catalogue import ITEMS
from statecheck.gate import blocks
from statecheck.report.record import Report
from statecheck.verdict import Status, Verdict

#: What to do about a status, where the row's own reason does not say it.
REMEDIES = {
    Status.FAIL: "Fix what the reason names, run the same command again, and let `statecheck compare` judge the fix.",
    Status.WARN: "Between pass and fail: not a reason to stop by itself, but the gate does not open until it passes.",
    Status.INCONCLUSIVE: "The evidence is too thin to decide. More documents (or longer ones) narrow the interval.",
    Status.ERROR: "A fault of statecheck, of the machine or of a plug-in, not of the model. The same command runs what "
    "is missing again and keeps what is finished.",
    Status.STALE: "A failure that was expected no longer happens: take its mark away.",
}

#: What gives an item the evidence that it needs (`ItemEntry.needs`).
EVIDENCE = {
    "text": "give it text (`--data`, with `--tokenizer` where the model has none)",
    "training log": "give it the log of the training run (`--training-log`)",
    "components": "name the model's components, their parameters and modules (`sc.wrap(..., components=...)`)",
    "states": "let the model's `get_states()` return what it remembers",
}


Quote = Callable[[object], str]


def answer(report: Report, quote: Quote = str) -> str:
    """One paragraph: may this model be scaled, why or why not, and what to do next.

    What comes from the model, the suite or a plug-in goes through `quote`, which escapes it for the format at hand.
    """
    if report.exit_code == 5:
        return _nothing(report, quote)
    return {"PASS": _passed, "FAIL": _failed, "INCONCLUSIVE": _undecided}[report.verdict](report, quote)


def _passed(report: Report, quote: Quote) -> str:
    passed, absent = _with(report, Status.PASS), _with(report, Status.NOT_APPLICABLE)
    others = f" What {_items(absent, quote)} would measure can't exist for what this model declares." if absent else ""
    return (
        f"Proceed: {_number(passed, 'check')} of suite {_suite(report, quote)} passed on {_title(report, quote)}, and "
        f"none failed.{others} The verdict speaks of this model on this text at these lengths, and of nothing else."
    )


def _failed(report: Report, quote: Quote) -> str:
    failed = _with(report, Status.FAIL)
    cure = (
        "The fault lies in the state itself, not in how long it was trained: go back to the architecture (path C)."
        if report.path == "C"
        else "Fix it, run the same command again, and accept the fix only if `statecheck compare` does (path B)."
    )
    blocked = _blocked(report)
    rest = f" Beside that, {_items(blocked, quote)} could not be judged." if blocked else ""
    return (
        f"Do not scale {_title(report, quote)}: {_number(failed, 'check')} of suite {_suite(report, quote)} failed "
        f"({_named(failed, quote)}). {cure}{rest}"
    )


def _undecided(report: Report, quote: Quote) -> str:
    blocked, warned = _blocked(report), _with(report, Status.WARN)
    opening = f"No decision on {_title(report, quote)}: nothing failed, but"
    if blocked:
        also = f" {_items(warned, quote)} came out between pass and fail." if warned else ""
        return (
            f"{opening} {_number(blocked, 'required check')} could not be judged ({_named(blocked, quote)}). A check "
            f"without evidence is not passed: this is neither a pass nor a failure.{also} What would decide each "
            "stands with it."
        )
    if warned:
        return (
            f"{opening} {_number(warned, 'check')} came out between pass and fail ({_named(warned, quote)}). That is "
            "no pass: fix it, run the same command again, and accept the fix only if `statecheck compare` does "
            "(path B)."
        )
    return f"{opening} nothing passed either: no check of suite {_suite(report, quote)} came to a result."


def _nothing(report: Report, quote: Quote) -> str:
    return (
        f"Nothing was checked on {_title(report, quote)}: every item of suite {_suite(report, quote)} was skipped or "
        "does not apply. Give the evidence that the reasons ask for, or choose another suite."
    )


def shortfalls(report: Report) -> list[tuple[Status, list[tuple[Verdict, str]]]]:
    """By status, worst first: the rows that did not pass, each with what to do. NOT_APPLICABLE needs nothing."""
    order = (Status.FAIL, Status.ERROR, Status.STALE, Status.SKIP, Status.INCONCLUSIVE, Status.WARN)
    found = [(status, [(row, remedy(row)) for row in _with(report, status)]) for status in order]
    return [(status, rows) for status, rows in found if rows]


def remedy(row: Verdict) -> str:
    """What to do about a row that did not pass.

    >>> remedy(Verdict("extended", Status.SKIP, "no training log was given"))
    'To judge it, give it the log of the training run (`--training-log`).'
    """
    if row.status is not Status.SKIP:
        return REMEDIES.get(row.status, "")
    needs = [need for need in (ITEMS[row.id].needs if row.id in ITEMS else ()) if need in EVIDENCE]
    # Every item reads states; where it needs more than that, the rest is what is more likely missing.
    asked = [EVIDENCE[need] for need in needs if need != "states"] or [EVIDENCE[need] for need in needs]
    return f"To judge it, {' and '.join(asked)}." if asked else "The reason names the evidence that is missing."


def _with(report: Report, status: Status) -> list[Verdict]:
    return [row for row in report if row.status is status]


def _blocked(report: Report) -> list[Verdict]:
    return [row for row in report if blocks(row)]


def _title(report: Report, quote: Quote) -> str:
    return quote(report.model.get("title") or "the model")


def _suite(report: Report, quote: Quote) -> str:
    return quote(report.suite.get("name") or "unnamed")


def _items(rows: Sequence[Verdict], quote: Quote) -> str:
    return ", ".join(quote(row.id) for row in rows)


def _named(rows: Sequence[Verdict], quote: Quote) -> str:
    return "; ".join(f"{quote(row.id)}, {quote(row.title)}" if row.title else quote(row.id) for row in rows)


def _number(rows: Sequence[Verdict], noun: str) -> str:
    return f"{len(rows)} {noun}{'' if len(rows) == 1 else 's'}"
