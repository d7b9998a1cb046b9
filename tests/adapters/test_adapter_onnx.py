"""Sessions of onnxruntime: pairs by name and by shape, fixed batches and times; by a stand-in, and by the real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conforming import broken, skipped
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import ContractError

WIDTH, HIDDEN = 3, 5
Shape = Sequence[int | str]


class StandIn:
    """An LSTM of torch behind the interface of onnxruntime.InferenceSession, which checks shapes as that does."""

    def __init__(
        self, x: Shape = ("batch", "time", WIDTH), names: Mapping[str, str] | None = None, *, swaps: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.rnn, self.x, self.swaps = nn.LSTM(WIDTH, HIDDEN, batch_first=True).double(), tuple(x), swaps
        self.pairs = dict(names or {"h_in": "h_out", "c_in": "c_out"})

    def _node(self, name: str, shape: Shape) -> Any:
        return SimpleNamespace(name=name, shape=list(shape), type="tensor(double)")

    def get_inputs(self) -> list[Any]:
        return [self._node("x", self.x), *(self._node(name, (1, self.x[0], HIDDEN)) for name in self.pairs)]

    def get_outputs(self) -> list[Any]:
        y = self._node("y", (*self.x[:-1], HIDDEN))
        return [y, *(self._node(name, (1, self.x[0], HIDDEN)) for name in self.pairs.values())]

    def run(self, names: Sequence[str], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for node in self.get_inputs():
            fits = [a == b or isinstance(a, str) for a, b in zip(node.shape, given[node.name].shape, strict=True)]
            assert all(fits), f"{node.name}: got {given[node.name].shape}, expected {node.shape}"
        x = torch.from_numpy(given["x"])
        with torch.no_grad():
            y, after = self.rnn(
                x if x.dim() == 3 else x[:, None], tuple(torch.from_numpy(given[n]) for n in self.pairs)
            )
        after = after[::-1] if self.swaps else after
        found = {"y": y if x.dim() == 3 else y[:, 0], **dict(zip(self.pairs.values(), after, strict=True))}
        return [found[name].numpy() for name in names]


SHAPES: dict[str, Shape] = {
    "open": ("batch", "time", WIDTH),
    "one row": (1, "time", WIDTH),
    "one element": ("batch", 1, WIDTH),
    "no time": ("batch", WIDTH),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_states_are_those_of_the_graph(shape: str) -> None:
    session = StandIn(SHAPES[shape])
    model = sc.wrap(session)
    x = torch.randn(2, 4, WIDTH)
    expected, (h, _) = session.rnn(x.double())
    torch.testing.assert_close(torch.cat([model(x[:, :1]), model(x[:, 1:])], 1), expected)
    held: Tensor = next(iter(model.get_states().values()))
    torch.testing.assert_close(held.flatten(), h[0].flatten())
    assert (sc.Capability.CHUNKS in model.facts.capabilities) is (shape in ("open", "one row"))


@pytest.mark.parametrize(
    "names",
    [{"past.0": "present.0", "past.1": "present.1"}, {"h0": "hn", "c0": "cn"}, {"initial_h": "final_h", "c": "c_n"}],
)
def test_pairs_are_found_by_name(names: dict[str, str]) -> None:
    model = sc.wrap(StandIn(names=names))
    assert {name.split(".", 1)[1].removesuffix(".0") for name in model.facts.states} == set(names)


def test_pairs_can_be_said() -> None:
    names = {"a": "p", "b": "q"}
    with pytest.raises(ContractError, match=r"can't tell which outputs of the graph go into which inputs.*carries="):
        sc.wrap(StandIn(names=names))
    assert broken(sc.wrap(StandIn(names=names), carries=names), "STEP", "CHUNK", "BATCH", "FORK") == []


def test_a_graph_that_swaps_its_states_is_caught() -> None:
    assert broken(sc.wrap(StandIn(swaps=True)), "STEP", "CHUNK") == ["STEP", "CHUNK"]


def test_a_graph_of_single_elements_is_left_out_of_chunk_with_the_reason() -> None:
    assert "the graph reads one element at a time" in skipped(sc.wrap(StandIn(SHAPES["one element"])), "CHUNK")


@pytest.mark.parametrize(
    ("session", "said", "message"),
    [
        (StandIn(("batch", 8, WIDTH)), {}, "the graph reads 8 elements at a time: export it with a time that is open"),
        (StandIn(), {"carries": {"h_in": "nothing"}}, "carries: the graph has no 'nothing'"),
        (StandIn(), {"carries": {"h_in": "h_out"}}, "so that one input is left"),
        (StandIn(("batch", "time", "width")), {}, r"can't tell what the graph reads from x .*say wrap\(..., width=N\)"),
    ],
    ids=["fixed time", "no such output", "two inputs left", "open width"],
)
def test_refusals(session: StandIn, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        sc.wrap(session, **said)


@pytest.mark.parametrize("shape", ["open", "one row", "one element"])
def test_a_session_of_onnxruntime_conforms(shape: str) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    batch, time, _ = SHAPES[shape]
    draw, helper, real = np.random.default_rng(0), onnx.helper, onnx.TensorProto.FLOAT
    sizes = {"W": (1, 4 * HIDDEN, WIDTH), "R": (1, 4 * HIDDEN, HIDDEN), "B": (1, 8 * HIDDEN)}
    weights = [
        onnx.numpy_helper.from_array(0.4 * draw.standard_normal(s, np.float32), name) for name, s in sizes.items()
    ]
    weights.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["xt", *sizes, "", "h_in", "c_in"], ["Y", "h_out", "c_out"], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["Y", "one"], ["Ys"]),
        helper.make_node("Transpose", ["Ys"], ["y"], perm=[1, 0, 2]),
    ]
    state = [1, batch, HIDDEN]
    inputs = {"x": [batch, time, WIDTH], "h_in": state, "c_in": state}
    outputs = {"y": [batch, time, HIDDEN], "h_out": state, "c_out": state}
    values = [[helper.make_tensor_value_info(n, real, s) for n, s in part.items()] for part in (inputs, outputs)]
    graph = helper.make_graph(nodes, "lstm", *values, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert broken(sc.wrap(session), "STEP", "BATCH", "RESET", "FORK", "HONEST") == []
