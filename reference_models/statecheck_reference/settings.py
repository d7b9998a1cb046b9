"""The settings of a training run: with the corpus and the number of threads, all that its result depends on."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from statecheck_reference.lstm import LSTMConfig


@dataclass(frozen=True)
class TrainingSettings:
    """Truncated back-propagation through time with AdamW; see `docs/reference_lstm.md` for the reasons.

    Counts are in steps; `window` (back-propagation length) and `validation_length` in tokens; `passage_windows` is how
    many windows a row reads before its state is cleared.
    """

    steps: int = 10_000
    batch: int = 8
    window: int = 256
    passage_windows: int = 16
    seed: int = 0
    peak_rate: float = 3e-3
    final_rate: float = 0.1  # as a share of the peak
    warm_up: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    log_every: int = 10
    validate_every: int = 250
    checkpoint_every: int = 250
    validation_rows: int = 16
    validation_length: int = 2_048
    vocabulary: int = 4_096
    width: int = 224
    layers: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("seed", "warm_up", "weight_decay", "final_rate") and value <= 0:
                raise ValueError(f"{field.name}: expected more than 0, found {value}")
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name}: expected a multiple of log_every = {self.log_every}, found {getattr(self, name)}"
                )
        if self.validation_length % self.window:
            raise ValueError(
                f"validation_length: expected a multiple of window = {self.window}, found {self.validation_length}"
            )

    @property
    def config(self) -> LSTMConfig:
        """The shape of the model."""
        return LSTMConfig(self.vocabulary, self.width, self.layers)

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
