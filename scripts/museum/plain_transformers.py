"""Each bug in calls of transformers alone: what comes out against what must, as a relative error.

Every function takes a model and gives (error, what was compared). A call that raises is an infinite error, told by
`inside`. Numbers of tokens are chosen so that other bugs of the same release stay out where that can be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from museum.calling import Conversation, relative, uncached
from museum.families import VOCABULARY

Found = tuple[float, str]
WIDTH = None  # of input vectors: these models read tokens


def tokens(rows: int, time: int, seed: int = 0) -> Tensor:
    """(rows, time) ids; 0 and 1 are left to pads and starts."""
    return torch.randint(2, VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(seed))


def chunk(model: nn.Module) -> Found:
    """4 tokens, then 3 on the warm state, then 1: against one call over 7, and that call and a step."""
    ids = tokens(1, 8)
    found = Conversation(model)
    found.call(ids[:, :4])
    second = relative(found.call(ids[:, 4:7]), uncached(model, ids[:, :7])[:, 4:])
    expected = Conversation(model)
    expected.call(ids[:, :7])
    after = relative(found.call(ids[:, 7:]), expected.call(ids[:, 7:]))
    return max(second, after), f"4 + 3 tokens against 7: {second:.2g}; the step after: {after:.2g}"


def prefix(model: nn.Module) -> Found:
    """The first n logits of 21 tokens against those of n tokens, around the chunk of 8."""
    ids = tokens(1, 21)
    whole = uncached(model, ids)
    errors = {n: relative(whole[:, :n], uncached(model, ids[:, :n])) for n in (2, 7, 8, 9, 12, 16, 17, 20)}
    worst = max(errors, key=lambda n: errors[n])
    return errors[worst], f"f(x)[:{worst}] against f(x[:{worst}]), 21 tokens"


def step(model: nn.Module) -> Found:
    """4 tokens and 4 steps, against one call over 8."""
    ids = tokens(1, 8)
    found = Conversation(model)
    parts = [found.call(ids[:, :4]), *(found.call(ids[:, t : t + 1]) for t in range(4, 8))]
    return relative(torch.cat(parts, 1), uncached(model, ids)), "4 tokens and 4 steps against 8 tokens"


def batch(model: nn.Module) -> Found:
    """4 tokens and a step of two rows, against each row alone."""
    ids = tokens(2, 5)
    together = _stepped(model, ids)
    if together.shape != (2, 1, VOCABULARY):
        return float("inf"), f"a step of 2 rows has shape {tuple(together.shape)}"
    alone = torch.cat([_stepped(model, row[None]) for row in ids])
    return relative(together, alone), "a step of two rows against each row alone"


def _stepped(model: nn.Module, ids: Tensor) -> Tensor:
    talk = Conversation(model)
    talk.call(ids[:, :-1])
    return talk.call(ids[:, -1:])


def padl(model: nn.Module) -> Found:
    """Two rows, the first with 3 pads on its left, against the first alone; a call without a cache."""
    return _padded_left(model, 2)


def padl_one(model: nn.Module) -> Found:
    """The same with that row as a batch of one."""
    return _padded_left(model, 1)


def _padded_left(model: nn.Module, rows: int) -> Found:
    ids = tokens(rows, 8)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    found = uncached(model, ids, mask)[:1, 3:]
    return relative(found, uncached(model, ids[:1, 3:])), f"3 pads left of 5 tokens, batch of {rows}, no cache"


def padr(model: nn.Module) -> Found:
    """Two rows, the first with 3 pads on its right, then a step of both, against the first alone."""
    ids, last = tokens(2, 8), tokens(2, 1, seed=1)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    found = Conversation(model)
    found.call(ids, mask)
    after = found.call(last)[:1]
    return relative(after, _stepped(model, torch.cat([ids[:1, :5], last[:1]], 1))), "5 tokens, 3 pads, then a step"


def reorder(model: nn.Module) -> Found:
    """Beam search over 3 beams: the score it reports against the log-probability of what it found; 4 prompts."""
    errors = [_beams(model, tokens(1, 5, seed)) for seed in range(4)]
    return max(errors), "score of the best of 3 beams against its log-probability, 8 tokens, worst of 4 prompts"


def _beams(model: nn.Module, ids: Tensor) -> float:
    found = model.generate(  # type: ignore[operator]
        ids,
        num_beams=3,
        max_new_tokens=8,
        do_sample=False,
        use_cache=True,
        length_penalty=0.0,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    logits = uncached(model, found.sequences).log_softmax(-1)
    new = found.sequences[:, ids.shape[1] :]
    said = logits[:, ids.shape[1] - 1 : -1].gather(-1, new[..., None]).sum()
    return relative(found.sequences_scores[:1], said[None])


def reset(model: nn.Module) -> Found:
    """A call of two rows, then a call of one, against the same call of a model that read nothing."""
    ids = tokens(2, 6)
    expected = uncached(model, ids[:1])
    model(ids, use_cache=True)
    return relative(model(ids[:1], use_cache=False).logits, expected), "a batch of 2 with a cache, then one of 1"


def crop(model: nn.Module) -> Found:
    """6 tokens, 3 other steps, crop to 6, a step; against 6 tokens and that step."""
    ids, others = tokens(1, 7), tokens(1, 3, seed=1)
    talk = Conversation(model)
    talk.call(ids[:, :6])
    for t in range(3):
        talk.call(others[:, t : t + 1])
    try:
        talk.cache.crop(6)
    except Exception as error:
        return 0.0, f"refuses: {type(error).__name__}: {error}"
    talk.length = 6
    return relative(talk.call(ids[:, 6:]), _stepped(model, ids)), "3 steps, crop(6), a step; against never advanced"


CONFIRMATIONS: Mapping[str, Callable[[nn.Module], Found]] = {
    "chunk": chunk,
    "prefix": prefix,
    "step": step,
    "batch": batch,
    "padl": padl,
    "padl_one": padl_one,
    "padr": padr,
    "reorder": reorder,
    "reset": reset,
    "crop": crop,
}
