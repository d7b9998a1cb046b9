"""What the tests of the reference hybrid share: how far two answers are apart, weights and inputs drawn from a seed."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
#: Log decays that a formula may meet: all forgotten (-100, and so far below that float32's exp is 0), all kept.
EXTREMES = (-100.0, -1e-4, -1e4, -1.0, -1e-10)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative difference, the norm of a whole tensor against the norm of a whole tensor; NaN counts as infinite."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    difference, size = (found - expected).norm(), expected.norm()
    return float(torch.nan_to_num(difference / size.clamp_min(1e-300), nan=torch.inf)) if difference != 0 else 0.0


def worst(found: Tensor, expected: Tensor, terms: Tensor) -> float:
    """The largest difference of an element, in units of the sum of its terms' absolute values (0 / 0 is 0).

    A sum of terms that cancel can't be exact to a relative 1e-5, but to 1e-5 of its terms it must be, at every token.
    """
    assert found.shape == expected.shape == terms.shape
    shares = (found.detach().double() - expected.detach().double()).abs() / terms.detach().double().clamp_min(1e-300)
    return float(torch.nan_to_num(shares, nan=torch.inf).max()) if found.numel() else 0.0


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


def randomised(make: Callable[[], Module], seed: int) -> Module:
    """A module all of whose parameters matter: vectors get normal numbers added, matrices are drawn anew."""
    with torch.random.fork_rng():  # a module draws its first values from the global generator
        torch.manual_seed(seed)
        module = make()
    draw = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = normal(draw, *parameter.shape).to(parameter.dtype)
            parameter.copy_(parameter + 0.5 * drawn if parameter.dim() == 1 else drawn * parameter.shape[-1] ** -0.5)
    return module


#: Lengths of 0 to 200 with those around the chunks of 32 and 64 tokens likelier, and places to cut (repeats: no token).
LENGTHS = st.one_of(st.integers(0, 200), st.sampled_from([1, 2, 31, 32, 33, 63, 64, 65, 95, 97, 127, 128, 129, 193]))
SEEDS = st.integers(0, 2**31)
DTYPES = st.sampled_from([torch.float32, torch.float64])
#: For whole layers in float32: how well a layer is conditioned depends on its weights, so these are no random draws.
FIXED = [[1], [5, 1, 7], [31, 2, 34, 5], [129, 71]]
KINDS = st.sampled_from(["mild", "extreme", "by channel"])


@st.composite
def pieces(draw: st.DrawFn, shortest: int = 0) -> list[int]:
    """Lengths of pieces, each of at least `shortest` tokens, that are up to 200 tokens together."""
    length = draw(LENGTHS)
    cuts = sorted(draw(st.lists(st.integers(0, length), max_size=5)))
    found = [end - start for start, end in zip([0, *cuts], [*cuts, length], strict=True)]
    return [piece for piece in found if piece >= shortest]


def split(arrays: Mapping[str, Tensor], lengths: Sequence[int]) -> list[dict[str, Tensor]]:
    """The arrays cut along time, dimension 1."""
    parts = [x.split(list(lengths), 1) for x in arrays.values()]
    return [dict(zip(arrays, piece, strict=True)) for piece in zip(*parts, strict=True)]
