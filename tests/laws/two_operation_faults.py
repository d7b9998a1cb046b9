"""Models whose state is right under every law of one operation, and wrong when two of them meet."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from statecheck.adapters import wrap
from statecheck.adapters.contract import asking
from statecheck.protocol import ModelFacts, Native, States


class Pool(nn.Module):
    """A GRU whose states lie in slots, as a server keeps them: slots stay when the batch gets smaller.

    The fault: where the batch then grows again within these slots, the rows that come back hold zeros. A smaller batch
    alone is right, and so is a larger one that takes new slots; REORDER sees one of them at a time.
    """

    def __init__(self, *, right: bool = False) -> None:
        super().__init__()
        self.right = right
        self.cell = nn.GRU(4, 8, batch_first=True)
        self.slots: Tensor | None = None  # (slots, H), of which `rows` are in use
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:  # (B, T, 4)
        outputs, after = self.cell(x, None if self.slots is None else self.slots[None, : self.rows])
        spare = after[0, :0] if self.slots is None else self.slots[self.rows :]
        self.slots, self.rows = torch.cat([after[0], spare]), len(x)
        return outputs

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.slots is None else {"layers.0.h": self.slots[: self.rows]}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        given = None if states is None else states["layers.0.h"]
        if given is None or self.slots is None or len(given) > len(self.slots):
            self.slots = given
        else:
            kept = len(given) if self.right else min(len(given), self.rows)
            self.slots = torch.cat([given[:kept], torch.zeros_like(self.slots[kept:])])
        self.rows = 0 if given is None else len(given)


class Checkpointed(nn.Module):
    """A GRU that keeps its state after each element, so that it can be rolled back, as drafts of a hybrid need it.

    The fault: another order of the rows reaches the state, and not the states that were kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 8, batch_first=True)
        self.kept: list[Tensor] = []  # (1, B, H) after each element

    def forward(self, x: Tensor) -> Tensor:  # (B, T, 4)
        outputs = []
        for x_t in x.split(1, 1):
            output, after = self.cell(x_t, self.kept[-1] if self.kept else None)
            self.kept.append(after)
            outputs.append(output)
        return torch.cat(outputs, 1)

    def get_states(self) -> dict[str, Tensor]:
        return {"layers.0.h": self.kept[-1][0]} if self.kept else {}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        self.kept = [] if states is None else [states["layers.0.h"][None]]


class Sloppy(Checkpointed):
    """Wrong in all that a claim can say: a tenth of the state is lost before each call on a warm one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kept:
            self.kept = [*self.kept[:-1], 0.9 * self.kept[-1]]
        return super().forward(x)


class Library:
    """:class:`Checkpointed` with operations of its own, as an adapter would offer them. A mask is taken and ignored."""

    def __init__(self, module: Checkpointed, facts: ModelFacts | None = None, *, uncached: bool = False) -> None:
        self.module = module
        self.facts = facts or wrap(module).facts
        self.uncached = uncached

    def __call__(self, inputs: Tensor, *, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        return asking(self.module, inputs)

    def get_states(self) -> States:
        return {name: value.clone() for name, value in self.module.get_states().items()}

    def set_states(self, states: States | None) -> None:
        self.module.set_states(states)

    def rebuild(self) -> Library:
        module = type(self.module)()
        module.load_state_dict(self.module.state_dict())
        return Library(module, self.facts, uncached=self.uncached)

    @property
    def native(self) -> Native:
        def reorder(rows: Tensor) -> None:
            *before, last = self.module.kept
            same = len(rows) == last.shape[1]
            self.module.kept = [*(before if same else [kept[:, rows] for kept in before]), last[:, rows]]

        def crop(length: int) -> None:
            self.module.kept = self.module.kept[:length]

        def hold(kept: object) -> None:
            self.module.kept = kept  # type: ignore[assignment]

        def uncached(inputs: Tensor, mask: Tensor | None) -> Tensor:
            return self.rebuild().module(inputs)

        offered = uncached if self.uncached else None
        return Native(reorder, crop, lambda: self.set_states(None), lambda: self.module.kept, hold, uncached=offered)
