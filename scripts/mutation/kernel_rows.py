"""Mutants of the kernels under the hybrid: the recurrences and the convolution, their state from call to call.

The pure-torch kernels read a call of one element step by step and a longer one in chunks; a fault in one of the two is
the commonest kind there is.
"""

from __future__ import annotations

from mutation.rows import K, Mutant

CONVOLUTION, PIECES, WKV, SSD = (f"{K}.chunked.{name}" for name in ("convolution", "pieces", "rwkv6", "mamba2"))
WINDOW = "seen = torch.cat([state.transpose(1, 2), wide], 1)"
LAST = "return seen[:, layout.longest :].transpose(1, 2).contiguous()"
BETWEEN = "before, state = states_between(whole.exp().unsqueeze(-1), writes, state)"


def _mutant(name: str, kind: str, law: str, module: str, old: str, new: str) -> Mutant:
    return Mutant(name, "hybrid", kind, law, module, old, new)


CONVOLUTIONS = (
    _mutant(
        "the window is kept one element too early",
        "off by one",
        "STEP",
        CONVOLUTION,
        LAST,
        LAST.replace("layout.longest :", "layout.longest - 1 : -1"),
    ),
    _mutant(
        "a single step does not move the window",
        "stale",
        "STEP",
        CONVOLUTION,
        LAST,
        "return seen[:, :-1].transpose(1, 2).contiguous() if layout.longest == 1 else " + LAST.removeprefix("return "),
    ),
    _mutant(
        "a call shorter than the window forgets it",
        "state dropped",
        "STEP",
        CONVOLUTION,
        WINDOW,
        WINDOW.replace("2), wide", "2) * (layout.longest >= state.shape[2]), wide"),
    ),
    _mutant(
        "a call of several elements starts from an empty window",
        "state dropped",
        "CHUNK",
        CONVOLUTION,
        WINDOW,
        WINDOW.replace("2), wide", "2) * (layout.longest == 1), wide"),
    ),
    _mutant(
        "every row gets the last row's window",
        "row for all",
        "BATCH",
        CONVOLUTION,
        WINDOW,
        WINDOW.replace("state.transpose", "state[-1:].expand_as(state).transpose"),
    ),
    _mutant(
        "the window is written into the caller's tensor",
        "in place",
        "ALIAS",
        CONVOLUTION,
        "return outputs, _last(seen, layout), None",
        "return outputs, state.copy_(_last(seen, layout)), None",
    ),
)

WKVS = (
    _mutant(
        "chunks start from no state",
        "state dropped",
        "CHUNK",
        WKV,
        BETWEEN,
        "before, state = states_between(whole.exp().unsqueeze(-1), writes, torch.zeros_like(state))",
    ),
    _mutant(
        "the element itself decays the state that it reads",
        "off by one",
        "STEP",
        WKV,
        "answers = (r * since_start.exp()) @ before",
        "answers = (r * (since_start + log_w).exp()) @ before",
    ),
    _mutant(
        "the bonus is left out of chunks",
        "two paths",
        "STEP",
        WKV,
        "diagonal = (r * bonus[:, None, None, :] * k)",
        "diagonal = (r * k)",
    ),
    _mutant(
        "a step reads the state that it has written",
        "off by one",
        "STEP",
        WKV,
        "before = torch.stack(states, 1)[:, :-1]",
        "before = torch.stack(states, 1)[:, 1:]",
    ),
    _mutant(
        "decays of the wrong half reach the end of a chunk",
        "chunk boundary",
        "STEP",
        WKV,
        "_first(until_end) + second.unsqueeze(-2)",
        "_first(until_end) + first.unsqueeze(-2)",
    ),
    _mutant(
        "a cached decay is applied twice",
        "decay twice",
        "STEP",
        PIECES,
        "state = share * state + written",
        "state = share * share * state + written",
    ),
    _mutant(
        "the state of the last chunk is lost",
        "chunk boundary",
        "STEP",
        PIECES,
        "return torch.stack(before, 2), state",
        "return torch.stack(before, 2), before[-1]",
    ),
    _mutant(
        "a whole chunk loses its state",
        "chunk boundary",
        "STEP",
        WKV,
        "return in_order(answers, steps), state",
        "return in_order(answers, steps), state if steps % CHUNK else before[:, :, -1]",
    ),
    _mutant(
        "the second chunk starts where the first did",
        "chunk boundary",
        "STEP",
        PIECES,
        "before.append(state)",
        "before.append(before[0] if before else state)",
    ),
)

SSDS = (
    _mutant(
        "the first element of a chunk does not decay what was before",
        "off by one",
        "CHUNK",
        SSD,
        "since_start = log_a.cumsum(-1).exp()",
        "since_start = (log_a.cumsum(-1) - log_a).exp()",
    ),
    _mutant(
        "an element decays what it writes",
        "off by one",
        "STEP",
        SSD,
        "sums = columns.masked_fill(~lower.tril(-1), 0)",
        "sums = columns.masked_fill(~lower.tril(), 0)",
    ),
    _mutant(
        "a chunk sums over the wrong axis",
        "wrong axis",
        "PREFIX",
        SSD,
        "answers = scores @ x",
        "answers = scores.transpose(-1, -2) @ x",
    ),
    _mutant(
        "a step gives the groups to the heads in another order",
        "wrong axis",
        "STEP",
        SSD,
        "read_now = _to_heads(now[3], x.shape[2], 2)",
        "read_now = now[3].repeat(1, 1, x.shape[2] // now[3].shape[2], 1)",
    ),
    _mutant(
        "a step writes its state into the caller's tensor",
        "in place",
        "ALIAS",
        SSD,
        "state = states[-1]",
        "state = state.copy_(states[-1])",
    ),
    _mutant(
        "a step has no skip",
        "two paths",
        "STEP",
        SSD,
        "if D is not None:",
        "if D is not None and layout.longest > 1:",
    ),
)

ROWS = (*CONVOLUTIONS, *WKVS, *SSDS)
