"""The adapter of causal language models with a cache: states found whatever the cache is, nothing repaired."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cached_culprits import (
    BatchSizeOutlivesTheCall,
    BeamsKeepStaleStates,
    ChunkedPrefillRestarts,
    CropLeavesTheStates,
    DecodeBroadcasts,
    LoadingInitialisesAgain,
    OneCacheForAll,
    PadsAreRead,
    PositionsCountPads,
)
from cached_models import (
    HEALTHY,
    AttentionLM,
    Cache,
    CausalLM,
    CountedCache,
    DictCache,
    ListCache,
    ModuleCache,
    Output,
    PositionsOfIds,
    Prepared,
    RowsCache,
    StackedCache,
    StateInside,
)
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import ContractError
from statecheck.histories.drawing import values
from statecheck.histories.operations import Claim
from statecheck.histories.playing import Sequences
from statecheck.protocol import Capability, StateKind, native_of
from statecheck.verdict import Status, Verdict


def wrapped(kind: type[nn.Module]) -> Any:
    return sc.wrap(kind().eval())


def drawn(rows: int, time: int, seed: int = 0) -> Tensor:
    return torch.randint(2, 11, (rows, time), generator=torch.Generator().manual_seed(seed))


def parts(kind: type[nn.Module], law: str) -> dict[str, Verdict]:
    verdict = sc.check_model(wrapped(kind), suite="conformance", only=[law])[law]
    return {part.id: part for part in verdict.parts}


CARRIED = ["calling.position", "calling.mask"]
STATES = [
    (CausalLM, ["past_key_values.layers.0.0", "past_key_values.layers.0.1", "past_key_values.seen"]),
    (ListCache, ["past_key_values.0", "past_key_values.1"]),
    (DictCache, ["past_key_values.0.h", "past_key_values.0.last"]),
    (StackedCache, ["past_key_values.states.0", "past_key_values.states.1"]),
    (CountedCache, ["past_key_values.layers.0.0", "past_key_values.layers.0.1", "past_key_values.seen"]),
    (RowsCache, ["past_key_values.layers.0.0", "past_key_values.layers.0.1", "past_key_values.seen"]),
    (StateInside, [".h.0", ".last.0"]),
    (Prepared, ["past_key_values.layers.0.0", "past_key_values.layers.0.1", "past_key_values.seen"]),
    (AttentionLM, ["past_key_values.keys", "past_key_values.values"]),
    (ModuleCache, ["past_key_values.layers.0.0", "past_key_values.layers.0.1"]),
    (PositionsOfIds, ["past_key_values.layers.0.0", "past_key_values.layers.0.1", "past_key_values.seen"]),
]


@pytest.mark.parametrize(("kind", "names"), STATES, ids=lambda value: getattr(value, "__name__", None))
def test_the_states_are_found_by_looking_at_the_cache(kind: type[nn.Module], names: list[str]) -> None:
    model = wrapped(kind)
    assert list(model.facts.states) == names + CARRIED
    model(drawn(2, 3))
    states = model.get_states()
    assert list(states) == names + CARRIED
    assert {len(value) for value in states.values()} == {2}
    tensors = [value for name, value in states.items() if value.is_floating_point()]
    assert len(tensors) == 2
    assert all(value.shape[-1] == 5 for value in tensors)


def test_every_shape_of_a_cache_is_looked_at() -> None:
    assert {kind for kind, _ in STATES} == set(HEALTHY)


@pytest.mark.parametrize("kind", HEALTHY, ids=lambda kind: kind.__name__)
def test_states_put_into_a_copy_that_never_read_go_on_as_the_model_does(kind: type[nn.Module]) -> None:
    """By a second implementation: the module called as its own library would, one call over everything."""
    ids = drawn(3, 7)
    whole = kind().eval()(input_ids=ids, use_cache=False).logits
    first = wrapped(kind)
    first(ids[:, :4])
    second = first.rebuild()
    second.set_states(first.get_states())
    found = torch.cat([second(ids[:, 4:6]), second(ids[:, 6:])], 1)
    torch.testing.assert_close(found, whole[:, 4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", HEALTHY, ids=lambda kind: kind.__name__)
def test_what_get_states_returned_is_the_callers(kind: type[nn.Module]) -> None:
    model = wrapped(kind)
    model(drawn(2, 4))
    states = model.get_states()
    kept = {name: value.clone() for name, value in states.items()}
    model.set_states(states)
    model(drawn(2, 2, seed=1))
    assert all(torch.equal(states[name], value) for name, value in kept.items())


@pytest.mark.parametrize("kind", HEALTHY, ids=lambda kind: kind.__name__)
def test_a_healthy_cache_keeps_the_laws_that_its_shape_could_break(kind: type[nn.Module]) -> None:
    laws = ("STEP", "CHUNK", "ALIAS", "HONEST")
    report = sc.check_model(wrapped(kind), suite="conformance", only=laws)
    assert {law: report[law].status for law in laws} == dict.fromkeys(laws, Status.PASS)


@pytest.mark.parametrize(
    ("kind", "laws"),
    [
        (AttentionLM, ("PADL", "PADR", "CROP", "REORDER", "FORK", "RESET", "LOAD", "GRAD", "SIZE")),
        (CountedCache, ("GRAD", "NUM", "FORK")),  # positions in torch's default dtype
        (ListCache, ("REORDER", "PADR")),
        (RowsCache, ("RESET", "FORK", "LOAD")),
        (StateInside, ("RESET", "BATCH")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_healthy_cache_keeps_the_laws_of_what_its_library_offers(
    kind: type[nn.Module], laws: tuple[str, ...]
) -> None:
    report = sc.check_model(wrapped(kind), suite="conformance", only=laws)
    passed = {part.id for law in laws for part in report[law].parts if part.status is Status.PASS}
    others = [part for law in laws for part in report[law].parts if part.id not in passed]
    assert {part.status for part in others} <= {Status.NOT_APPLICABLE, Status.SKIP}, others
    assert {name.partition(".")[0] for name in passed} == set(laws)


def test_numbers_and_flags_that_change_are_states_of_their_own_kind() -> None:
    model = wrapped(CountedCache)
    model(drawn(2, 3))
    states = model.get_states()
    assert states["past_key_values.seen"].tolist() == [3, 3]
    assert model.facts.states["past_key_values.seen"].kind is StateKind.POSITION
    assert "past_key_values.warm" not in states  # always true after a call: it belongs to the structure
    model.set_states({**states, "past_key_values.seen": torch.tensor([5, 5])})
    module = model.module
    cache = Cache(
        [list(layer) for layer in [(states["past_key_values.layers.0.0"], states["past_key_values.layers.0.1"])]], 5
    )
    ids = drawn(2, 1, seed=4)
    expected = module(ids, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(model(ids), expected)


def test_a_cache_for_a_number_of_rows_is_made_for_the_rows_that_are_put_in() -> None:
    model = wrapped(RowsCache)
    model(drawn(3, 4))
    chosen = {name: value[[2, 0]] for name, value in model.get_states().items()}
    model.set_states(chosen)
    assert model(drawn(2, 1)).shape == (2, 1, 11)


def test_a_state_inside_the_module_is_taken_out_and_forgotten() -> None:
    model = wrapped(StateInside)
    first = model(drawn(2, 3))
    assert model.module.h is not None
    model.set_states(None)
    assert model.module.h is None
    assert torch.equal(model(drawn(2, 3)), first)
    assert native_of(model).held is None  # there is no object that a caller holds


def test_a_whole_call_leaves_a_state_inside_the_module_alone() -> None:
    model = wrapped(StateInside)
    model(drawn(2, 3))
    before = model.module.h
    uncached = native_of(model).uncached
    assert uncached is not None
    uncached(drawn(3, 5), None)
    assert model.module.h is before


def test_a_cache_that_only_the_librarys_preparation_makes_is_asked_for() -> None:
    assert Prepared().eval()(drawn(1, 2), use_cache=True).past_key_values is None
    model = wrapped(Prepared)
    model(drawn(2, 3))
    assert model.get_states()["past_key_values.seen"].tolist() == [3, 3]


def test_an_id_that_is_read_as_padding_is_no_element_and_all_padding() -> None:
    facts = wrapped(PositionsOfIds).facts
    assert facts.padding == 1
    assert not (values(facts, 3, 200, seed=0) == 1).any()
    sequences = Sequences.of(wrapped(PositionsOfIds), Claim.parse("2x6@0: feed(0:6) == whole(0:6)"))
    assert bool((sequences.pad == 1).all())
    assert not (sequences.x == 1).any()
    assert {wrapped(kind).facts.padding for kind in HEALTHY if kind is not PositionsOfIds} == {None}


def test_what_a_search_leaves_on_the_module_is_taken_away() -> None:
    class Leaving(AttentionLM):
        def generate(self, *given: Any, **named: Any) -> Output:
            found = super().generate(*given, **named)
            self.kept_by_search = nn.Identity()
            return found

    verdict = sc.check_model(Leaving().eval(), suite="conformance", only=["REORDER"], examples=20)["REORDER"]
    assert verdict.status is Status.PASS, verdict.reason


def test_a_search_is_plain_whatever_the_model_asks_for() -> None:
    class Forcing(AttentionLM):
        def __init__(self) -> None:
            super().__init__()
            self.generation_config = Asked(forced=True)

        def generate(self, *given: Any, **named: Any) -> Output:
            found = super().generate(*given, **named)
            found["sequences_scores"] += self.generation_config.forced
            return found

    module = Forcing().eval()
    verdict = sc.check_model(module, suite="conformance", only=["REORDER"], examples=20)["REORDER"]
    assert verdict.status is Status.PASS, verdict.reason
    assert module.generation_config.forced


class Asked:
    """Settings of a generation."""

    def __init__(self, cache_implementation: str | None = None, forced: bool = False) -> None:
        self.cache_implementation, self.forced = cache_implementation, forced


def test_a_kind_of_cache_that_only_generation_makes_is_named() -> None:
    class Asking(AttentionLM):
        def __init__(self) -> None:
            super().__init__()
            self.generation_config = Asked("hybrid")

        def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool | None = None) -> Output:
            return Output(logits=super().forward(input_ids, use_cache=False).logits)

    with pytest.raises(ContractError, match="asks for a cache of kind hybrid"):
        sc.wrap(Asking())


def test_a_window_is_what_the_configuration_says() -> None:
    class Windowed(AttentionLM):
        def __init__(self) -> None:
            super().__init__()
            self.config.sliding_window, self.config.use_window, self.config.max_window_layers = 6, True, 3

    assert (wrapped(AttentionLM).facts.window, wrapped(Windowed).facts.window) == (None, 6)


def test_native_operations_are_those_that_the_library_has() -> None:
    offered = {kind: native_of(wrapped(kind)) for kind in HEALTHY}
    by_name = {
        name: {kind.__name__ for kind, native in offered.items() if getattr(native, name) is not None}
        for name in ("reorder", "crop", "beams", "held", "reloaded")
    }
    reordering = {"CausalLM", "ListCache", "CountedCache", "RowsCache", "Prepared", "AttentionLM", "PositionsOfIds"}
    assert by_name["reorder"] == reordering | {"ModuleCache"}
    assert by_name["crop"] == reordering - {"ListCache"}
    assert by_name["beams"] == {"ListCache", "AttentionLM"}
    assert by_name["held"] == {kind.__name__ for kind in HEALTHY} - {"StateInside"}
    assert by_name["reloaded"] == {kind.__name__ for kind in HEALTHY}


def test_a_roll_back_that_is_refused_is_no_failure() -> None:
    part = parts(CausalLM, "CROP")["CROP.native"]
    assert part.status is Status.NOT_APPLICABLE
    assert "the library refuses" in part.reason
    assert "a recurrent state can't be rolled back" in part.reason


def test_a_cache_that_is_written_in_place_takes_no_gradients_and_says_why() -> None:
    facts = wrapped(StackedCache).facts
    assert Capability.GRADIENT_SEQUENCE not in facts.capabilities
    assert "inplace" in facts.missing[Capability.GRADIENT_SEQUENCE]


CULPRITS = [
    (BeamsKeepStaleStates, "REORDER", {"REORDER.native", "REORDER.beams"}),
    (CropLeavesTheStates, "CROP", {"CROP.native"}),
    (ChunkedPrefillRestarts, "CHUNK", {"CHUNK.native", "CHUNK.functional"}),
    (PadsAreRead, "PADL", {"PADL.native", "PADL.functional"}),
    (PadsAreRead, "PADR", {"PADR.native", "PADR.functional"}),
    (PositionsCountPads, "PADL", {"PADL.native", "PADL.functional"}),
    (BatchSizeOutlivesTheCall, "RESET", {"RESET.native"}),
    (LoadingInitialisesAgain, "LOAD", {"LOAD.native"}),
    (DecodeBroadcasts, "BATCH", {"BATCH.native", "BATCH.functional"}),
    (OneCacheForAll, "ALIAS", {"ALIAS.native"}),
    (OneCacheForAll, "RESET", {"RESET.native"}),
]


@pytest.mark.parametrize(("kind", "law", "where"), CULPRITS, ids=lambda v: getattr(v, "__name__", None))
def test_a_fault_of_the_library_is_not_repaired_on_the_way(kind: type[nn.Module], law: str, where: set[str]) -> None:
    assert {name for name, part in parts(kind, law).items() if part.status is Status.FAIL} == where


class NothingKept(CausalLM):
    """use_cache is taken, and nothing comes of it."""

    def packed(self, after: Any, cache: Any, time: int) -> Any:
        return None


class ShapesLost(CausalLM):
    """Logits of the last element alone."""

    def forward(self, *args: Any, **options: Any) -> Output:  # type: ignore[override]
        given = super().forward(*args, **options)
        given["logits"] = given.logits[:, -1]
        return given


ShapesLost.forward.__signature__ = __import__("inspect").signature(CausalLM.forward)  # type: ignore[attr-defined]


def test_a_model_without_a_state_is_refused_with_where_it_was_looked_for() -> None:
    with pytest.raises(ContractError, match="no state found: a call with use_cache=True brought no cache") as raised:
        wrapped(NothingKept)
    assert "forward takes attention_mask, input_ids, past_key_values, use_cache" in str(raised.value)


def test_logits_of_another_shape_are_told() -> None:
    with pytest.raises(ContractError, match=r"output has shape \(2, 11\) for inputs \(2, 3\)"):
        wrapped(ShapesLost)


def test_inputs_that_do_not_fit_are_told() -> None:
    model = wrapped(CausalLM)
    with pytest.raises(ContractError, match=r"expected ids 0 \.\. 10, found 3 \.\. 11"):
        model(torch.tensor([[3, 11]]))
    with pytest.raises(ContractError, match="expected token ids"):
        model(torch.randn(1, 2, 3))
    model(drawn(2, 2))
    with pytest.raises(ContractError, match="the states hold 2 rows, the inputs 3"):
        model(drawn(3, 2))


def test_the_module_is_left_as_it_was_found() -> None:
    module = StateInside().train()
    before = copy.deepcopy(module.state_dict())
    model = sc.wrap(module)
    assert module.training
    assert module.h is None
    sc.check_model(model, suite="conformance", only=["STEP", "NUM", "LOAD"])
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
