"""The harder part of the battery: extreme decays, numbers that are not finite or denormal, statistics of the state."""

import torch
from drawing import (
    CONVOLUTION,
    SCAN,
    SSD,
    TOLERANCE,
    WKV6,
    Arguments,
    Operation,
    assert_close,
    cut,
    drawn,
    expected_gradients,
    gradients,
    off,
    oracle,
    results,
    run,
)
from statecheck_kernels import Observe, StateStatistics

EXTREMES = (0.0, -1e-6, -20.0, -100.0, -torch.inf)  # log-decays: all kept, ..., all forgotten
STEPS = 70
TINY = 1e-37  # exp(-100) is no normal number in float32: few digits


def _decaying(operation: Operation, arguments: Arguments, values: tuple[float, ...], seed: int) -> Arguments:
    """The arguments with log-decays picked from `values`: where they are made of dt A, with dt = 1."""
    draw = torch.Generator().manual_seed(seed)
    name = "log_w" if operation is WKV6 else "A"
    x = arguments[name]
    picked = torch.tensor(values, dtype=x.dtype)[torch.randint(len(values), x.shape, generator=draw)]
    if name == "A":
        return {**arguments, "A": picked, "dt": torch.ones_like(arguments["dt"])}
    return {**arguments, "log_w": picked}


def extreme_decays_agree(operation: Operation, form: str) -> None:
    """Log-decays of 0 to minus infinity, mixed or the same everywhere; gradients where the formula has them."""
    if operation is CONVOLUTION:
        return
    for dtype in (torch.float64, torch.float32):
        for seed, values in enumerate([EXTREMES, EXTREMES[:4], *((value,) for value in EXTREMES)]):
            arguments = _decaying(operation, drawn(operation, STEPS, dtype=dtype), values, seed)
            found, expected = results(run(operation, arguments, form)), results(oracle(operation, arguments))
            assert_close(found, expected, 2 * TOLERANCE[dtype], f"log-decays of {values}")
            if operation is WKV6 or -torch.inf not in values:  # d exp(dt A) / d dt is A times it: 0 times infinity
                grads = gradients(operation, arguments, form), expected_gradients(operation, arguments)
                assert_close(*grads, 10 * TOLERANCE[dtype], f"gradients at log-decays of {values}", floor=TINY)


def packed_extremes_agree(operation: Operation, form: str) -> None:
    """A rate of minus infinity makes no NaN of the steps that a packed sequence does not have."""
    if operation is CONVOLUTION:
        return
    packed = (3, 0, 40, 1)
    arguments = _decaying(operation, drawn(operation, sum(packed), batch=1, rows=len(packed)), EXTREMES, 5)
    found, expected = (run(operation, arguments, used, packed=packed) for used in (form, "reference"))
    assert bool(expected.state.isfinite().all())
    assert_close(results(found), results(expected), 1e-12)


def softplus_agrees(operation: Operation, form: str) -> None:
    """The step log(1 + exp(dt + bias)) in calls of one step and of more, where exp is nothing or overflows."""
    if operation not in (SCAN, SSD):
        return
    asking = Operation(operation.name, operation.axes, operation.sizes, {"softplus": True})
    for dtype in (torch.float64, torch.float32):
        for steps in (1, 20):
            arguments = drawn(operation, steps, dtype=dtype)
            del arguments["state"], arguments["D"]  # all that is there is as large as the step
            bias = torch.linspace(-1, 1, arguments["dt"].shape[-1], dtype=torch.float64).mul(16).round().div(16)
            around = arguments["dt"].double().mul(16).round().div(16)  # sums of such numbers are exact
            for value in (-1000, -80, -20, 0, 20, 30, 100, 1000):
                dt = value + around
                used = torch.logaddexp(dt + bias, torch.zeros((), dtype=torch.float64))
                exact = {**arguments, "dt": used}
                given = {**arguments, "dt": dt.to(dtype), "dt_bias": bias.to(dtype)}
                what = f"steps of softplus({value})"
                found, expected = results(run(asking, given, form)), results(oracle(operation, exact))
                assert_close(found, expected, 2 * TOLERANCE[dtype], what)
                grads, wanted = gradients(asking, given, form), expected_gradients(operation, exact)
                wanted["dt"] = wanted["dt"] * (dt + bias).sigmoid()
                wanted["dt_bias"] = wanted["dt"].sum((0, 1))
                assert_close(grads, wanted, 10 * TOLERANCE[dtype], f"gradients at {what}", floor=TINY)


def growth_agrees(operation: Operation, form: str) -> None:
    """Log-decays above 0 are no decays, but the formula stands: numbers that a step can hold do not overflow."""
    if operation is CONVOLUTION:
        return
    arguments = drawn(operation, 40, dtype=torch.float32)
    name = "log_w" if operation is WKV6 else "A"
    arguments[name] = torch.full_like(arguments[name], 4.0)
    if operation is not WKV6:
        arguments["dt"] = torch.ones_like(arguments["dt"])
    small = ("state", "v" if operation is WKV6 else "x")
    arguments.update({name: 1e-35 * arguments[name] for name in small})
    found, expected = results(run(operation, arguments, form)), results(oracle(operation, arguments))
    assert all(bool(x.isfinite().all()) for x in found.values())
    assert_close(found, expected, 1e-4)  # exp(160) from a product of forty


