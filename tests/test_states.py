"""Pure functions on states, against answers by hand."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from statecheck import states
from statecheck.errors import ContractError

TWO = {"h": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "n": torch.tensor([5, 6])}


def test_clone_has_memory_of_its_own_and_keeps_the_graph() -> None:
    leaf = torch.ones(1, 2, requires_grad=True)
    copied = states.clone({"h": leaf})["h"]
    assert copied.data_ptr() != leaf.data_ptr()
    copied.sum().backward()
    assert leaf.grad is not None
    assert not states.detach({"h": copied})["h"].requires_grad


def test_rows_select_repeat_and_reorder() -> None:
    chosen = states.rows(TWO, torch.tensor([1, 1, 0]))
    assert chosen["h"].tolist() == [[3.0, 4.0], [3.0, 4.0], [1.0, 2.0]]
    assert chosen["n"].tolist() == [6, 6, 5]


def test_concatenate_is_the_inverse_of_taking_rows() -> None:
    parts = [states.rows(TWO, torch.tensor([i])) for i in range(2)]
    assert states.distance(states.concatenate(parts), TWO) == 0


def test_replace_takes_the_named_tensors_alone() -> None:
    other = {name: value + 10 for name, value in TWO.items()}
    mixed = states.replace(TWO, other, ["n"])
    assert mixed["h"] is TWO["h"]
    assert mixed["n"] is other["n"]


def test_scramble_gives_every_row_another_rows_memory() -> None:
    assert states.scramble(TWO)["n"].tolist() == [6, 5]
    assert states.scramble(TWO, shift=2)["n"].tolist() == [5, 6]


def test_sizes() -> None:
    assert states.batch_size(TWO) == 2
    assert states.batch_size({}) is None
    assert states.size_in_bytes(TWO) == 4 * 4 + 2 * 8


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 1.0], [1.1, 1.1], 0.1 / 1.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 3.0], 1.0),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0),
        ([float("nan"), 1.0], [1.0, 1.0], float("inf")),
        ([float("inf"), 1.0], [float("inf"), 1.0], 0.0),
    ],
)
def test_relative_difference(a: list[float], b: list[float], expected: float) -> None:
    assert states.relative(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-6)


def test_relative_difference_of_complex_numbers_counts_the_imaginary_part() -> None:
    assert states.relative(torch.tensor([1 + 0j]), torch.tensor([0 + 1j])) == pytest.approx(2**0.5)


def test_other_names_or_shapes_are_infinitely_far() -> None:
    assert states.distance({"h": torch.ones(1)}, {"k": torch.ones(1)}) == float("inf")
    assert states.distance({"h": torch.ones(1)}, {"h": torch.ones(2)}) == float("inf")
    assert states.distance({}, {}) == 0


def test_nonfinite_names_the_tensors() -> None:
    held = {"good": torch.ones(2), "nan": torch.tensor([torch.nan]), "inf": torch.tensor([torch.inf]), **TWO}
    assert states.nonfinite(held) == ["nan", "inf"]
    assert states.nonfinite({"c": torch.tensor([complex(0, float("nan"))])}) == ["c"]


Pair = namedtuple("Pair", ["hidden", "cell"])

NESTED: list[tuple[Any, dict[str, Any]]] = [
    ({"a": {"b": 1}}, {"a.b": 1}),
    ([1, (2, 3)], {"0": 1, "1.0": 2, "1.1": 3}),
    ({"x": Pair(1, 2), "none": None}, {"x.hidden": 1, "x.cell": 2}),
    ({0: 1, 1: [2]}, {"0": 1, "1.0": 2}),
    (None, {}),
    ({}, {}),
]


@pytest.mark.parametrize(("nested", "flat"), NESTED)
def test_flatten_and_back(nested: Any, flat: dict[str, Any]) -> None:
    assert states.flatten(nested) == flat
    assert states.unflatten(nested, flat) == nested


def test_unflatten_keeps_the_type_of_a_named_tuple() -> None:
    back = states.unflatten({"x": Pair(1, 2)}, {"x.hidden": 3, "x.cell": 4})
    assert back == {"x": Pair(3, 4)}
    assert isinstance(back["x"], Pair)


def test_unflatten_names_what_is_missing() -> None:
    with pytest.raises(ContractError, match=r"expected a state named 'a.b', found a.c"):
        states.unflatten({"a": {"b": 1}}, {"a.c": 1})


leaves = st.integers(0, 9)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner)
)


@given(trees)
def test_any_nesting_survives(tree: Any) -> None:
    assert states.unflatten(tree, states.flatten(tree)) == tree


def test_gradients_pass_through_rows_and_replace() -> None:
    leaf: Tensor = torch.ones(2, 2, requires_grad=True)
    moved = states.replace(TWO, states.rows({"h": leaf}, torch.tensor([1])), ["h"])
    moved["h"].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[0.0, 0.0], [1.0, 1.0]]
