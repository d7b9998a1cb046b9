"""The settings of a training run: with the corpus and the number of threads, all that its result depends on."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from statecheck.protocol import ComponentFacts
from statecheck_reference.models import Architecture, Shape, architecture

MAY_BE_ZERO = ("seed", "warm_up", "weight_decay", "final_rate", "sample_tokens")
PRECISIONS = ("float32", "bfloat16")
LIMIT = 2**63  # of whole numbers


@dataclass(frozen=True)
class TrainingSettings:
    """Truncated back-propagation through time with AdamW; see `docs/reference_lstm.md` for the reasons.

    Counts are in steps; `window` (back-propagation length) and `validation_length` in tokens; `passage_windows` is how
    many windows a row reads before its state is cleared, and `carry=False` clears it before every window. `shape` is
    the model's config; what it leaves out is completed from the shipped model's.

    By component: `component_rates` multiplies the learning rate of its parameters (0 never moves them, but their
    gradient counts in `clip`, other than with `freeze`); `component_clips` is the largest norm of its gradient, applied
    before `clip`, which is that of all gradients; `freeze` "FROM:TO" leaves its parameters as they are in the steps
    after FROM up to TO.

    `precision` "bfloat16" runs the model under autocast; the weights stay float32. `activation_checkpointing` computes
    each block again in the backward pass, to save memory. `sample_tokens` of text are generated at each validation.

    >>> TrainingSettings(shape={"width": 32}).shape
    {'vocabulary': 4096, 'width': 32, 'layers': 2}
    """

    model: str = "lstm"
    shape: Shape = field(default_factory=dict)
    steps: int = 10_000
    batch: int = 8
    window: int = 256
    passage_windows: int = 16
    carry: bool = True
    seed: int = 0
    peak_rate: float = 3e-3
    component_rates: Mapping[str, float] = field(default_factory=dict)
    final_rate: float = 0.1  # as a share of the peak
    warm_up: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    component_clips: Mapping[str, float] = field(default_factory=dict)
    freeze: Mapping[str, str] = field(default_factory=dict)
    precision: str = "float32"
    activation_checkpointing: bool = False
    log_every: int = 10
    validate_every: int = 250
    checkpoint_every: int = 250
    validation_rows: int = 16
    validation_length: int = 2_048
    sample_tokens: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.architecture.complete(self.shape))  # the class is frozen from here on
        for one in fields(self):
            value = getattr(self, one.name)
            positive = isinstance(value, (int, float)) and not isinstance(value, bool)
            limit = LIMIT if isinstance(value, int) else math.inf
            if positive and not (0 <= value < limit and (value or one.name in MAY_BE_ZERO)):
                least = "0 or more" if one.name in MAY_BE_ZERO else "more than 0"
                least += f" and less than {limit:.3g}" if value >= limit else ""
                raise ValueError(f"{one.name}: expected {least}, found {value}")
        self._check_intervals()
        self._check_components()
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, found {self.precision!r}")

    def _check_intervals(self) -> None:
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name}: expected a multiple of log_every = {self.log_every}, found {getattr(self, name)}"
                )
        if self.validation_length % self.window:
            raise ValueError(
                f"validation_length: expected a multiple of window = {self.window}, found {self.validation_length}"
            )
        if self.validation_rows < 2:
            raise ValueError("validation_rows: expected at least 2, found 1; health compares the states of documents")

    def _check_components(self) -> None:
        known = [name for name, facts in self.components.items() if facts.parameters]
        for option in ("component_rates", "component_clips", "freeze"):
            for name, value in getattr(self, option).items():
                if name not in known:
                    raise ValueError(
                        f"{option}: expected components of {self.model} that name their parameters "
                        f"({', '.join(known) or 'it has none'}), found {name!r}"
                    )
                if option == "freeze":
                    _steps_of(value, name)
                elif not (0 <= value < math.inf and (value or option == "component_rates")):
                    least = "from 0 up" if option == "component_rates" else "above 0"
                    raise ValueError(f"{option}[{name!r}]: expected a number {least}, found {value}")

    def frozen(self, step: int) -> list[str]:
        """The components whose parameters stay as they are in `step`, counted from 1.

        >>> settings = TrainingSettings("hybrid", freeze={"rwkv": "0:500"})
        >>> settings.frozen(500), settings.frozen(501)
        (['rwkv'], [])
        """
        spans = {name: _steps_of(text, name) for name, text in self.freeze.items()}
        return [name for name, (first, last) in spans.items() if first < step <= last]

    def has_checkpoint(self, step: int) -> bool:
        """True if a checkpoint is written after `step`, counted from 1."""
        return 0 < step <= self.steps and (step % self.checkpoint_every == 0 or step == self.steps)

    @property
    def components(self) -> Mapping[str, ComponentFacts]:
        """The components of a model of this shape."""
        return self.architecture.declared(self.shape).components

    @property
    def architecture(self) -> Architecture:
        """The row of the table of models that `model` names."""
        return architecture(self.model)

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 1: linear warm-up, then half a cosine down to the final share.

        >>> settings = TrainingSettings(steps=300, warm_up=100, peak_rate=1.0)
        >>> [round(settings.rate(step), 3) for step in (1, 100, 200, 300)]
        [0.01, 1.0, 0.55, 0.1]
        """
        if step <= self.warm_up:
            return self.peak_rate * step / self.warm_up
        done = (step - self.warm_up) / max(self.steps - self.warm_up, 1)
        return self.peak_rate * (self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * done)))

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dictionary that JSON can hold."""
        return asdict(self)


def _steps_of(text: str, component: str) -> tuple[int, int]:
    """FROM:TO as two numbers of steps."""
    first, _, last = str(text).partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ValueError(f"freeze[{component!r}]: expected FROM:TO in steps, say 0:500, found {text!r}")
    return int(first), int(last)
