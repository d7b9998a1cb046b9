"""What tests of recurrences share: places to cut a sequence, decays that a formula may meet, errors by term."""

import torch
from hypothesis import strategies as st
from torch import Tensor

#: Log decays that a formula may meet: all forgotten (-100, and so far below that float32's exp is 0), all kept.
EXTREMES = (-100.0, -1e-4, -1e4, -1.0, -1e-10)
KINDS = ("mild", "extreme", "by channel")
#: Lengths of 0 to 200 with those around the chunks of 32 and 64 tokens likelier, and places to cut (repeats: no token).
LENGTHS = st.one_of(st.integers(0, 200), st.sampled_from([1, 2, 31, 32, 33, 63, 64, 65, 95, 97, 127, 128, 129, 193]))
SEEDS = st.integers(0, 2**31)


@st.composite
def pieces(draw: st.DrawFn, shortest: int = 0) -> list[int]:
    """Lengths of pieces, each of at least `shortest` tokens, that are up to 200 tokens together."""
    length = draw(LENGTHS)
    cuts = sorted(draw(st.lists(st.integers(0, length), max_size=5)))
    found = [end - start for start, end in zip([0, *cuts], [*cuts, length], strict=True)]
    return [piece for piece in found if piece >= shortest]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def log_decays(draw: torch.Generator, kind: str, *shape: int) -> Tensor:
    """ "mild" ones of a trained model, "extreme" ones mixed token by token, or "by channel": extremes that stay."""
    if kind == "mild":
        return -normal(draw, *shape).exp()
    picked = torch.randint(len(EXTREMES), shape if kind == "extreme" else shape[-1:], generator=draw)
    return torch.tensor(EXTREMES, dtype=torch.float64)[picked].expand(shape).clone()


def worst(found: Tensor, expected: Tensor, terms: Tensor) -> float:
    """The largest difference of an element, in units of the sum of its terms' absolute values (0 / 0 is 0).

    A sum of terms that cancel can't be exact to a relative 1e-5, but to 1e-5 of its terms it must be, at every token.
    """
    assert found.shape == expected.shape == terms.shape
    shares = (found.detach().double() - expected.detach().double()).abs() / terms.detach().double().clamp_min(1e-300)
    return float(torch.nan_to_num(shares, nan=torch.inf).max()) if found.numel() else 0.0
