"""What the reference models share: states that are carried from call to call, and checks of what comes in."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

States = dict[str, Tensor]
Shape = tuple[int | None, ...]  # without the batch; None is a length that grows, the same in all states


class CarriesStates(nn.Module):
    """A module whose memory is `_states`, flat and batch first; {} before the first call.

    A model names its states in `state_shapes`, and in its forward reads `_states` and puts the next ones there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._states: States = {}

    @property
    def state_shapes(self) -> Mapping[str, Shape]:
        """Name of every state and its shape, without the batch."""
        raise NotImplementedError

    def get_states(self) -> States:
        """All that the model remembers, by name, batch first; {} before the first call.

        The tensors are copies (gradients pass through them): neither a later call nor a write into them by the caller
        meets the other side.
        """
        return {name: state.clone() for name, state in self._states.items()}

    def set_states(self, states: Mapping[str, Tensor] | None) -> None:
        """Continue from `states`; None or {} forgets everything.

        The very tensors given are used, so that gradients of later outputs reach them. Raises ValueError that names
        what was expected and found when names, shapes, dtype or device don't fit, TypeError for a value that is no
        tensor.
        """
        self._states = checked_states(states, self.state_shapes, next(self.parameters())) if states else {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CarriesStates":
        """`.to()`, `.double()`, `.cuda()`: what the model remembers moves with its parameters."""
        super()._apply(fn, recurse)
        self._states = {name: fn(state) for name, state in self._states.items()}
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the states go along by value, without the graph that made them."""
        members = self.__dict__.copy()
        members["_states"] = {name: state.detach() for name, state in self._states.items()}
        return members


def check_tokens(inputs: Tensor, vocabulary: int, states: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `inputs` are (batch, time) ids of the vocabulary, of the batch that `states` have.

    >>> check_tokens(torch.tensor([[0, 5]]), 5, {})
    Traceback (most recent call last):
        ...
    ValueError: inputs: expected token ids from 0 to 4, found 5; was the text encoded with this model's own tokenizer?
    """
    if inputs.dim() != 2 or inputs.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            "inputs: expected token ids of shape (batch, time) in int64 or int32, "
            f"found shape {tuple(inputs.shape)} in {inputs.dtype}"
        )
    if inputs.shape[0] == 0:
        raise ValueError("inputs: expected at least one row, found a batch of 0")
    if inputs.numel() and (int(inputs.min()) < 0 or int(inputs.max()) >= vocabulary):
        wrong = inputs[(inputs < 0) | (inputs >= vocabulary)][0].item()
        raise ValueError(
            f"inputs: expected token ids from 0 to {vocabulary - 1}, found {wrong}; "
            "was the text encoded with this model's own tokenizer?"
        )
    _check_batch(inputs, states)


def check_vectors(inputs: Tensor, width: int, states: Mapping[str, Tensor], like: Tensor) -> None:
    """Raise ValueError unless `inputs` are (batch, time, width) in the dtype of `like`, of the batch of `states`.

    >>> check_vectors(torch.zeros(1, 2, 3), 4, {}, torch.zeros(1))
    Traceback (most recent call last):
        ...
    ValueError: inputs: expected vectors of shape (batch, time, 4) in torch.float32, found (1, 2, 3) in torch.float32
    """
    if inputs.dim() != 3 or inputs.shape[2] != width or inputs.dtype != like.dtype:
        raise ValueError(
            f"inputs: expected vectors of shape (batch, time, {width}) in {like.dtype}, "
            f"found {tuple(inputs.shape)} in {inputs.dtype}"
        )
    if inputs.shape[0] == 0:
        raise ValueError("inputs: expected at least one row, found a batch of 0")
    _check_batch(inputs, states)


def _check_batch(inputs: Tensor, states: Mapping[str, Tensor]) -> None:
    remembered = len(next(iter(states.values()))) if states else inputs.shape[0]
    if remembered != inputs.shape[0]:
        raise ValueError(
            f"inputs: expected a batch of {remembered}, the batch of the states carried from the last call, found "
            f"{inputs.shape[0]}; call set_states(None) to start afresh"
        )


def checked_states(states: Mapping[str, Tensor], expected: Mapping[str, Shape], like: Tensor) -> States:
    """`states` in the order of `expected`, the very tensors.

    Raises ValueError for other names, shapes that don't fit, another dtype or device than that of `like`, and TypeError
    for a value that is no tensor.

    >>> checked_states({"h": torch.zeros(2, 3)}, {"h": (4,)}, torch.zeros(1))
    Traceback (most recent call last):
        ...
    ValueError: states['h']: expected shape (batch, 4) with one batch of at least 1 for all states, found (2, 3)
    """
    if set(states) != set(expected):
        missing = ", ".join(name for name in expected if name not in states) or "none"
        unknown = ", ".join(sorted(map(str, set(states) - set(expected)))) or "none"
        raise ValueError(f"states: expected the names {', '.join(expected)}; missing: {missing}; unknown: {unknown}")
    batch: int | None = None
    time: int | None = None
    for name, shape in expected.items():
        state = states[name]
        if not isinstance(state, Tensor):
            raise TypeError(f"states[{name!r}]: expected a tensor, found {type(state).__name__}")
        found = tuple(state.shape)
        batch = found[0] if batch is None and found else batch
        if None in shape and time is None and len(found) == len(shape) + 1:
            time = found[1 + shape.index(None)]
        if found != (batch, *(time if size is None else size for size in shape)) or 0 in (batch, time):
            asked = ", ".join("time" if size is None else str(size) for size in shape)
            lengths = " and one time" if None in shape else ""
            raise ValueError(
                f"states[{name!r}]: expected shape (batch, {asked}) with one batch{lengths} of at least 1 for all "
                f"states, found {found}"
            )
        if state.dtype != like.dtype or state.device != like.device:
            raise ValueError(
                f"states[{name!r}]: expected {like.dtype} on {like.device} like the parameters, "
                f"found {state.dtype} on {state.device}"
            )
    return {name: states[name] for name in expected}
