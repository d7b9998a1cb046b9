"""The public functions: errors that teach, the choice of form, the step as used, dtypes of states."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import statecheck_kernels
import torch
from drawing import OPERATIONS, SCAN, SSD, WKV6, Operation, drawn, off, oracle, run
from statecheck_kernels import Observe, causal_conv1d, forms, wkv6

KERNELS = Path(statecheck_kernels.__file__).parent.parent


def test_the_public_face_is_sorted_and_there() -> None:
    names = statecheck_kernels.__all__
    assert names == sorted(names)
    assert all(hasattr(statecheck_kernels, name) for name in names)


@pytest.mark.parametrize(
    ("operation", "name", "shape", "message"),
    [
        (WKV6, "k", (2, 20, 2, 4), "k has shape (2, 20, 2, 4), expected (B, T, H, K) = (2, 20, 2, 5) with K as in r"),
        (WKV6, "v", (2, 19, 3, 3), "expected (B, T, H, V) = (2, 20, 2, 3) with T as in r, H as in r"),
        (WKV6, "u", (5,), "u has shape (5,), expected 2 axes (H, K)"),
        (WKV6, "v", (2, 20, 2, 0), "v has shape (2, 20, 2, 0): V of (B, T, H, V) must be 1 or more"),
        (WKV6, "state", (3, 2, 5, 3), "state has shape (3, 2, 5, 3), expected (2, 2, 5, 3): one row of r"),
        (SCAN, "A", (3, 5), "A has shape (3, 5), expected (D, N) = (5, 5) with D as in x"),
        (SCAN, "D", (4,), "D has shape (4,), expected (D,) = (5,) with D as in x"),
        (SSD, "dt", (2, 20, 4, 3), "dt has shape (2, 20, 4, 3), expected 3 axes (B, T, H)"),
        (OPERATIONS[3], "state", (2, 5, 4), "state has shape (2, 5, 4), expected (2, 5, 3): one row of x"),
    ],
)
def test_a_wrong_shape_is_named(operation: Operation, name: str, shape: tuple[int, ...], message: str) -> None:
    arguments = {**drawn(operation), name: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match="shape") as raised:
        run(operation, arguments, "reference")
    assert message in str(raised.value)


def test_heads_that_groups_do_not_divide_are_refused() -> None:
    arguments = drawn(SSD, sizes={"H": 3, "P": 2, "G": 2, "N": 2})
    with pytest.raises(ValueError, match="2 groups and x 3 heads, expected heads to be a multiple of groups"):
        run(SSD, arguments, "reference")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "x is a list, expected a tensor"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), "dtype int64, expected one of float64, float32, bfloat16, float16"),
        (torch.zeros(2, 3, 4, dtype=torch.complex64), "x has dtype complex64"),
    ],
)
def test_a_wrong_kind_is_a_type_error(value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        causal_conv1d(value, torch.zeros(4, 2))  # type: ignore[arg-type]


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="weight is on meta, expected cpu, where x is: move one of them"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 2, device="meta"))
    with pytest.raises(ValueError, match="state is on meta, expected cpu"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 2), state=torch.zeros(1, 3, 1, device="meta"))


@pytest.mark.parametrize(
    ("starts", "kind", "message"),
    [
        (torch.tensor([0, 3, 2, 6]), ValueError, "falls from 3 to 2 at place 2"),
        (torch.tensor([0, 3]), ValueError, "goes from 0 to 3, expected 0 to 6, the steps of x"),
        (torch.tensor([1, 6]), ValueError, "goes from 1 to 6"),
        (torch.tensor([6]), ValueError, r"has shape \(1,\), expected \(sequences \+ 1,\)"),
        (torch.tensor([[0, 6]]), ValueError, r"has shape \(1, 2\)"),
        (torch.tensor([0.0, 6.0]), TypeError, "cu_seqlens is torch.float32, expected an int32 or int64 tensor"),
        ([0, 6], TypeError, "cu_seqlens is list"),
    ],
)
def test_wrong_packing_is_named(starts: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        causal_conv1d(torch.zeros(1, 6, 3), torch.zeros(3, 2), cu_seqlens=starts)  # type: ignore[arg-type]


def test_packing_wants_one_row_and_a_state_for_each_sequence() -> None:
    starts = torch.tensor([0, 2, 6], dtype=torch.int32)
    with pytest.raises(ValueError, match="x has 2 rows, expected 1 with cu_seqlens"):
        causal_conv1d(torch.zeros(2, 6, 3), torch.zeros(3, 2), cu_seqlens=starts)
    with pytest.raises(ValueError, match=r"state has shape \(1, 3, 1\), expected \(2, 3, 1\): one row a sequence"):
        causal_conv1d(torch.zeros(1, 6, 3), torch.zeros(3, 2), state=torch.zeros(1, 3, 1), cu_seqlens=starts)
    assert causal_conv1d(torch.zeros(1, 6, 3), torch.zeros(3, 2), cu_seqlens=starts).state.shape == (2, 3, 1)


@pytest.mark.parametrize(
    ("statistics", "kind", "message"),
    [
        (Observe(every=0), ValueError, "statistics.every is 0, expected a whole number of steps, 1 or more"),
        (Observe(every=1.5), ValueError, "statistics.every is 1.5"),  # type: ignore[arg-type]
        (True, TypeError, "statistics is a bool, expected Observe"),
        (Observe(running=torch.zeros(2, 3)), ValueError, r"\(2, 3\), expected \(rows, heads\) = \(2, 1\)"),
    ],
)
def test_wrong_statistics_are_named(statistics: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        causal_conv1d(torch.zeros(2, 6, 3), torch.zeros(3, 2), statistics=statistics)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["reference", "chunked"])
def test_the_step_is_softplus_of_step_and_bias(form: str) -> None:
    """Log(1 + exp) where exp overflows too: 1000 stays 1000, -1000 becomes 0; the gradients are finite."""
    arguments = drawn(SCAN, 4, {"D": 4, "N": 2}, batch=1)
    dt = torch.tensor([[[-1000.0, -1, 1, 1000]]], dtype=torch.float64).repeat(1, 4, 1)
    bias = torch.tensor([0.0, 0.5, -0.25, 0.0], dtype=torch.float64)
    used = torch.tensor([0, math.log1p(math.exp(-0.5)), math.log1p(math.exp(0.75)), 1000], dtype=torch.float64)
    expected = run(SCAN, {**arguments, "dt": used.expand(1, 4, 4)}, form)
    leaf = dt.clone().requires_grad_()
    scan = run(SCAN, {**arguments, "dt": leaf, "dt_bias": bias}, form, options={"softplus": True})
    assert off(scan.outputs, expected.outputs) < 1e-14
    assert off(scan.state, expected.state) < 1e-14
    (grad,) = torch.autograd.grad(scan.outputs.sum(), leaf)
    assert bool(grad.isfinite().all())
    assert float(grad[0, 0, 3].abs()) > 0


def test_the_bias_alone_is_added() -> None:
    arguments = drawn(SSD, 9)
    bias = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    found = run(SSD, {**arguments, "dt_bias": bias}, "reference")
    assert torch.equal(found.outputs, run(SSD, {**arguments, "dt": arguments["dt"] + bias}, "reference").outputs)


def test_a_narrow_step_is_widened_before_the_bias_is_added() -> None:
    """In bfloat16 1 + 2^-9 would be 1."""
    arguments = drawn(SSD, 9, dtype=torch.bfloat16)
    arguments["dt"] = torch.ones_like(arguments["dt"])
    bias = torch.full((4,), 2**-9)
    found = run(SSD, {**arguments, "dt_bias": bias}, "reference")
    exact = oracle(SSD, {**arguments, "dt": torch.full_like(arguments["dt"], 1 + 2**-9, dtype=torch.float64)})
    assert off(found.state.float(), exact.state) < 2**-8
    wide = run(SSD, {**arguments, "dt_bias": bias, "state": arguments["state"].float()}, "reference")
    assert off(wide.state, exact.state) < 2e-6


@pytest.mark.parametrize("form", ["reference", "chunked"])
@pytest.mark.parametrize(
    ("inputs", "state", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float16, torch.float16),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float32),
    ],
)
def test_the_last_state_has_the_dtype_of_the_first(
    inputs: torch.dtype, state: torch.dtype | None, expected: torch.dtype, form: str
) -> None:
    for operation in OPERATIONS:
        arguments = drawn(operation, 7, dtype=inputs)
        given = arguments.pop("state")
        if state is not None:
            arguments["state"] = given.to(state)
        scan = run(operation, arguments, form)
        assert scan.outputs.dtype == inputs
        assert scan.state.dtype == expected


def test_arithmetic_is_in_float64_if_anything_is() -> None:
    """Float32 inputs with a float64 state: the state comes back as exact as float64 is."""
    arguments = drawn(WKV6, 30, dtype=torch.float32)
    arguments["state"] = drawn(WKV6, 30)["state"]
    for form in ("reference", "chunked"):
        assert off(run(WKV6, arguments, form).state, oracle(WKV6, arguments).state) < 1e-14


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_autocast_does_not_reach_inside(operation: Operation) -> None:
    arguments = drawn(operation, 40, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(operation, arguments, "chunked")
    assert torch.equal(found.outputs, run(operation, arguments, "chunked").outputs)


def test_an_unknown_form_is_refused_with_those_there_are() -> None:
    x, weight = torch.zeros(1, 2, 3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="form is 'fast', expected one of reference, chunked, cpu, triton"):
        causal_conv1d(x, weight, form="fast")


def test_a_form_that_can_not_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_cpu_missing", lambda: "the library was not built: no compiler")
    x, weight = torch.zeros(1, 2, 3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="form is 'cpu', which can't run here: the library was not built") as raised:
        causal_conv1d(x, weight, form="cpu")
    assert "these can: reference, chunked" in str(raised.value)
    forms._tell.cache_clear()
    with pytest.warns(
        RuntimeWarning, match="pure-torch form, which is slower, as 'cpu' can't be used: .*no compiler"
    ) as told:
        assert [causal_conv1d(x, weight).form for _ in range(3)] == ["chunked"] * 3
    assert [warning.filename for warning in told] == [__file__]  # once, at the line that called
    forms._tell.cache_clear()
    assert ("cpu", False, "the library was not built: no compiler") in statecheck_kernels.describe()


def test_the_best_form_of_a_device_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(forms.VARIABLE, raising=False)
    monkeypatch.setattr(forms, "_cpu_missing", lambda: None)
    monkeypatch.setattr(forms, "_triton_missing", lambda: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert forms.choose(torch.device("cpu")) == "cpu"
    assert forms.choose(torch.device("cuda:0")) == "triton"
    assert forms.choose(torch.device("meta")) == "chunked"
    with pytest.raises(ValueError, match="it takes CUDA tensors, these are on cpu"):
        forms.choose(torch.device("cpu"), "triton")
    with pytest.raises(ValueError, match="it takes CPU tensors, these are on cuda:0; these can: reference, chunked"):
        forms.choose(torch.device("cuda:0"), "cpu")
    monkeypatch.setattr(forms, "_triton_missing", lambda: "triton is not installed")
    forms._tell.cache_clear()
    with pytest.warns(RuntimeWarning, match="'triton' can't be used: triton is not installed"):
        assert forms.choose(torch.device("cuda:0")) == "chunked"


def test_the_environment_names_the_form_of_calls_that_name_none() -> None:
    """In a process of its own; before the first call no form is loaded, and none of what they need."""
    program = """
