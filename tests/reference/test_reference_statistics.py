"""The hybrid's own statistics are those of its states, in every form; a trace may take either."""

import pytest
import torch
from agreement import both_forms
from cuts import generator
from observed_models import brute_force, same
from statecheck_kernels import forms
from statecheck_kernels.forms import backend
from statecheck_reference.export import load_shipped
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.models import MODELS
from test_reference_hybrid import ids, model_of
from torch import Tensor

import statecheck as sc
from statecheck.protocol import Capability, StatefulModel

Told = dict[str, dict[str, Tensor]]
KEYS = {"square_sum", "largest", "mean", "near_largest", "nonfinite", "running"}


def told(
    model: HybridLanguageModel, inputs: Tensor, every: int = 1, running: dict[str, Tensor] | None = None
) -> tuple[Tensor, Told]:
    with torch.no_grad():
        return model.forward_with_statistics(inputs, every=every, entropy=True, running=running)


def expected(model: HybridLanguageModel, inputs: Tensor, every: int, running: dict[str, Tensor] | None) -> Told:
    """The definitions, from the states after each single token of one call."""
    seen: dict[str, list[Tensor]] = {name: [] for name in model.state_shapes}
    for step in range(inputs.shape[1]):
        with torch.no_grad():
            model(inputs[:, step : step + 1])
        if (step + 1) % every == 0:
            for name, state in model.get_states().items():
                heads = state.shape[1] if name.endswith(("wkv", "ssm")) else 1
                seen[name].append(state.double().reshape(len(state), heads, -1))
    held = running or {}
    return {name: brute_force(torch.stack(steps, 1), held.get(name), True) for name, steps in seen.items()}


