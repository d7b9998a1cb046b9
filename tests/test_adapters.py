"""What `sc.wrap` takes, what it finds out, what it refuses and with which words, and that it leaves no trace."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from models import (
    Declines,
    Integrator,
    LinearRecurrentUnit,
    RecurrentLM,
    TinyDeltaNet,
    TinyMamba,
    TinyRWKV,
    TinyTransformer,
    TinyXLSTM,
    ViewsOfABuffer,
)
from torch import Tensor, nn

import statecheck as sc
from statecheck.errors import ContractError, ModelRaised
from statecheck.states import clone, distance

ZOO: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "mamba": (TinyMamba, {}),
    "rwkv": (TinyRWKV, {}),
    "xlstm": (TinyXLSTM, {}),
    "transformer": (TinyTransformer, {}),
    "delta": (TinyDeltaNet, {"width": 6}),
    "lru": (LinearRecurrentUnit, {"width": 4}),
    "views": (ViewsOfABuffer, {"width": 8}),
    "integrator": (Integrator, {"width": 3}),
    "gru": (RecurrentLM, {}),
    "lstm": (lambda: RecurrentLM("LSTM"), {}),  # type: ignore[dict-item]
}


def inputs_for(model: sc.StatefulModel, rows: int, time: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if model.facts.inputs == "tokens":
        return torch.randint(0, model.facts.vocabulary or 0, (rows, time), generator=generator)
    dtype = getattr(torch, model.facts.dtype)
    return torch.randn(rows, time, model.facts.width or 0, generator=generator).to(dtype)


def integrator(**methods: Any) -> Integrator:
    """An integrator with some of its methods replaced: methods get the module as their first argument."""
    return type("Odd", (Integrator,), methods)()


class TestTorchRNNs:
    @pytest.mark.parametrize("layers", [1, 2, 3])
    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "relu", "projected"])
    def test_chunks_equal_the_whole_and_torchs_own(self, kind: str, batch_first: bool, layers: int) -> None:
        torch.manual_seed(0)
        options: dict[str, Any] = {"num_layers": layers, "batch_first": batch_first}
        options |= {"relu": {"nonlinearity": "relu"}, "projected": {"proj_size": 3}}.get(kind, {})
        names = {"relu": "RNN", "projected": "LSTM"}
        module = getattr(nn, names.get(kind, kind))(4, 6, **options).double()
        model = sc.wrap(module)
        x = inputs_for(model, 3, 12)
        direct, last = module(x if batch_first else x.transpose(0, 1))
        outputs = torch.cat([model(x[:, a:b]) for a, b in ((0, 1), (1, 6), (6, 12))], dim=1)
        torch.testing.assert_close(outputs, direct if batch_first else direct.transpose(0, 1), rtol=1e-12, atol=1e-14)
        states = model.get_states()
        stacks = dict(zip("hc", last if isinstance(last, tuple) else (last,), strict=False))
        assert set(states) == {f"layers.{i}.{name}" for i in range(layers) for name in stacks}
        for name, value in states.items():
            _, layer, part = name.split(".")
            torch.testing.assert_close(value, stacks[part][int(layer)], rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize(
        ("module", "selective", "recurrence", "bounds"),
        [
            (nn.LSTM(4, 6), True, {"h": "derived", "c": "diagonal"}, {"h": (-1.0, 1.0), "c": None}),
            (nn.GRU(4, 6), True, {"h": "dense"}, {"h": (-1.0, 1.0)}),
            (nn.RNN(4, 6), False, {"h": "dense"}, {"h": (-1.0, 1.0)}),
            (nn.RNN(4, 6, nonlinearity="relu"), False, {"h": "dense"}, {"h": None}),
        ],
        ids=["LSTM", "GRU", "RNN", "relu"],
    )
    def test_what_is_known_of_the_family(
        self, module: nn.RNNBase, selective: bool, recurrence: dict[str, str], bounds: dict[str, Any]
    ) -> None:
        facts = sc.wrap(module).facts
        assert facts.components["state"].selective is selective
        assert {name[-1]: state.recurrence for name, state in facts.states.items()} == recurrence
        assert {name[-1]: state.bounds for name, state in facts.states.items()} == bounds
        assert (facts.inputs, facts.width, facts.output_width, facts.loss) == ("vectors", 4, 6, None)

    def test_every_capability_of_the_core_is_found(self) -> None:
        offered = {sc.Capability.MODULES, sc.Capability.STATISTICS, sc.Capability.MASK, sc.Capability.SEGMENTS}
        wanted = set(sc.Capability) - offered
        assert sc.wrap(nn.LSTM(4, 4, 2)).facts.capabilities == wanted

    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    def test_bidirectional_is_refused(self, kind: str) -> None:
        with pytest.raises(ContractError, match="bidirectional RNN reads the future"):
            sc.wrap(getattr(nn, kind)(4, 4, bidirectional=True))

    def test_bidirectional_is_refused_inside_another_module(self) -> None:
        class Encoder(RecurrentLM):
            def __init__(self) -> None:
                super().__init__()
                self.rnn = nn.GRU(32, 16, bidirectional=True, batch_first=True)

        with pytest.raises(ContractError, match="rnn is bidirectional"):
            sc.wrap(Encoder())

    def test_the_readme_call_without_batch_first_reads_batch_time_features(self) -> None:
        model = sc.wrap(nn.LSTM(4, 6))
        assert model(torch.zeros(2, 7, 4)).shape == (2, 7, 6)


class TestStatesComeAsTheyAre:
    @pytest.mark.parametrize("name", ZOO)
    def test_chunks_equal_the_whole_and_states_can_be_put_back(self, name: str) -> None:
        torch.manual_seed(0)
        make, said = ZOO[name]
        model = sc.wrap(make().eval(), **said)
        assert sc.Capability.SET_STATES in model.facts.capabilities, model.facts.missing
        x = inputs_for(model, 3, 10)
        whole, last = sc.advance(model, x, None)
        first, middle = sc.advance(model, x[:, :4], None)
        sc.advance(model, inputs_for(model, 5, 2, seed=1), None)
        second, end = sc.advance(model, x[:, 4:], middle)
        torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-5)
        assert distance(end, last) < 1e-5

    @pytest.mark.parametrize("name", ZOO)
    def test_what_get_states_returned_is_the_callers(self, name: str) -> None:
        torch.manual_seed(0)
        make, said = ZOO[name]
        model = sc.wrap(make().eval(), **said)
        model(inputs_for(model, 2, 3))
        held = model.get_states()
        kept = clone(held)
        model(inputs_for(model, 2, 5, seed=2))
        assert distance(held, kept) == 0

    def test_nested_mappings_lists_and_named_tuples(self) -> None:
        class Parts(NamedTuple):
            now: Tensor
            count: Tensor

        def get(self: Integrator) -> Any:
            return {} if self.h is None else {"blocks": [{"x": Parts(self.h, self.h.sum(1))}, None]}

        def put(self: Integrator, states: Any) -> None:
            self.h = None if states is None else states["blocks"][0]["x"].now

        model = sc.wrap(integrator(get_states=get, set_states=put), width=3)
        assert list(model.facts.states) == ["blocks.0.x.now", "blocks.0.x.count"]
        assert sc.Capability.SET_STATES in model.facts.capabilities

    def test_python_numbers_and_flags_become_tensors_and_go_back(self) -> None:
        seen: list[Any] = []

        def get(self: Integrator) -> Any:
            return {} if self.h is None else {"h": self.h, "seen": 7, "warm": True, "scale": 0.5}

        def put(self: Integrator, states: Any) -> None:
            seen.append(states)
            self.h = None if states is None else states["h"]

        model = sc.wrap(integrator(get_states=get, set_states=put), width=3)
        kinds = {name: state.kind.value for name, state in model.facts.states.items()}
        assert kinds == {"h": "vector", "seen": "position", "warm": "flag", "scale": "vector"}
        model(inputs_for(model, 2, 1))
        states = model.get_states()
        assert states["seen"].tolist() == [7, 7]
        assert states["warm"].tolist() == [True, True]
        model.set_states(states)
        assert seen[-1]["seen"] == 7
        assert seen[-1]["warm"] is True
        assert type(seen[-1]["scale"]) is float

    def test_set_states_uses_the_very_tensors(self) -> None:
        module = Integrator()
        model = sc.wrap(module, width=3)
        mine = torch.ones(2, 3, dtype=torch.float64)
        model.set_states({"h": mine})
        assert module.h is mine

    def test_states_are_put_into_a_copy_that_was_never_called(self) -> None:
        model = sc.wrap(RecurrentLM("LSTM").eval())
        x = inputs_for(model, 2, 6)
        expected, _ = sc.advance(model, x, None)
        _, middle = sc.advance(model, x[:, :3], None)
        again = model.rebuild()  # type: ignore[attr-defined]
        again.set_states(middle)
        torch.testing.assert_close(again(x[:, 3:]), expected[:, 3:])

    @pytest.mark.parametrize(
        ("parts", "layers"),
        [
            (lambda h: {"lstm": (h, h + 1)}, [0, 0]),
            (lambda h: {"lstm": [(h, h), (h, h)]}, [0, 0, 1, 1]),
            (lambda h: {"ssm": (h, h[:, :2])}, [0, 0]),
            (lambda h: {"blocks.3.rwkv": (h, h[:, None])}, [3, 3]),
        ],
        ids=["h and c", "layers of h and c", "conv and ssm", "numbered"],
    )
    def test_parts_of_one_layer_are_not_taken_for_layers(self, parts: Any, layers: list[int]) -> None:
        class LSTM(nn.Module):
            """Both halves of the state feed each other, as h and c do."""

            def __init__(self) -> None:
                super().__init__()
                self.cell = nn.LSTMCell(3, 3)
                self.held: tuple[Tensor, Tensor] | None = None

            def forward(self, x: Tensor) -> Tensor:
                outputs = []
                for x_t in x.unbind(1):
                    self.held = self.cell(x_t, self.held)
                    outputs.append(self.held[0])
                return torch.stack(outputs, 1)

            def get_states(self) -> Any:
                if self.held is None:
                    return {}
                return (
                    {"lstm": self.held} if layers == [0, 0] and "lstm" in parts(self.held[0]) else parts(self.held[0])
                )

            def set_states(self, states: Any) -> None:
                self.held = None if states is None else states["lstm"]

        facts = sc.wrap(LSTM()).facts
        assert [state.layer for state in facts.states.values()] == layers

    @pytest.mark.parametrize("container", [list, tuple])
    def test_a_stack_of_layers_stays_one(self, container: type) -> None:
        class Stack(RecurrentLM):
            def get_states(self) -> Any:
                return {} if self.held is None else {"h": container(self.held)}

        facts = sc.wrap(Stack().eval()).facts
        assert {name: state.layer for name, state in facts.states.items()} == {"h.0": 0, "h.1": 1}

    def test_complex_states_are_memory(self) -> None:
        state = sc.wrap(LinearRecurrentUnit(), width=4).facts.states["lru.h"]
        assert (state.kind, state.dtype) == (sc.StateKind.VECTOR, "complex64")

    def test_a_cache_that_grows_has_a_time_axis(self) -> None:
        state = sc.wrap(TinyTransformer()).facts.states["layers.0.k"]
        assert (state.kind, state.time_axis) == (sc.StateKind.KV, 1)

    def test_declared_fields_win(self) -> None:
        said = {"*.wkv": {"head_axis": 1, "recurrence": "diagonal"}, "*.shift": {"kind": "conv", "layer": 5}}
        facts = sc.wrap(TinyRWKV(), states=said).facts
        assert facts.states["blocks.1.wkv"].head_axis == 1
        assert facts.states["blocks.1.wkv"].recurrence == "diagonal"
        assert facts.states["blocks.0.shift"].kind is sc.StateKind.CONV
        assert facts.states["blocks.0.shift"].layer == 5


class TestRefusals:
    @pytest.mark.parametrize(
        ("get", "message"),
        [
            (lambda self: {}, r"get_states\(\) is empty after a call"),
            (lambda self: {"h": "text"}, "state 'h' is a str: expected a tensor, a number or a flag"),
            (lambda self: {"h": self.h[None]}, r"not batch first: its shape is \(1, 2, 3\) for 2 rows and \(1, 3, 3\)"),
            (lambda self: {"h": self.h.T.contiguous()}, r"not batch first.*return one tensor \(B, H\) a layer"),
            (lambda self: {"h": self.h.sum()}, r"state 'h' has no dimension: expected \(batch, \.\.\.\)"),
            (lambda self: {"h": self.h[:, :0]}, r"state 'h' is empty: its shape is \(2, 0\)"),
            (lambda self: {f"h{len(self.h)}": self.h}, "states change names with the batch size"),
            (lambda self: {f"h{self.calls}": self.h}, "states change names between calls: h1, h2"),
            (lambda self: {"h": self.h if self.calls == 1 else self.h[..., None]}, "changes its number of dimensions"),
        ],
        ids=["empty", "text", "layers first", "transposed", "scalar", "no numbers", "names by batch", "names", "axes"],
    )
    def test_states_that_break_the_protocol(self, get: Any, message: str) -> None:
        class Odd(Integrator):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                return super().forward(x)

            def get_states(self) -> Any:
                return {} if self.h is None else get(self)

        with pytest.raises(ContractError, match=message):
            sc.wrap(Odd(), width=3)

    def test_torchs_own_layout_is_refused_with_the_fix(self) -> None:
        class Raw(RecurrentLM):
            def get_states(self) -> Any:
                return {} if self.held is None else {"h": self.held}

        with pytest.raises(ContractError, match=r"torch LSTM states are \(layers, B, H\): return one tensor"):
            sc.wrap(Raw().eval())

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (nn.LSTM, "found type: give the module itself, not its class"),
            ({"weight": torch.ones(1)}, "found dict: give the module itself"),
            (nn.Linear(2, 2), r"Linear has no get_states\(\)"),
            (Integrator(), "can't tell what Integrator reads"),
        ],
        ids=["class", "dict", "no get_states", "no width"],
    )
    def test_what_is_no_stateful_model(self, model: object, message: str) -> None:
        with pytest.raises(ContractError, match=message):
            sc.wrap(model)

    def test_an_encoder_decoder_is_refused(self) -> None:
        module = Integrator()
        module.config = type("Config", (), {"is_encoder_decoder": True})()  # type: ignore[assignment]
        with pytest.raises(ContractError, match="encoder-decoder model has no single state"):
            sc.wrap(module, width=3)

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            ({"vocabulary": 5, "width": 3}, "not both"),
            ({"loss": "hinge"}, "unknown loss 'hinge'"),
            ({"training_length": 0}, "training_length: expected a number of elements"),
            ({"components": {"a": "x.*"}}, "component 'a': no state matches x"),
            ({"components": {"a": "blocks.0.*"}}, "belongs to no component: give it exactly one"),
            ({"components": {"a": "*", "b": "blocks.1.*"}}, "belongs to a and b: give it exactly one"),
            ({"parameters": {"sate": "*"}}, "parameters: no component 'sate'; the components are state"),
            ({"components": {"a": "*"}, "modules": {"a": "nothing.*"}}, "nothing matches 'nothing"),
            ({"components": {"a": "*"}, "parameters": {"a": "nothing.*"}}, "nothing matches 'nothing"),
            ({"selective": {"fast": True}}, "selective: no component 'fast'"),
            ({"states": {"*.smm": {"kind": "conv"}}}, r"states: nothing matches '\*.smm'; the model has blocks.0.conv"),
            ({"states": {"*": {"knd": "conv"}}}, "no field 'knd'; expected kind, layer, head_axis"),
            ({"states": {"*": {"kind": "convolution"}}}, "no kind 'convolution'; expected one of matrix"),
            ({"states": {"*": {"head_axis": 4}}}, r"head_axis=4, but it has axes 0 \(batch\) to 2"),
            ({"states": {"*.ssm": {"normaliser": "n"}}}, "its normaliser 'n' is not a state"),
        ],
    )
    def test_what_was_said_is_held_against_the_model(self, said: dict[str, Any], message: str) -> None:
        with pytest.raises(ContractError, match=message):
            sc.wrap(TinyMamba(), **said)

    def test_a_model_that_raises_says_what_it_was_given(self) -> None:
        class Reads(Integrator):
            def __init__(self) -> None:
                super().__init__()
                self.readout = nn.Linear(7, 2)

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x * self.retention)

        with pytest.raises(ModelRaised, match=r"size of tensor.*given vectors of width 7, a guess: say wrap"):
            sc.wrap(Reads())


class TestCalls:
    def test_another_batch_size_needs_a_reset(self) -> None:
        model = sc.wrap(Integrator(), width=3)
        model(inputs_for(model, 2, 3))
        with pytest.raises(ContractError, match="the states hold 2 rows, the inputs 4: call set_states"):
            model(inputs_for(model, 4, 3))
        model.set_states(None)
        assert model(inputs_for(model, 4, 3)).shape == (4, 3, 3)

    @pytest.mark.parametrize(
        ("module", "inputs", "message"),
        [
            (TinyMamba(), torch.full((1, 2), 32), "expected ids 0 .. 31, found 32 .. 32: another tokenizer"),
            (TinyMamba(), torch.full((1, 2), -1), "expected ids 0 .. 31, found -1 .. -1"),
            (TinyMamba(), torch.zeros(1, 2, 3), r"expected inputs \(batch, time\) token ids, found shape \(1, 2, 3\)"),
            (nn.GRU(3, 3), torch.zeros(1, 2, 4), "expected vectors of width 3, found 4"),
            (nn.GRU(3, 3), torch.zeros(2, 3), r"expected inputs \(batch, time, features\) vectors"),
        ],
    )
    def test_inputs_that_do_not_fit(self, module: nn.Module, inputs: Tensor, message: str) -> None:
        with pytest.raises(ContractError, match=message):
            sc.wrap(module)(inputs)

    @pytest.mark.parametrize("form", ["tuple", "logits", "list"])
    def test_outputs_in_other_forms(self, form: str) -> None:
        class Out(Integrator):
            def forward(self, x: Tensor) -> Any:
                y = super().forward(x)
                return {"tuple": (y, self.h), "logits": type("Output", (), {"logits": y})(), "list": [y]}[form]

        assert sc.wrap(Out(), width=3)(torch.ones(1, 4, 3)).shape == (1, 4, 3)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            (
                lambda y: y[..., 0],
                r"output has shape \(2, 1\) for inputs \(2, 1, 3\): expected \(batch, time, features\)",
            ),
            (lambda y: y.transpose(0, 1), r"output has shape \(1, 2, 3\)"),
            (lambda y: y.tolist(), "the model returned a float|the model returned a list"),
        ],
        ids=["rank", "time first", "numbers"],
    )
    def test_outputs_that_are_none(self, shape: Any, message: str) -> None:
        class Out(Integrator):
            def forward(self, x: Tensor) -> Any:
                return shape(super().forward(x))

        with pytest.raises(ContractError, match=message):
            sc.wrap(Out(), width=3)

    def test_what_the_module_raises_is_told_apart_from_our_own_errors(self) -> None:
        model = sc.wrap(Declines(Integrator(), raises_beyond=8), width=3)
        with pytest.raises(ModelRaised, match="the model raised IndexError in Declines: position 9 is out of range"):
            model(inputs_for(model, 1, 9))


class TestWhatIsFound:
    @pytest.mark.parametrize(
        ("module", "expected"),
        [
            (TinyRWKV(vocabulary=19), ("tokens", 19, None, "cross_entropy")),
            (TinyXLSTM(vocabulary=23), ("tokens", 23, None, "cross_entropy")),  # vocab_size
            (nn.GRU(5, 5), ("vectors", None, 5, "mse")),
            (nn.GRU(5, 6), ("vectors", None, 5, None)),
        ],
    )
    def test_inputs_and_loss(self, module: nn.Module, expected: tuple[Any, ...]) -> None:
        facts = sc.wrap(module).facts
        assert (facts.inputs, facts.vocabulary, facts.width, facts.loss) == expected

    def test_a_vocabulary_in_a_config(self) -> None:
        module = TinyMamba(vocabulary=32)
        module.config = type("Config", (), {"vocab_size": 31})()  # type: ignore[assignment]
        assert sc.wrap(module).facts.vocabulary == 31

    def test_components_and_their_own_facts(self) -> None:
        model = sc.wrap(
            TinyMamba(),
            components={"conv": "*.conv", "ssm": ["*.ssm"]},
            parameters={"conv": "mix.*", "ssm": ["project.*", "log_a.*"]},
            modules={"conv": "mix.*", "ssm": "project.*"},
            selective={"ssm": True},
            training_length=96,
        )
        facts = model.facts
        assert {state.component for state in facts.states.values()} == {"conv", "ssm"}
        assert facts.components["ssm"].selective is True
        assert facts.components["conv"].selective is None
        assert sc.Capability.MODULES in facts.capabilities
        assert facts.training_length == 96

    def test_selective_of_the_only_component_can_be_said_by_name(self) -> None:
        assert sc.wrap(TinyMamba(), selective={"state": True}).facts.components["state"].selective is True

    def test_a_model_with_get_states_alone_can_be_observed_and_rebuilt(self) -> None:
        facts = sc.wrap(Declines(Integrator(), hides=["set_states"]), width=3).facts
        assert facts.capabilities == {sc.Capability.OBSERVE, sc.Capability.REBUILD, sc.Capability.CHUNKS}

    def test_a_module_that_takes_one_token_a_call(self) -> None:
        class Stepwise(Integrator):
            def forward(self, x: Tensor) -> Tensor:
                if x.shape[1] != 1:
                    raise ValueError("one element a call")
                return super().forward(x)

        capabilities = sc.wrap(Stepwise(), width=3).facts.capabilities
        assert sc.Capability.CHUNKS not in capabilities
        assert {sc.Capability.SET_STATES, sc.Capability.RESET, sc.Capability.GRADIENT_STEP} <= capabilities

    @pytest.mark.parametrize("name", ["reset", "reset_state", "reset_states"])
    def test_a_module_that_forgets_by_a_method_of_its_own(self, name: str) -> None:
        def forget(self: Integrator) -> None:
            self.h = None

        def put(self: Integrator, states: Mapping[str, Tensor]) -> None:
            self.h = states["h"]  # raises for None

        model = sc.wrap(integrator(set_states=put, **{name: forget}), width=3)
        assert {sc.Capability.RESET, sc.Capability.SET_STATES} <= model.facts.capabilities
        model(inputs_for(model, 2, 3))
        model.set_states(None)
        assert model.get_states() == {}

    def test_states_that_do_not_come_back_are_no_set_states(self) -> None:
        def put(self: Integrator, states: Mapping[str, Tensor] | None) -> None:
            self.h = None if states is None else states["h"] * 0

        facts = sc.wrap(integrator(set_states=put), width=3).facts
        assert "does not give s back" in facts.missing[sc.Capability.SET_STATES]

    def test_a_stateful_model_is_returned_as_it_is(self) -> None:
        model = sc.wrap(Integrator(), width=3)
        assert sc.wrap(model) is model


def fingerprint(module: nn.Module) -> str:
    """A hash of all that wrap must leave alone, the global generators included."""
    total = hashlib.sha256()
    for name, value in module.state_dict(keep_vars=True).items():
        total.update(f"{name} {value.dtype} {value.grad is None}".encode() + value.detach().numpy().tobytes())
    for name, child in module.named_modules():
        total.update(f"{name} {child.training} {len(child._forward_hooks)}".encode())
    total.update(torch.get_rng_state().numpy().tobytes())
    total.update(repr((random.getstate(), np.random.get_state()[1].tolist())).encode())  # type: ignore[union-attr]
    return total.hexdigest()


class TestNoTrace:
    @pytest.mark.parametrize("name", ZOO)
    def test_wrap_leaves_the_module_as_it_was(self, name: str) -> None:
        torch.manual_seed(0)
        make, said = ZOO[name]
        module = make().train()
        next(iter(module.children()), module).eval()  # one child in another mode than the rest
        before = fingerprint(module)
        sc.wrap(module, **said)
        assert fingerprint(module) == before
        assert module.get_states() == {}

    @pytest.mark.parametrize("graph", [True, False], ids=["with a graph", "without"])
    @pytest.mark.parametrize("name", [name for name in ZOO if name != "views"])
    def test_a_module_that_holds_a_history_keeps_it(self, name: str, graph: bool) -> None:
        torch.manual_seed(0)
        make, said = ZOO[name]
        module = make()
        x = inputs_for(sc.wrap(module, **said), 7, 3)
        with torch.set_grad_enabled(graph):
            module(x)
        held = sc.wrap(module, **said).get_states()
        kept = clone(held)
        model = sc.wrap(module, **said)
        assert distance(model.get_states(), kept) == 0
        assert next(iter(model.get_states().values())).shape[0] == 7
        assert sc.fresh(model).get_states() == {}

    def test_a_module_that_can_not_be_copied_keeps_its_history_too(self) -> None:
        def give_up(self: Integrator, memo: object) -> None:
            raise TypeError("can't copy a lock")

        module = integrator(__deepcopy__=give_up)
        module(torch.ones(4, 2, 3, dtype=torch.float64))
        kept = module.get_states()["h"].clone()
        model = sc.wrap(module, width=3)
        assert sc.Capability.REBUILD not in model.facts.capabilities
        assert torch.equal(module.get_states()["h"], kept)

    def test_trials_run_in_evaluation_mode(self) -> None:
        modes = []

        class Watches(Integrator):
            def forward(self, x: Tensor) -> Tensor:
                modes.append((self.training, torch.is_grad_enabled()))
                return super().forward(x)

        sc.wrap(Watches().train(), width=3)
        assert not any(training for training, _ in modes)

    def test_dropout_between_layers_does_not_show(self) -> None:
        model = sc.wrap(nn.LSTM(4, 4, 3, dropout=0.5).train())
        assert model.module.rnn.training  # type: ignore[attr-defined]
        report = sc.check_model(model, suite="smoke", only=["S3"])
        assert report["S3"].status is sc.Status.PASS
        assert model.module.rnn.training  # type: ignore[attr-defined]

    def test_a_rebuilt_model_shares_parameters_and_nothing_else(self) -> None:
        module = ViewsOfABuffer()
        model = sc.wrap(module, width=8)
        again = model.rebuild()  # type: ignore[attr-defined]
        assert next(again.module.parameters()) is next(module.parameters())
        again(inputs_for(model, 2, 3))
        assert not bool(module.memory.any())
