"""The fold of verdicts: order, path, exit code, banner and file name, all from one decision."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statecheck.gate import BLOCKING, Decision, count_line, decide
from statecheck.verdict import Status, Verdict


def rows(*pairs: tuple[str, Status]) -> list[Verdict]:
    return [Verdict(id, status, "made up") for id, status in pairs]


P, W, F = Status.PASS, Status.WARN, Status.FAIL


@pytest.mark.parametrize(
    ("verdicts", "decision"),
    [
        (rows(("S0", P), ("D4", P)), ("PASS", "A", 0)),
        (rows(("S0", P), ("D3", Status.NOT_APPLICABLE)), ("PASS", "A", 0)),
        (rows(("S0", P), ("D4", Status.XFAIL)), ("PASS", "A", 0)),
        (rows(("S0", P), ("D4", W)), ("INCONCLUSIVE", "B", 3)),
        (rows(("S0", P), ("D4", W), ("health", Status.SKIP)), ("INCONCLUSIVE", None, 3)),
        (rows(("S0", P), ("D4", F), ("health", Status.ERROR)), ("FAIL", "B", 1)),
        (rows(("D4", F), ("D1", F)), ("FAIL", "C", 1)),
        ([], ("INCONCLUSIVE", None, 5)),
        (rows(("D4", Status.SKIP), ("D3", Status.NOT_APPLICABLE)), ("INCONCLUSIVE", None, 5)),
        (rows(("D4", Status.SKIP), ("D1", Status.ERROR)), ("INCONCLUSIVE", None, 3)),
    ],
)
def test_fold(verdicts: list[Verdict], decision: tuple[str, str | None, int]) -> None:
    assert decide(verdicts) == Decision(*decision)


@pytest.mark.parametrize("id", ["S0", "S1", "S2", "S3", "S4", "D1", "D2"])
def test_failures_of_the_state_lead_back_to_architecture(id: str) -> None:
    assert decide(rows((id, F), ("D4", P))).path == "C"


@pytest.mark.parametrize("id", ["G3.5", "D3", "D4", "health", "coupling", "gradient-ratio", "extended"])
def test_other_failures_are_to_be_fixed(id: str) -> None:
    assert decide(rows((id, F), ("D1", P))).path == "B"


@pytest.mark.parametrize(("part", "path"), [("flow.share", "C"), ("flow.memory", "C"), ("flow.other", "B")])
def test_flow_is_architecture_by_its_part(part: str, path: str) -> None:
    flow = Verdict("flow", F, "made up", parts=tuple(rows((part, F), ("flow.fine", P))))
    assert decide([flow]).path == path


@pytest.mark.parametrize("status", BLOCKING)
def test_what_is_not_required_does_not_block(status: Status) -> None:
    optional = Verdict("D4", status, "made up", required=False)
    assert decide([*rows(("S0", P)), optional]).exit_code == 0


def test_a_failure_fails_though_not_required() -> None:
    assert decide([*rows(("S0", P)), Verdict("D4", F, "made up", required=False)]).exit_code == 1


@pytest.mark.parametrize("status", [Status.ERROR, Status.INCONCLUSIVE, Status.STALE])
def test_nothing_passed_is_no_pass(status: Status) -> None:
    decision = decide([Verdict("D4", status, "made up", required=False)])
    assert (decision.verdict, decision.exit_code) == ("INCONCLUSIVE", 3)


@given(
    st.lists(st.builds(Verdict, st.sampled_from(["S0", "D1", "D4"]), st.sampled_from(Status), st.just("")), max_size=6)
)
def test_no_order_of_rows_changes_the_decision(verdicts: list[Verdict]) -> None:
    assert {decide(order) for order in itertools.islice(itertools.permutations(verdicts), 24)} == {decide(verdicts)}


@given(st.lists(st.builds(Verdict, st.just("D4"), st.sampled_from(Status), st.just("")), max_size=6))
def test_code_banner_and_file_name_agree(verdicts: list[Verdict]) -> None:
    decision = decide(verdicts)
    assert {"PASS": (0,), "FAIL": (1,), "INCONCLUSIVE": (3, 5)}[decision.verdict].count(decision.exit_code) == 1
    assert decision.banner == f"VALIDATION_GATE_{decision.verdict}"
    assert decision.file_name == f"{decision.banner}.md"
    assert (decision.exit_code == 0) == all(
        v.status in (P, Status.XFAIL, Status.NOT_APPLICABLE) for v in verdicts
    ) & any(v.status is P for v in verdicts)


def test_meaning_names_the_path_or_its_absence() -> None:
    assert decide(rows(("D1", F))).meaning == "path C: back to architecture"
    assert decide(rows(("D1", Status.ERROR))).meaning.startswith("no path")


def test_counts_come_worst_first() -> None:
    assert count_line(rows(("a", P), ("b", Status.SKIP), ("c", F), ("d", P))) == "1 FAIL, 1 SKIP, 2 PASS"