import sys, torch, statecheck_kernels
print(sorted(set(sys.modules) & {'triton', 'statecheck', 'statecheck_reference'}),
      [form for form in ('reference', 'chunked', 'cpu', 'triton_form') if f'statecheck_kernels.{form}' in sys.modules])
x, weight = torch.ones(1, 2, 3), torch.ones(3, 2)
print([statecheck_kernels.causal_conv1d(x, weight, form=form).form for form in (None, 'chunked')])
"""
    environment = {**os.environ, forms.VARIABLE: "reference", "PYTHONPATH": str(KERNELS)}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.splitlines() == ["[] []", "['reference', 'chunked']"]


def test_a_wrong_form_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(forms.VARIABLE, "fast")
    expected = f"the environment variable {forms.VARIABLE} is 'fast', expected one of reference, chunked, cpu, triton"
    with pytest.raises(ValueError, match=expected):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 2))
    monkeypatch.setenv(forms.VARIABLE, "")
    assert causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 2)).form in forms.FORMS


def test_the_last_state_is_a_tensor_of_its_own() -> None:
    """With no step it is a copy, and the gradient goes through it."""
    state = torch.ones(1, 1, 1, 1, requires_grad=True)
    nothing = torch.zeros(1, 0, 1, 1)
    scan = wkv6(nothing, nothing, nothing, nothing, torch.zeros(1, 1), state, form="reference")
    assert scan.state.data_ptr() != state.data_ptr()
    assert torch.autograd.grad(scan.state.sum(), state)[0].item() == 1


def test_an_empty_name_is_no_form() -> None:
    with pytest.raises(ValueError, match="form is '', expected one of reference, chunked, cpu, triton"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 2), form="")