def not_finite_goes_forward(operation: Operation, form: str) -> None:
    """A NaN or infinity shows where the recurrence shows it, and neither earlier nor in other rows."""
    bad_step = 37
    clean = drawn(operation, STEPS, batch=3, dtype=torch.float32)
    expected_clean = oracle(operation, clean)
    for value in (torch.nan, torch.inf, -torch.inf):
        for name in clean:
            arguments = {n: x.clone() for n, x in clean.items()}
            along = name in operation.along
            if arguments[name].numel() == 0:
                continue
            place = (1, bad_step) if along else (1,) if name == "state" else (0,)
            arguments[name][place].view(-1)[0] = value
            found, expected = run(operation, arguments, form), oracle(operation, arguments)
            what = f"{value} in {name}"
            for kind, x in results(found).items():
                wanted = results(expected)[kind]
                assert torch.equal(x.isfinite(), wanted.isfinite()), f"{what} is in other places of the {kind}"
                if name not in ("r", "C"):  # what reads: infinity times a sum, or the sum of infinities
                    assert torch.equal(x.isnan(), wanted.isnan()), f"{what}: NaN in other places of the {kind}"
            if along:
                assert off(found.outputs[:, :bad_step], expected_clean.outputs[:, :bad_step]) <= 2e-6, (
                    f"{what} went back"
                )
            if along or name == "state":
                for kind, x in results(found).items():
                    assert off(x[::2], results(expected_clean)[kind][::2]) <= 2e-6, f"{what} went to another row"


def not_finite_without_a_skip(operation: Operation, form: str) -> None:
    """No D, so no 0 times infinity; and x that is infinite only reaches what it is added to."""
    if operation not in (SCAN, SSD):
        return
    arguments = drawn(operation, STEPS, dtype=torch.float32)
    del arguments["D"]
    arguments["x"][0, 20].view(-1)[0] = torch.inf
    found, expected = results(run(operation, arguments, form)), results(oracle(operation, arguments))
    for kind, x in found.items():
        assert torch.equal(x.isnan(), expected[kind].isnan()), kind
        assert torch.equal(x.isinf(), expected[kind].isinf()), kind


def products_that_overflow_alone(operation: Operation, form: str) -> None:
    """C B or r u k is too large for float32, but not times dt x or v, which is what the formula says."""
    if operation not in (WKV6, SSD) or form == "chunked":  # which multiplies whole chunks
        return
    arguments = drawn(operation, 5, dtype=torch.float32)
    small, large = ("v", ("r", "k")) if operation is WKV6 else ("x", ("B", "C"))
    arguments[small] *= 1e-25
    arguments.update({name: 1e22 * arguments[name] for name in large})
    found, expected = results(run(operation, arguments, form)), results(oracle(operation, arguments))
    assert bool(found["outputs"].isfinite().all())
    assert_close(found, expected, 1e-5)


def not_finite_stays_in_its_sequence(operation: Operation, form: str) -> None:
    """The same for packed sequences: the others do not see it."""
    packed, place = (20, 33, 17), 30
    clean = drawn(operation, sum(packed), batch=1, rows=len(packed), dtype=torch.float32)
    expected = oracle(operation, clean, packed=packed)
    for name in operation.along:
        arguments = {n: x.clone() for n, x in clean.items()}
        arguments[name][0, place] = torch.nan
        found = run(operation, arguments, form, packed=packed)
        for part in (slice(0, place), slice(53, 70)):
            assert off(found.outputs[:, part], expected.outputs[:, part]) <= 2e-6, name
        assert off(found.state[::2], expected.state[::2]) <= 2e-6, name
        assert not bool(found.outputs[0, place : place + 2].isfinite().all()), name  # log_w is for the next step


def denormals_stay(operation: Operation, form: str) -> None:
    """Numbers below the smallest normal one are not taken for 0."""
    arguments = drawn(operation, 12, dtype=torch.float32)
    for name in arguments:
        if name in ("state", "x", "v", "bias"):
            arguments[name] = 1e-41 * arguments[name].sign()  # 7136 times the smallest
    plain = Operation(operation.name, operation.axes, operation.sizes)
    found, expected = run(plain, arguments, form), oracle(plain, arguments)
    assert 0 < float(expected.outputs.abs().max()) < 1e-38
    assert_close(results(found), results(expected), 2e-2)
    assert float(found.outputs.abs().max()) > 0


