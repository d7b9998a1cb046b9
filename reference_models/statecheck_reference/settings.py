"""The settings of a training run: with the corpus and the number of threads, all that its result depends on."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from statecheck_reference.models import Architecture, Shape, architecture

MAY_BE_ZERO = ("seed", "warm_up", "weight_decay", "final_rate")


@dataclass(frozen=True)
class TrainingSettings:
    """Truncated back-propagation through time with AdamW; see `docs/reference_lstm.md` for the reasons.

    Counts are in steps; `window` (back-propagation length) and `validation_length` in tokens; `passage_windows` is how
    many windows a row reads before its state is cleared. `shape` is the model's config; what it leaves out is completed
    from the shipped model's. `component_rates` multiplies the learning rate of a component's parameters; 0 freezes it.

    >>> TrainingSettings(shape={"width": 32}).shape
    {'vocabulary': 4096, 'width': 32, 'layers': 2}
    """

    model: str = "lstm"
    shape: Shape = field(default_factory=dict)
    steps: int = 10_000
    batch: int = 8
    window: int = 256
    passage_windows: int = 16
    seed: int = 0
    peak_rate: float = 3e-3
    component_rates: Mapping[str, float] = field(default_factory=dict)
    final_rate: float = 0.1  # as a share of the peak
    warm_up: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    log_every: int = 10
    validate_every: int = 250
    checkpoint_every: int = 250
    validation_rows: int = 16
    validation_length: int = 2_048

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.architecture.complete(self.shape))  # the class is frozen from here on
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, (int, float)) and one.name not in MAY_BE_ZERO and not value > 0:
                raise ValueError(f"{one.name}: expected more than 0, found {value}")
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
        self._check_component_rates()

    def _check_component_rates(self) -> None:
        known = [name for name, facts in self.architecture.components.items() if facts.parameters]
        for name, rate in self.component_rates.items():
            if name not in known:
                raise ValueError(
                    f"component_rates: expected components of {self.model} that name their parameters "
                    f"({', '.join(known) or 'it has none'}), found {name!r}"
                )
            if not 0 <= rate < math.inf:
                raise ValueError(f"component_rates[{name!r}]: expected a number from 0 up, found {rate}")

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
