"""Mutants of the layers of the hybrid, and of how it carries its states. `anchored` is the hybrid with attention."""

from __future__ import annotations

from mutation.rows import Mutant, R

HYBRID, MAMBA, RWKV, CARRYING, ATTENTION, FUSION = (
    f"{R}.{name}" for name in ("hybrid", "mamba2", "rwkv6", "carrying", "attention", "fusion")
)
SHIFT = "state=shift.unsqueeze(-1), statistics"
SHIFTED = "shifted.state.squeeze(-1), scan.state"
STEP = "functional.softplus(dt + self.dt_bias)"
AFTER = "self._states = new_states"
SET = "self._states = checked_states(states, self.state_shapes, next(self.parameters())) if states else {}"
GET = "return {name: state.clone() for name, state in self._states.items()}"
PUT = "return {name: states[name] for name in expected}"
CUT = "keys, values, filled = (x[:, time:].clone() for x in (keys, values, filled))"


def _mutant(name: str, kind: str, law: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, "hybrid", kind, law, module, old, new)


def _anchored(name: str, kind: str, law: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, "anchored", kind, law, module, old, new)


SHIFTS = (
    _mutant(
        "the token shift is never moved on",
        "stale",
        "STEP",
        RWKV,
        SHIFTED,
        "shift, scan.state",
    ),
    _mutant(
        "the token shift keeps the first element of a call",
        "stale",
        "STEP",
        RWKV,
        SHIFTED,
        "inputs[:, 0], scan.state",
    ),
    _mutant(
        "the token shift keeps what was mixed",
        "wrong state",
        "STEP",
        RWKV,
        SHIFTED,
        'mixed["key"][:, -1], scan.state',
    ),
    _mutant(
        "a call of several elements has no element before it",
        "state dropped",
        "CHUNK",
        RWKV,
        SHIFT,
        SHIFT.replace("(-1)", "(-1) * (inputs.shape[1] == 1)"),
    ),
    _mutant(
        "the low-rank maps mix rows and elements",
        "wrong axis",
        "BATCH",
        RWKV,
        "permute(2, 0, 1, 3)",
        "permute(2, 1, 0, 3)",
    ),
    _mutant(
        "the norm of the answer runs over time",
        "wrong axis",
        "PREFIX",
        RWKV,
        "normed = self.norm(scan.outputs.flatten(0, 1).flatten(1)).view_as(inputs)",
        "normed = self.norm(scan.outputs.flatten(2).transpose(1, 2)).transpose(1, 2)",
    ),
)

MIXERS = (
    _mutant(
        "dt moves with the decays of the call before",
        "hidden memory",
        "RESET",
        MAMBA,
        STEP,
        "functional.softplus(dt + self.dt_bias + (0 if self.log_decay is None else self.log_decay.mean()))",
    ),
    _mutant(
        "softplus is the logarithm of 1 + exp",
        "overflow",
        "NUM",
        MAMBA,
        STEP,
        "(dt + self.dt_bias).exp().log1p()",
    ),
    _mutant(
        "a step has no bias of dt",
        "two paths",
        "STEP",
        MAMBA,
        STEP,
        "functional.softplus(dt + self.dt_bias * (dt.shape[1] > 1))",
    ),
    _mutant(
        "a step is not gated",
        "gate",
        "STEP",
        MAMBA,
        "parts = (x * functional.silu(z))",
        "parts = (x * functional.silu(z) if x.shape[1] > 1 else x)",
    ),
    _mutant(
        "the scan's state is never moved on",
        "stale",
        "STEP",
        MAMBA,
        "convolved.state, scan.state",
        "convolved.state, ssm",
    ),
    _mutant(
        "each call takes the exponential of the rate in place",
        "in place",
        "HONEST",
        MAMBA,
        "-self.A_log.exp()",
        "-self.A_log.data.exp_()",
    ),
)

