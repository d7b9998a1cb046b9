"""Mutants of the reference transformer: its cache of keys and values, its bias that grows with the distance."""

from __future__ import annotations

from mutation.layer_rows import CARRYING, GET, SET
from mutation.rows import Mutant, R

MODEL = f"{R}.transformer"
DISTANCE = "distance = torch.arange(past, past + time)[:, None] - torch.arange(past + time)"
MASKED = ".masked_fill(distance < 0, -torch.inf)"
APPENDED = "key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)"
KEPT = 'new_states |= {f"layers.{index}.k": key.to(dtype), f"layers.{index}.v": value.to(dtype)}'
CACHED = 'return (self._states[f"layers.{index}.k"], self._states[f"layers.{index}.v"]) if self._states else None'
BIAS = "bias = attention_bias(past, time, slopes(self.config.heads).to(self.embedding.weight))"


def _mutant(name: str, kind: str, law: str, old: str, new: str, module: str = MODEL) -> Mutant:
    return Mutant(name, "transformer", kind, law, module, old, new)


POSITIONS = (
    _mutant(
        "positions restart in every call",
        "position",
        "STEP",
        DISTANCE,
        DISTANCE.replace("torch.arange(past, past + time)", "torch.arange(time)"),
    ),
    _mutant("positions on a warm cache are off by one", "off by one", "CHUNK", DISTANCE, DISTANCE + " + (past > 0)"),
    _mutant(
        "no bias of distance on a warm cache",
        "two paths",
        "STEP",
        "return (-slope[:, None, None] * distance)",
        "return (-slope[:, None, None] * distance * (past == 0))",
    ),
    _mutant(
        "a single step has no bias", "two paths", "STEP", "attn_mask=bias)", "attn_mask=bias if time > 1 else None)"
    ),
    _mutant(
        "the bias is kept from an earlier call",
        "shared buffer",
        "CHUNK",
        BIAS,
        BIAS.replace("attention_bias(", 'self.__dict__.setdefault(f"bias{past + time}", attention_bias(')
        + ")[:, -time:]",
    ),
)

MASKS = (
    _mutant(
        "training mode has no bias",
        "two paths",
        "PARITY",
        "attn_mask=bias)",
        "attn_mask=bias.masked_fill(bias > -torch.inf, 0) if self.training else bias)",
    ),
    _mutant("the mask shows the next element", "mask", "PREFIX", MASKED, MASKED.replace("< 0", "< -1")),
    _mutant(
        "a call on a warm cache has no mask",
        "mask",
        "CHUNK",
        MASKED,
        MASKED.replace("distance < 0", "(distance < 0) & (past == 0)"),
    ),
    _mutant(
        "heads and elements are not put back in order",
        "wrong axis",
        "PREFIX",
        "answer.transpose(1, 2).flatten(2)",
        "answer.reshape(batch, time, width)",
    ),
    _mutant(
        "the norm takes the mean over the call",
        "wrong axis",
        "PREFIX",
        "projected = self.qkv(self.norm(stream))",
        "projected = self.qkv(self.norm(stream - stream.mean(1, keepdim=True)))",
    ),
    _mutant(
        "the norm takes the mean over the batch",
        "wrong axis",
        "BATCH",
        "projected = self.qkv(self.norm(stream))",
        "projected = self.qkv(self.norm(stream - stream.mean(0, keepdim=True) * (batch > 1)))",
    ),
)

CACHES = (
    _mutant(
        "the cache is not appended to",
        "cache",
        "STEP",
        "self._states = new_states",
        "self._states = self._states or new_states",
    ),
    _mutant(
        "a call of several elements forgets the cache's values",
        "state dropped",
        "CHUNK",
        APPENDED,
        APPENDED.replace("past[1]", "past[1] * (time == 1)"),
    ),
    _mutant(
        "new elements go before the cache",
        "cache",
        "STEP",
        APPENDED,
        "key, value = torch.cat([key, past[0]], dim=2), torch.cat([value, past[1]], dim=2)",
    ),
    _mutant(
        "cached keys are scaled again in every call",
        "decay twice",
        "STEP",
        APPENDED,
        APPENDED.replace("past[0]", "past[0] * 0.9"),
    ),
    _mutant(
        "every row reads the cache of row 0",
        "row for all",
        "BATCH",
        APPENDED,
        APPENDED.replace("past[0]", "past[0][:1].expand_as(past[0])"),
    ),
    _mutant(
        "every layer reads the cache of the first",
        "shared buffer",
        "STEP",
        "self._cached(index), bias)",
        "self._cached(0), bias)",
    ),
    _mutant("cached values are keys", "wrong state", "STEP", CACHED, CACHED.replace('index}.v"', 'index}.k"')),
    _mutant("keys are cached in bfloat16", "low precision", "STEP", KEPT, KEPT.replace("key.to", "key.bfloat16().to")),
    _mutant("values are cached in float16", "low precision", "STEP", KEPT, KEPT.replace("value.to", "value.half().to")),
    _mutant(
        "the cache keeps the last 12 elements",
        "cache",
        "STEP",
        KEPT,
        KEPT.replace("to(dtype)", "to(dtype)[:, :, -12:]"),
    ),
    _mutant(
        "the cache keeps the last 60 elements",
        "cache",
        "CHUNK",
        KEPT,
        KEPT.replace("to(dtype)", "to(dtype)[:, :, -60:]"),
    ),
    _mutant(
        "the cache before a call is cleared when it was read",
        "in place",
        "ALIAS",
        APPENDED,
        APPENDED.replace("key, value =", "key, value, _ =") + ", past[1].zero_()",
    ),
    _mutant("keys are detached", "detached", "GRAD", KEPT, KEPT.replace("key.to", "key.detach().to")),
)

CARRIED = (
    _mutant(
        "the values of the last layer are left out of what is read",
        "part of the state",
        "STEP",
        GET,
        'return {name: state.clone() * (name != "layers.1.v") for name, state in self._states.items()}',
        CARRYING,
    ),
    _mutant(
        "putting states back keeps old keys of the same shape",
        "part of the state",
        "FORK",
        SET,
        "self._states = {n: old if n.endswith('k') and (old := self._states.get(n, s)).shape == s.shape else s "
        "for n, s in checked_states(states, self.state_shapes, next(self.parameters())).items()} if states else {}",
        CARRYING,
    ),
    _mutant("a reset does nothing", "reset", "RESET", SET, SET.removesuffix("{}") + "self._states", CARRYING),
    _mutant(
        "a reset leaves one element in the cache",
        "reset",
        "RESET",
        SET,
        SET.removesuffix("{}") + "{n: s[:, :, :1] for n, s in self._states.items()}",
        CARRYING,
    ),
)

ROWS = (*POSITIONS, *MASKS, *CACHES, *CARRIED)