def assert_statistics(found: StateStatistics | None, expected: StateStatistics | None, tolerance: float) -> None:
    """To `tolerance` of the largest, the mean to that of the largest unit, the entropy to that of 1; counts exactly."""
    assert found is not None
    assert expected is not None
    there, wanted = found.items(), expected.items()
    assert there.keys() == wanted.keys()
    for name, x in there.items():
        assert (x.dtype, x.shape) == (wanted[name].dtype, wanted[name].shape), name
        assert not x.requires_grad
        assert torch.equal(x.isnan(), wanted[name].isnan()), name
        assert torch.equal(x.isinf(), wanted[name].isinf()), name
        scale = {"mean": expected.largest, "entropy": torch.ones(1)}.get(name, wanted[name])
        allowed = tolerance * float(scale.nan_to_num(0, 0, 0).abs().max()) if scale.numel() else 0.0
        both = x.isfinite()
        apart = (x.double() - wanted[name].double())[both].abs()
        assert bool((apart <= (allowed if x.is_floating_point() else 0)).all()), f"{name}: {apart.max()} > {allowed}"


def statistics_agree(operation: Operation, form: str) -> None:
    """Every step or every third, with and without entropy; outputs are those without statistics."""
    for sizes in operation.sizes[:5]:
        for dtype in (torch.float64, torch.float32):
            arguments = drawn(operation, STEPS, sizes, dtype=dtype, seed=2)
            plain = results(run(operation, arguments, form))
            for observe in (Observe(), Observe(entropy=True), Observe(every=3, entropy=True), Observe(every=71)):
                found = run(operation, arguments, form, observe=observe)
                expected = oracle(operation, arguments, observe=observe)
                assert_statistics(found.statistics, expected.statistics, 4 * TOLERANCE[dtype])
                assert_close(results(found), plain, TOLERANCE[dtype])


def statistics_carry_on(operation: Operation, form: str) -> None:
    """M goes on from the call before; a state of zeros, and no step, have their values too."""
    arguments = drawn(operation, STEPS)
    for every in (1, 3):
        first = cut(arguments, operation, 0, 33)
        one = run(operation, first, form, observe=Observe(every=every))
        assert one.statistics is not None
        second = {**cut(arguments, operation, 33, STEPS), "state": one.state}
        for running in (one.statistics.running, 100 * one.statistics.running):
            observe = Observe(every=every, running=running)
            found, expected = (run(operation, second, used, observe=observe) for used in (form, "reference"))
            assert_statistics(found.statistics, expected.statistics, 1e-11)
    zeros = {n: x * 0 if n in ("state", "x", "v") else x for n, x in arguments.items()}
    nothing = run(operation, zeros, form, observe=Observe(entropy=True)).statistics
    assert nothing is not None
    assert all(not bool(x.any()) for x in nothing.items().values())
    none = run(operation, cut(arguments, operation, 0, 0), form, observe=Observe(entropy=True, running=running))
    assert none.statistics is not None
    assert torch.equal(none.statistics.running, running)
    assert none.statistics.square_sum.shape == (*running.shape[:1], 0, *running.shape[1:])


def statistics_of_packed_agree(operation: Operation, form: str) -> None:
    """Packed ones: every third step is counted along the packed row, M by sequence."""
    packed = (5, 0, 40, 2, 23)
    arguments = drawn(operation, sum(packed), batch=1, rows=len(packed))
    heads = arguments["state"].shape[1] if operation in (WKV6, SSD) else 1
    running = torch.linspace(0, 5, len(packed) * heads, dtype=torch.float64).view(len(packed), heads)
    for every in (1, 3, 9):
        observe = Observe(every=every, entropy=True, running=running)
        found, expected = (
            run(operation, arguments, used, packed=packed, observe=observe) for used in (form, "reference")
        )
        assert_statistics(found.statistics, expected.statistics, 1e-11)


def statistics_count_what_is_not_finite(operation: Operation, form: str) -> None:
    """NaN and infinities in the state: counted, never near the largest, and M passes them by."""
    arguments = drawn(operation, STEPS)
    state = arguments["state"]
    flat, newest = state.view(state.shape[0], -1), state.shape[-1] - 1  # of a window: the last that is lost
    flat[0, newest], flat[1, newest] = torch.nan, -torch.inf
    found, expected = (run(operation, arguments, used, observe=Observe(entropy=True)) for used in (form, "reference"))
    assert_statistics(found.statistics, expected.statistics, 1e-11)
    assert found.statistics is not None
    assert bool(found.statistics.nonfinite[:, 0].sum(-1).ge(1).all())
    assert bool(found.statistics.running.isfinite().all())


HARD = (
    extreme_decays_agree,
    packed_extremes_agree,
    softplus_agrees,
    growth_agrees,
    not_finite_goes_forward,
    not_finite_without_a_skip,
    products_that_overflow_alone,
    not_finite_stays_in_its_sequence,
    denormals_stay,
    statistics_agree,
    statistics_carry_on,
    statistics_of_packed_agree,
    statistics_count_what_is_not_finite,
)
