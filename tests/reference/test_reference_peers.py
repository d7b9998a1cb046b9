"""The reference layers say what other libraries say: fixtures of what they said, and the libraries themselves if here.

`scripts/make_peer_fixtures.py` ran the peers in float64 on 14 draws of sizes each, call after call with their caches,
and kept weights, inputs, outputs and the states after every call. What differs between the peers and us is told in
`scripts/peer_parity/ours.py`.
"""

import pytest
import torch
from agreement import TOLERANCE, both_forms
from peer_fixtures import FIXTURES, FOLDER, MIXERS, MIXERS1, RECURRENCES, origin, sizes_of
from peer_parity import checking, ours
from peer_parity.catalogue import SOURCES, Source
from peer_parity.comparison import Arrays, Case, Peer, largest, relative_error
from peer_parity.ours import OURS
from statecheck_kernels import forms

EVERY = [(name, peer) for name, found in FIXTURES.items() for peer in found]
every_peer = pytest.mark.parametrize(("name", "peer"), EVERY, ids=[f"{name}-{sizes_of(peer)}" for name, peer in EVERY])
VERSIONS = {"transformers": "5.", "fla-core": "0.6", "rwkv": "0.8.32"}


@both_forms
@pytest.mark.parametrize("dtype", TOLERANCE)
@every_peer
def test_our_layers_say_what_their_peers_said(name: str, peer: Peer, dtype: torch.dtype) -> None:
    assert largest(peer, OURS[name](peer, dtype)) < TOLERANCE[dtype]


@both_forms
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("peer", MIXERS1, ids=sizes_of)
def test_mamba_read_whole_is_that_of_transformers_token_by_token(peer: Peer, dtype: torch.dtype) -> None:
    """From warm states too, where transformers can only read a token a call."""
    found = ours.by_mamba(ours.mamba1(peer).to(dtype), peer, whole=True)
    assert len(found) == 3  # outputs, and both states at the end
    assert largest(peer, found) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_reference_form_is_what_the_peers_say(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, as the papers write it: what all other forms are held against."""
    monkeypatch.setenv(forms.VARIABLE, "reference")
    for name, peer in EVERY:
        assert largest(peer, OURS[name](peer, dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", FIXTURES)
def test_all_that_a_peer_said_is_compared(name: str) -> None:
    """Outputs, and each state after each call; of what it was given, nothing."""
    for peer in FIXTURES[name]:
        given = {"inputs", "r", "k", "v", "u", "log_w"}
        said = {key for key in peer.arrays if not key.startswith("weights.") and not key.endswith(".0")} - given
        assert OURS[name](peer, torch.float64).keys() == said
        assert len(said) in (1 + len(peer.sizes["pieces"]), 1 + 2 * len(peer.sizes["pieces"]))


def test_the_fixtures_are_what_they_should_be() -> None:
    """A dozen sizes of each peer at least: one token, single tokens after a prefix, past the chunks."""
    assert {path.stem for path in FOLDER.iterdir()} == SOURCES.keys() == OURS.keys() == FIXTURES.keys()
    for name, found in FIXTURES.items():
        distribution, version = origin(name)["peer"].split()
        assert distribution == SOURCES[name].distribution
        assert version.startswith(VERSIONS[distribution])
        sizes = [peer.sizes for peer in found]
        assert len(found) >= 12
        assert any(size["pieces"] == [1] for size in sizes)
        assert any(1 in size["pieces"][1:] for size in sizes)
        assert any(max(size["pieces"]) > 64 for size in sizes)
        assert {size["started"] for size in sizes} == {size["extreme"] for size in sizes} == {True, False}
        assert len({size["batch"] for size in sizes}) > 1
        assert len({size["heads" if "heads" in size else "rank"] for size in sizes}) > 1
    groups = [(peer.sizes["groups"], peer.sizes["heads"]) for peer in MIXERS]
    assert any(1 < group < heads for group, heads in groups)
    assert any(group == heads > 1 for group, heads in groups)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000


@pytest.mark.parametrize("name", SOURCES)
def test_our_layers_say_what_the_libraries_installed_here_say(name: str) -> None:
    """Sizes that are in no fixture, run now."""
    if not checking.installed(SOURCES[name]):
        pytest.skip(f"{SOURCES[name].distribution} is not installed")
    errors = checking.measure(name, seed=100, cases=4)
    assert errors.small, errors


# ---------------------------------------------------------------------------------------------- the check of the script


def pretend(monkeypatch: pytest.MonkeyPatch, peer: Peer, module: str = "torch") -> None:
    """In place of fla's recurrence, something that says what was recorded of it."""

    def draw(seed: int, unit: int = 1) -> Case:
        return peer.sizes

    def run(case: Case) -> Arrays:
        return peer.arrays

    monkeypatch.setitem(SOURCES, "fla-rwkv6-recurrence", Source("torch", module, draw, run))


def test_the_check_ends_with_0_if_all_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, RECURRENCES[4])
    assert checking.check(["fla-rwkv6-recurrence"], seed=1, cases=2) == 0
    assert "TOO LARGE" not in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 2e-5), (torch.float64, 2e-10)])
def test_the_check_ends_with_1_above_its_tolerance(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dtype: torch.dtype, least: float
) -> None:
    """An answer that is off by twice the tolerance, in one dtype."""
    pretend(monkeypatch, RECURRENCES[4])
    right = OURS["fla-rwkv6-recurrence"]

    def off(peer: Peer, asked: torch.dtype) -> Arrays:
        found = right(peer, asked)
        return found if asked != dtype else {**found, "outputs": found["outputs"].double() * (1 + least)}

    monkeypatch.setitem(OURS, "fla-rwkv6-recurrence", off)
    assert checking.check(["fla-rwkv6-recurrence"], seed=1, cases=2) == 1
    assert "TOO LARGE" in capsys.readouterr().out


@pytest.mark.parametrize("told", [["--cases", "0"], ["--seed", "-1"]], ids=" ".join)
def test_a_check_of_nothing_is_refused(told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import make_peer_fixtures  # lies where `peer_fixtures` said

    with pytest.raises(SystemExit, match="2"):
        make_peer_fixtures.main(["--check", *told])
    assert "expected a seed from 0 and a case at least, found" in capsys.readouterr().err


def test_the_check_ends_with_2_where_a_peer_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, RECURRENCES[4], module="no_such_library")
    assert checking.check(["fla-rwkv6-recurrence"], seed=1, cases=2) == 2
    assert "not installed: pip install torch" in capsys.readouterr().out


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_sizes_depend_on_the_seed_and_nothing_else(source: Source) -> None:
    assert source.draw(1234) == source.draw(1234) != source.draw(1235)
    small, large = source.draw(1234), source.draw(1234, 8)
    assert small != large
    assert all(value == small[name] or value == 8 * small[name] for name, value in large.items() if name != "pieces")


def test_errors_by_hand() -> None:
    """One part in four of a vector of length 5 is off by 1; NaN is never small; shapes must agree."""
    expected = torch.tensor([3.0, 4.0, 0.0])
    assert relative_error(expected + torch.tensor([0.0, 0.0, 1.0]), expected) == pytest.approx(0.2)
    assert relative_error(expected, expected) == 0
    assert relative_error(torch.full((3,), torch.nan), expected) == torch.inf
    with pytest.raises(ValueError, match=r"expected answers of shape \(3,\), found \(1, 3\)"):
        relative_error(expected[None], expected)
