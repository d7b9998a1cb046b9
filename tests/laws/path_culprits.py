"""Models with one fault each, named for it: of gradients, of the path that a call takes, of numbers, of what is told.

`law_culprits` holds those of the state itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from law_models import Memory, Remembering
from torch import Tensor, nn


class OnePath(Remembering):
    """The whole call without a cache is read as any other."""

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.read(x, mask, self.begin(x))[0]


class HalvesAGradient(OnePath):
    """Half of the outputs is detached while gradients are recorded."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        lost = y.detach() + 0.5 * (y - y.detach()) if torch.is_grad_enabled() else y
        return lost, after


class NaNGradientBesideAChunk(OnePath):
    """Padding to a multiple of 8 enters the backward pass as 0 * infinity; outputs are right."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        if x.shape[1] > 8 and x.shape[1] % 8:
            y = y + 0 * (self.bias - self.bias.detach()).abs().sqrt().sum()
        return y, after


class GradientInLowPrecision(OnePath):
    """In float32 gradients are rounded to bfloat16 on their way."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        if y.requires_grad and y.dtype == torch.float32:
            y.register_hook(lambda slope: slope.bfloat16().float())  # type: ignore[no-untyped-call]
        return y, after


class BackwardRaises(OnePath):
    """What the backward pass needs is changed in place."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        kept = torch.exp(y)
        y = y + 0 * kept
        kept.add_(1)
        return y, after


class IdleParameter(Remembering):
    """A parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Parameter(torch.ones(2))


class CutsHalfOfTheCarriedGradient(Remembering):
    """Half of the gradient through a state that set_states was given is lost."""

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        cut = states and {name: 0.5 * (value + value.detach()) for name, value in states.items()}
        super().set_states(cut)


class ForgetsWithoutACache(Remembering):
    """The whole call without a cache leaves out the bias."""

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return super().uncached(x, mask) - self.bias


class TrainsAnotherModel(OnePath):
    """In training mode outputs are doubled."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        return y * (1 + self.training), after


class GradientsTakeAnotherPath(Remembering):
    """While gradients are recorded, a layer adds eps elsewhere."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        return (y * 1.001 if torch.is_grad_enabled() else y), after


class NotFiniteAtAMultipleOfEight(Remembering):
    """The last element is divided by what is left of a chunk."""

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return super().uncached(x, mask) / (x.shape[1] % 8 > 0)


class RaisesBeyondThousand(Remembering):
    """A length of 1025 raises, and 2,000 is read."""

    def uncached(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if x.shape[1] == 1025:
            raise RuntimeError("index 1024 is out of bounds")
        return super().uncached(x, mask)


class DividesByTheDecay(nn.Module):
    """h_t = A_t sum of x_s / A_s with A_t = exp(-t softplus(d)): right until A_t is 0, in float32 sooner."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.d = nn.Parameter(torch.linspace(-2.0, 0.0, width))
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        before = torch.zeros_like(x[:, 0]) if self.h is None else self.h
        outputs = []
        for part in x.split(8, 1):
            log_decay = -nn.functional.softplus(self.d) * torch.arange(1, part.shape[1] + 1)[:, None]
            decay = log_decay.to(x).exp()
            y = decay * (before[:, None] + (part / decay).cumsum(1))
            before = y[:, -1]
            outputs.append(y)
        self.h = before
        return torch.cat(outputs, 1)

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"h": self.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.h = None if states is None else states["h"]


class CarriesInLowPrecision(nn.Module):
    """h starts at 1 and grows by w = 1/512 an element, y = h - 1: what a call adds up in float32 is rounded after it.

    By hand, in bfloat16: 1 + 1/512 is rounded to 1, so that every step gives 1/512, where one call gives t/512.
    """

    def __init__(self) -> None:
        super().__init__()
        self.width = 1
        self.w = nn.Parameter(torch.tensor([1 / 512]))
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:  # (B, T, 1) -> (B, T, 1)
        h = torch.ones_like(x[:, 0]) if self.h is None else self.h
        wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        grown = h.to(wide)[:, None] + (self.w.to(wide) * torch.arange(1, x.shape[1] + 1)[:, None])
        self.h = grown[:, -1].to(x.dtype)
        return (grown - 1).to(x.dtype)

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.h is None else {"h": self.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.h = None if states is None else states["h"]


def once_more(module: Any, keys: Any) -> None:
    """The hook of a release that saved the exponential."""
    module.decay.data.log_()


def left_out(module: nn.Module, saved: dict[str, Tensor], prefix: str, local: Any) -> None:
    """A hook that thinks a bias can be made again."""
    saved.pop(prefix + "bias")


class LogTakenOnLoad(Remembering):
    """A decay is written once more by a hook after loading, as if what was loaded were its exponential."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.decay.fill_(2.0)
        self.register_load_state_dict_post_hook(once_more)


class LeftOutOfTheStateDict(Remembering):
    """A parameter is neither saved nor loaded, and nobody says so."""

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(left_out)

    def _load_from_state_dict(self, saved: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict({**saved, prefix + "bias": self.bias.data}, prefix, *rest)

    def load_state_dict(self, saved: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(saved, strict=False, assign=assign)


class DropoutInEvaluation(Remembering):
    """A dropout that is always on."""

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        return nn.functional.dropout(y, 0.1), after


class AlternatesFromCallToCall(Remembering):
    """Every second sequence is read with another sign: by hand, a relative deviation of 2."""

    sign = 1

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        super().set_states(states)
        self.sign = -self.sign if states is None else self.sign

    def read(self, x: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        y, after = super().read(x, mask, memory)
        return self.sign * y, after


class IdleState(Remembering):
    """A state that is carried, changes from call to call, and is never read."""

    def get_states(self) -> dict[str, Tensor]:
        return {**super().get_states(), "momentum": self.memory.h * 2} if self.memory else {}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        super().set_states(states)
        self.given = None if states is None else states["momentum"]


class PutsBackSomethingElse(Remembering):
    """set_states rounds what it is given."""

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        super().set_states(states and {name: value.bfloat16().to(value) for name, value in states.items()})


class ReadsWhatItDoesNotTell(Remembering):
    """h is told, the window is not."""

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.memory is None else {"h": self.memory.h}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        if states is None:
            self.memory = None
        elif self.memory is not None and len(self.memory.window) == len(states["h"]):
            self.memory = Memory(states["h"], self.memory.window)
        else:
            h = states["h"]
            self.memory = Memory(h, h.new_zeros(len(h), self.kernel - 1, self.width))


class DoublesItsBuffer(nn.Module):
    """What was read is kept in a buffer of 8 elements, then 16, 32, 64, of which it reads the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 1
        self.scale = nn.Parameter(torch.ones(1))
        self.buffer: Tensor | None = None  # (B, size)
        self.used = 0

    def forward(self, x: Tensor) -> Tensor:  # (B, T, 1) -> (B, T, 1)
        held = x.new_zeros(len(x), 8) if self.buffer is None else self.buffer
        outputs = []
        for x_t in x.unbind(1):
            if self.used == held.shape[1]:
                held = torch.cat([held, torch.zeros_like(held)], 1)
            held = held.index_add(1, torch.tensor([self.used]), x_t)
            self.used += 1
            outputs.append(self.scale * held.sum(1, keepdim=True))
        self.buffer = held
        return torch.stack(outputs, 1)

    def get_states(self) -> dict[str, Any]:
        return {} if self.buffer is None else {"buffer": self.buffer, "used": self.used}

    def set_states(self, states: Mapping[str, Any] | None) -> None:
        self.buffer, self.used = (None, 0) if states is None else (states["buffer"], states["used"])
