"""What an object of a library holds, and where in it the states are."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statecheck.errors import ContractError
from statecheck.holding import DEEPEST, Leaf, Path, leaves, name, put, rebuilt_with
from statecheck.layout import learn

Pair = namedtuple("Pair", ("h", "c"))


@dataclass
class Cache:
    """Of `rows` rows: two layers in a list, how much was read, a flag and a stack of layers."""

    layers: list[Pair]
    seen: int
    rows: int
    warm: bool
    stack: Tensor
    window: int = 4
    extra: dict[str, Any] = field(default_factory=dict)


def held(rows: int, seen: int) -> Cache:
    """After `seen` elements; values tell rows apart."""
    own = torch.arange(float(rows))[:, None] + seen
    return Cache([Pair(own, own + 0.5), Pair(own + 1, own + 1.5)], seen, rows, True, torch.stack([own, -own, 2 * own]))


def named(root: object) -> dict[str, Leaf]:
    return {name(path): leaf for path, leaf in leaves(root).items()}


def by_name(root: object, wanted: str) -> Path:
    return next(path for path in leaves(root) if name(path) == wanted)


def test_leaves_are_named_by_attributes_keys_and_indices() -> None:
    assert list(named(held(2, 3))) == [
        "layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1", "seen", "rows", "warm", "stack", "window",
    ]  # fmt: skip


def test_a_tensor_that_is_held_twice_is_named_once_and_an_empty_one_never() -> None:
    h = torch.ones(2)
    assert list(named({"a": h, "b": [h], "none": torch.empty(0), "other": torch.ones(2)})) == ["a", "other"]


def test_modules_configurations_texts_and_callables_are_closed() -> None:
    config = SimpleNamespace(size=3, to_dict=lambda: {})
    root = {"module": nn.Linear(2, 2), "config": config, "text": "1", "call": len, "kind": torch.float32, "n": 7}
    assert named(root) == {"n": 7}


def test_a_module_without_parameters_is_a_container() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h, self.seen = [torch.ones(2)], 3
            self.register_buffer("window", torch.zeros(2))
            self.inner = nn.Module()
            self.inner.n = 4

    assert list(named(Kept())) == ["h.0", "seen", "window", "inner.n"]
    made = rebuilt_with(Kept(), {by_name(Kept(), "seen"): 5})
    assert (made.seen, made.inner.n) == (5, 4)


def test_what_holds_itself_or_lies_too_deep_ends() -> None:
    root: dict[str, Any] = {"n": 1}
    root["self"] = root
    assert named(root) == {"n": 1}
    deep: Any = 5
    for _ in range(DEEPEST):
        deep = [deep]
    assert list(leaves(deep).values()) == [5]
    assert not leaves([deep])


def test_an_object_is_rebuilt_with_the_very_tensors_and_shares_no_other() -> None:
    root, new = held(2, 3), torch.full((2, 1), 9.0)
    made = rebuilt_with(root, {by_name(root, "layers.0.1"): new, by_name(root, "seen"): 8})
    assert made.layers[0].c is new
    assert (made.seen, root.seen) == (8, 3)
    assert isinstance(made.layers[0], Pair)
    made.layers[0].h.add_(1)
    made.stack.zero_()
    assert root.layers[0].h.tolist() == [[3.0], [4.0]]
    assert bool(root.stack.any())


def test_a_tensor_that_was_held_twice_is_held_twice_again() -> None:
    h = torch.ones(2)
    new = torch.zeros(2)
    made = rebuilt_with({"a": h, "b": [h]}, {(("item", "a"),): new})
    assert made["a"] is new
    assert made["b"][0] is new


def test_a_tensor_with_a_graph_is_left_out_of_the_copy() -> None:
    w = torch.ones(2, requires_grad=True)
    root = {"h": w * 2, "n": 1}
    made = rebuilt_with(root, {(("item", "n"),): 2})
    assert made["h"].grad_fn is None
    new = w * 3
    assert rebuilt_with(root, {(("item", "h"),): new})["h"] is new


def test_a_number_is_put_into_lists_tuples_and_attributes() -> None:
    root = {"a": [1, (2, Pair(3, 4))], "o": SimpleNamespace(n=5)}
    put(root, (("item", "o"), ("attribute", "n")), 6)
    put(root, (("item", "a"), ("item", 1), ("item", 1), ("item", 1)), 7)
    assert root["a"] == [1, (2, Pair(3, 7))]
    assert root["o"].n == 6
    assert put(root, (), 3) == 3


def test_the_states_are_what_has_a_row_for_each_of_the_batch_and_numbers_that_change() -> None:
    layout = learn(held(2, 1), held(2, 3), held(3, 1))
    slots = {slot.name: (slot.axis, slot.part) for slot in layout.slots}
    assert slots == {
        "layers.0.0": (0, None),
        "layers.0.1": (0, None),
        "layers.1.0": (0, None),
        "layers.1.1": (0, None),
        "seen": (None, None),
        "stack.0": (0, 0),
        "stack.1": (0, 1),
        "stack.2": (0, 2),
    }
    assert [name(path) for path in layout.batch_numbers] == ["rows"]


def test_what_is_read_goes_back_to_the_same_place_for_any_number_of_rows() -> None:
    layout = learn(held(2, 1), held(2, 3), held(3, 1))
    root = held(5, 7)
    states = layout.read(root, 5)
    assert {value.shape[0] for value in states.values()} == {5}
    assert states["stack.1"].tolist() == (-root.layers[0].h).tolist()
    made = layout.write(states)
    assert isinstance(made, Cache)
    assert (made.seen, made.rows, made.warm, made.window) == (7, 5, True, 4)
    assert torch.equal(made.stack, root.stack)
    assert all(
        torch.equal(a, b)
        for ours, theirs in zip(made.layers, root.layers, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_states_are_read_and_written_into_memory_of_their_own() -> None:
    layout = learn(held(2, 1), held(2, 3), held(3, 1))
    root = held(2, 4)
    states = layout.read(root, 2)
    root.layers[0].h.zero_()
    assert states["layers.0.0"].tolist() == [[4.0], [5.0]]
    made = layout.write(states)
    made.layers[0].h.zero_()  # type: ignore[attr-defined]
    assert states["layers.0.0"].tolist() == [[4.0], [5.0]]


def test_gradients_flow_in_and_out() -> None:
    layout = learn(held(2, 1), held(2, 3), held(3, 1))
    states = layout.read(held(2, 4), 2)
    states["stack.0"].requires_grad_()
    again = layout.read(layout.write(states), 2)
    (slope,) = torch.autograd.grad(again["stack.0"].sum(), states["stack.0"])
    assert slope.tolist() == [[1.0], [1.0]]


def test_a_batch_that_is_not_first_is_moved_there_and_back() -> None:
    def roots(rows: int, time: int) -> dict[str, Tensor]:
        return {"kv": torch.arange(4.0 * time * rows).reshape(4, time, rows)}

    layout = learn(roots(2, 1), roots(2, 3), roots(3, 1))
    assert [(slot.name, slot.axis) for slot in layout.slots] == [("kv", 2)]
    states = layout.read(roots(5, 6), 5)
    assert states["kv"].shape == (5, 4, 6)
    assert torch.equal(layout.write(states)["kv"], roots(5, 6)["kv"])  # type: ignore[index]


def test_one_tensor_for_the_whole_batch_is_a_state_only_if_it_changes() -> None:
    def root(count: float) -> dict[str, Tensor]:
        return {"at": torch.tensor([count]), "mask": torch.ones(3)}

    layout = learn(root(1.0), root(3.0), root(1.0))
    assert [(slot.name, slot.axis) for slot in layout.slots] == [("at", None)]
    states = layout.read(root(4.0), 2)
    assert states["at"].tolist() == [[4.0], [4.0]]
    assert layout.write(states)["at"].tolist() == [4.0]  # type: ignore[index]


def test_a_state_that_is_missing_is_named_with_what_is_there() -> None:
    layout = learn(held(2, 1), held(2, 3), held(3, 1))
    with pytest.raises(ContractError, match=r"expected a state named 'layers\.0\.0', found h"):
        layout.write({"h": torch.zeros(2)})
    with pytest.raises(ContractError, match=r"state 'layers\.0\.0' is gone"):
        layout.read({"h": torch.zeros(2)}, 2)