CARRIED = (
    _mutant(
        "a gate of row 0 for all rows",
        "row for all",
        "BATCH",
        FUSION,
        "gate = torch.sigmoid(layer(normed))",
        "gate = torch.sigmoid(layer(normed[:1])).expand_as(by_mamba)",
    ),
    _mutant(
        "every block reads the states of the first",
        "shared buffer",
        "STEP",
        HYBRID,
        "self._through(block, stream, _of_block(states, n),",
        "self._through(block, stream, _of_block(states, 0),",
    ),
    _mutant(
        "states are carried in bfloat16",
        "low precision",
        "STEP",
        HYBRID,
        AFTER,
        "self._states = {name: state.bfloat16().to(state) for name, state in new_states.items()}",
    ),
    _mutant(
        "states are carried in float16",
        "low precision",
        "STEP",
        HYBRID,
        AFTER,
        "self._states = {name: state.half().to(state) for name, state in new_states.items()}",
    ),
    _mutant(
        "the convolution's window is left out of what is read",
        "part of the state",
        "STEP",
        CARRYING,
        GET,
        'return {name: state.clone() * (not name.endswith("conv")) for name, state in self._states.items()}',
    ),
    _mutant(
        "putting states back keeps the old matrices",
        "part of the state",
        "FORK",
        CARRYING,
        SET,
        "self._states = {**checked_states(states, self.state_shapes, next(self.parameters())), "
        '**{n: s for n, s in self._states.items() if n.endswith("wkv")}} if states else {}',
    ),
    _mutant(
        "a reset keeps the token shift",
        "reset",
        "RESET",
        CARRYING,
        SET,
        SET.removesuffix("{}") + '{n: s * n.endswith("shift") for n, s in self._states.items()}',
    ),
    _mutant(
        "a reset does nothing",
        "reset",
        "RESET",
        CARRYING,
        SET,
        SET.removesuffix("{}") + "self._states",
    ),
    _mutant(
        "the third row wraps to the first",
        "row for all",
        "BATCH",
        HYBRID,
        AFTER,
        "self._states = {name: state[torch.arange(batch) % 2] for name, state in new_states.items()}",
    ),
    _mutant(
        "element 0 at the end of a call is taken for the end of the text",
        "state dropped",
        "STEP",
        HYBRID,
        AFTER,
        "self._states = {n: s * (inputs[:, -1] > 0).view(-1, *[1] * (s.dim() - 1)) for n, s in new_states.items()}",
    ),
    _mutant(
        "states that are put back are detached",
        "detached",
        "GRAD",
        CARRYING,
        PUT,
        "return {name: states[name].detach() for name in expected}",
    ),
    _mutant(
        "states that are put back are the first row's",
        "row for all",
        "BATCH",
        CARRYING,
        PUT,
        "return {name: states[name][:1].expand_as(states[name]) for name in expected}",
    ),
    _mutant(
        "states are detached",
        "detached",
        "GRAD",
        HYBRID,
        AFTER,
        "self._states = {name: state.detach() for name, state in new_states.items()}",
    ),
)

WINDOWS = (
    _anchored(
        "the window of keys is kept one element too early",
        "off by one",
        "STEP",
        ATTENTION,
        CUT,
        "keys, values, filled = (x[:, time - 1 : -1].clone() for x in (keys, values, filled))",
    ),
    _anchored(
        "one call sees beyond the window",
        "mask",
        "STEP",
        ATTENTION,
        "seen = (age >= 0) & (age <= before) & filled",
        "seen = (age >= 0) & filled",
    ),
    _anchored(
        "keys are kept for values",
        "wrong state",
        "STEP",
        ATTENTION,
        CUT,
        "keys, values, filled = (x[:, time:].clone() for x in (keys, keys, filled))",
    ),
    _anchored(
        "the second piece of a call sees keys that are off by one",
        "chunk boundary",
        "CHUNK",
        ATTENTION,
        "seen = slice(number * PIECE, number * PIECE + self.window - 1 + queries.shape[1])",
        "seen = slice(number * (PIECE - 1), number * (PIECE - 1) + self.window - 1 + queries.shape[1])",
    ),
    _anchored(
        "a call of several elements sees no earlier keys",
        "state dropped",
        "CHUNK",
        ATTENTION,
        "filled = torch.cat([filled, filled.new_ones(inputs.shape[:2])], 1)",
        "filled = torch.cat([filled * (time == 1), filled.new_ones(inputs.shape[:2])], 1)",
    ),
)

ROWS = (*SHIFTS, *MIXERS, *CARRIED, *WINDOWS)