@both_forms
@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("every", [1, 3, 50])
def test_a_call_that_tells_reads_as_a_call(every: int, entropy: bool) -> None:
    """Logits and states to the last bit, from no history and on; what is asked for is there, and nothing else."""
    plain, telling, running = model_of(0), model_of(0), None
    for length in (7, 1, 40):
        inputs = ids(2, length, seed=length)
        logits, found = telling.forward_with_statistics(inputs, every=every, entropy=entropy, running=running)
        assert torch.equal(logits, plain(inputs))
        states = telling.get_states()
        assert all(torch.equal(states[name], state) for name, state in plain.get_states().items())
        running = {name: own["running"] for name, own in found.items()}
        assert found.keys() == states.keys()
        for name, own in found.items():
            assert own.keys() == KEYS | ({"entropy"} if entropy else set())
            heads = telling.state_shapes[name][0] if name.endswith(("wkv", "ssm")) else 1
            shapes = {key: tuple(x.shape) for key, x in own.items()}
            assert shapes == {key: (2, heads) if key == "running" else (2, length // every, heads) for key in own}
            assert not any(x.requires_grad for x in own.values())


@both_forms
@pytest.mark.parametrize("kind", ["mild", "extreme", "by channel"])
@pytest.mark.parametrize("every", [1, 3])
def test_they_are_those_of_the_states_after_each_token(every: int, kind: str) -> None:
    """Call after call, each given what the one before told; a call shorter than 3 has none, and passes M on."""
    model, twin = model_of(1, kind, torch.float64), model_of(1, kind, torch.float64)
    held: dict[str, Tensor] | None = None
    reached: dict[str, Tensor] | None = None
    for length in (9, 3, 37, 66):
        inputs = ids(2, length, seed=length)
        found, wanted = told(model, inputs, every, held)[1], expected(twin, inputs, every, reached)
        assert found.keys() == wanted.keys()
        for name, own in found.items():
            assert own.keys() == wanted[name].keys() == KEYS | {"entropy"}
            for key, x in own.items():
                torch.testing.assert_close(x, wanted[name][key], rtol=1e-9, atol=1e-12, msg=f"{name} {key}")
        held, reached = ({n: own["running"] for n, own in one.items()} for one in (found, wanted))


@both_forms
def test_in_float32_too() -> None:
    """All that no threshold is in, to the rounding of the states."""
    inputs = ids(3, 70)
    found, wanted = told(model_of(2), inputs)[1], expected(model_of(2), inputs, 1, None)
    for name, own in found.items():
        for key in own.keys() - {"near_largest"}:
            scale = own["largest"] if key == "mean" else wanted[name][key]
            apart = (own[key] - wanted[name][key]).abs().max()
            assert own[key].dtype == wanted[name][key].dtype
            assert apart <= 1e-5 * scale.abs().max(), f"{name} {key}"


@both_forms
def test_what_was_held_before_counts() -> None:
    """After ten times the largest no unit is near it, and it is passed on, also by a call that looks at no state."""
    inputs = ids(2, 12)
    first = told(model_of(0), inputs)[1]
    assert all(bool(own["near_largest"].any()) for own in first.values())
    held = {name: 10 * own["running"] for name, own in first.items()}
    for every, steps in ((1, 12), (13, 0)):
        for name, own in told(model_of(0), inputs, every, held)[1].items():
            assert own["near_largest"].shape[1] == steps
            assert not own["near_largest"].any()
            assert torch.equal(own["running"], held[name])


@both_forms
def test_states_that_are_not_finite_are_counted() -> None:
    model = model_of(0)
    model(ids(2, 3))
    states = {name: state.detach() for name, state in model.get_states().items()}
    states["blocks.1.mamba.ssm"][1, 2] = torch.nan
    model.set_states(states)
    _, found = told(model, ids(2, 4))
    ssm = found["blocks.1.mamba.ssm"]
    assert ssm["nonfinite"][:, 0].tolist() == [[0, 0, 0, 0], [0, 0, 9, 0]]
    assert bool(ssm["largest"][1, :, 2].isnan().all())
    assert bool(ssm["running"].isfinite().all())
    assert not found["blocks.0.mamba.ssm"]["nonfinite"].any()


def test_the_backend_is_the_form_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(0)
    assert model.backend == "no call yet"
    model(ids(2, 0))
    assert model.backend == "no call yet"
    for form in ("chunked", "reference"):
        monkeypatch.setenv(forms.VARIABLE, form)
        model(ids(2, 3))
        assert model.backend == backend(form) == f"statecheck_kernels {form}"
    monkeypatch.delenv(forms.VARIABLE)
    model(ids(2, 3))
    assert model.backend == backend(forms.choose(torch.device("cpu")))


def shipped(dtype: torch.dtype) -> StatefulModel:
    declaration = MODELS["hybrid"].declared({}).for_wrap()
    return sc.wrap(load_shipped(MODELS["hybrid"].folder).to(dtype), vocabulary=4096, **declaration)


def some_ids(rows: int, time: int) -> Tensor:
    return torch.randint(0, 4096, (rows, time), generator=generator(0))


@both_forms
@pytest.mark.parametrize("rows", [1, 2])
def test_both_paths_of_a_trace_give_the_same_table(rows: int, form: str) -> None:
    """Of the model that ships; in float64, where calls of other lengths round alike."""
    model, inputs = shipped(torch.float64), some_ids(rows, 150)
    assert Capability.STATISTICS in model.facts.capabilities
    assert model.facts.backend == backend(form)
    fused = sc.trace(model, inputs, every=4, path="fused")
    assert f"backend {backend(form)}" in fused.path
    same(fused, sc.trace(model, inputs, every=4, path="generic"))
    assert {(row["component"], row["layer"]) for row in fused.observations} == {
        (component, layer) for component in ("rwkv", "mamba") for layer in range(6)
    }


@both_forms
def test_both_paths_give_the_same_table_in_the_precision_that_ships(form: str) -> None:
    """To the rounding of float32; a unit may be on either side of 0.99 of the largest."""
    model, inputs = shipped(torch.float32), some_ids(2, 150)
    tables = [sc.trace(model, inputs, every=4, path=path).to_frame() for path in ("fused", "generic")]
    fused, generic = (table.select_dtypes("number") for table in tables)
    units = 2 * 16384  # rows, and what a layer has of either memory
    for column in fused.columns:
        difference, largest = (fused[column] - generic[column]).abs().max(), generic[column].abs().max()
        if column == "near_largest":
            assert difference <= 3 / units
        else:
            scale = generic["largest"].max() if column == "mean" else largest
            assert difference <= 1e-5 * scale, column
    one = sc.trace(model, inputs, every=4).path
    assert one.startswith(f"fused: statistics inside the recurrence (backend {backend(form)})")


def test_a_call_without_tokens_has_seen_nothing() -> None:
    """On a new model and after a call: no observation, and what was held is held on."""
    model = model_of(0)
    empty = torch.zeros(2, 0, dtype=torch.int64)
    shapes = {name: (2, 0, shape[0] if len(shape) == 3 else 1) for name, shape in model.state_shapes.items()}
    for _ in range(2):
        _, none = told(model, empty)
        assert {name: tuple(own["largest"].shape) for name, own in none.items()} == shapes
        assert not any(own["running"].any() for own in none.values())
        _, some = told(model, ids(2, 5))
    running = {name: own["running"] for name, own in some.items()}
    _, none = told(model, empty, running=running)
    assert all(torch.equal(none[name]["running"], held) for name, held in running.items())
