"""Training of a reference model: seeded, and resumable after a kill at any moment with the very same result.

What a step reads is a function of (seed, step). A checkpoint holds everything else that the next step depends on: the
weights, the optimiser, the carried states, the random generator, and how far the log reaches. A run that is killed and
started again goes back to its last checkpoint, cuts the log there, and repeats the steps in between bit for bit, on the
same machine with the same number of threads.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from statecheck_reference import diagnostics
from statecheck_reference.checkpointing import held, load_checkpoint, save_checkpoint
from statecheck_reference.corpus import Corpus
from statecheck_reference.evaluation import Windows, evaluate_with_states
from statecheck_reference.models import LanguageModel
from statecheck_reference.optimiser import make_optimiser, set_rate
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.streams import Batch, PassageStreams, validation_windows
from statecheck_reference.training_log import TrainingLog, significant

LOG, THROUGHPUT = "training_log.jsonl", "throughput.jsonl"
Row = dict[str, Any]


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is not finite: the run is of no use from here on."""


@dataclass
class Run:
    """A training run under way."""

    settings: TrainingSettings
    folder: Path
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    log: TrainingLog
    step: int = 0

    def due(self, every: int) -> bool:
        """True if something that happens every so many steps, and at the end, is to happen now."""
        return self.step % every == 0 or self.step == self.settings.steps


def train(
    settings: TrainingSettings,
    corpus: Corpus,
    folder: Path,
    *,
    report: Callable[[int, Row | None], None] = lambda step, row: None,
    warn: Callable[[str], None] = print,
) -> LanguageModel:
    """Train until `settings.steps`, or go on where an earlier call in `folder` stopped; return the trained model.

    `report(step, row)` is called after every step, with the log's row where there is one; `warn(line)` once if the
    number of threads is another one than the checkpoint's. Raises ValueError if `folder` holds a run with other
    settings or another corpus, RuntimeError if another process trains there, TrainingDiverged if the loss is
    not finite.
    """
    with held(folder):
        streams = PassageStreams(
            corpus,
            batch=settings.batch,
            window=settings.window,
            passage_windows=settings.passage_windows,
            seed=settings.seed,
        )
        windows = validation_windows(
            corpus, rows=settings.validation_rows, length=settings.validation_length, window=settings.window
        )
        run = _begin_or_resume(settings, corpus, folder, warn)
        try:
            _run_to_the_end(run, streams, windows, corpus.digest, report)
        finally:
            run.log.close()
        return run.model


def _begin_or_resume(settings: TrainingSettings, corpus: Corpus, folder: Path, warn: Callable[[str], None]) -> Run:
    torch.manual_seed(settings.seed)
    model = settings.architecture.build(settings.shape)
    optimizer = make_optimiser(model, settings)
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        return Run(settings, folder, model, optimizer, TrainingLog(folder / LOG))
    _refuse_another_run(checkpoint, settings, corpus.digest)
    if checkpoint["threads"] != torch.get_num_threads():
        warn(
            f"warning: the checkpoint was written with {checkpoint['threads']} threads, this process has "
            f"{torch.get_num_threads()}: the weights will not be bit-identical to an uninterrupted run's"
        )
    model.load_state_dict(checkpoint["weights"])
    model.set_states(checkpoint["states"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    torch.set_rng_state(checkpoint["generator"])
    log = TrainingLog(folder / LOG, keep_bytes=checkpoint["log_bytes"])
    return Run(settings, folder, model, optimizer, log, checkpoint["step"])


def _refuse_another_run(checkpoint: Row, settings: TrainingSettings, digest: str) -> None:
    then, now = _flat(json.loads(checkpoint["settings"])), _flat(settings.to_dict())
    names = sorted(then.keys() | now.keys())
    changed = [f"{name} {then.get(name)} -> {now.get(name)}" for name in names if then.get(name) != now.get(name)]
    if checkpoint["corpus"] != digest:
        changed.append(f"corpus {checkpoint['corpus'][:12]} -> {digest[:12]}")
    if changed:
        raise ValueError(
            f"work directory: holds a run with other settings ({'; '.join(changed)}); "
            "repeat its settings to resume it, or choose another folder"
        )


def _flat(settings: Row) -> Row:
    """Settings with the entries of their tables side by side with the others: shape.width, component_rates.rwkv."""
    flat: Row = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _run_to_the_end(
    run: Run,
    streams: PassageStreams,
    windows: Windows,
    digest: str,
    report: Callable[[int, Row | None], None],
) -> None:
    settings = run.settings
    if run.step == 0:
        first = {"step": 0, **_untrained_output(run.model, streams.batch_at(0)), **_validation(run, windows)}
        run.log.append(first)
        report(0, first)
    losses: list[float] = []
    norms: list[float] = []
    began = time.perf_counter()
    while run.step < settings.steps:
        loss, norm, details = _step(run, streams.batch_at(run.step))
        losses.append(loss)
        norms.append(norm)
        row: Row | None = None
        if run.due(settings.log_every):
            row = {**_training_row(run, losses, norms), **details}
            if run.due(settings.validate_every):
                row.update(_validation(run, windows))
            run.log.append(row)
            _write_throughput(run, len(losses), time.perf_counter() - began)
            losses, norms, began = [], [], time.perf_counter()
        if run.due(settings.checkpoint_every):
            _checkpoint(run, digest)
        report(run.step, row)


def _step(run: Run, batch: Batch) -> tuple[float, float, Row]:
    """One update; the loss, the norm of the gradient before clipping, and at the steps that are logged the details."""
    run.step += 1
    set_rate(run.optimizer, run.settings.rate(run.step))
    loss = _backward(run, batch)
    if not run.due(run.settings.log_every):
        return loss, _update(run, loss), {}
    parts = diagnostics.parts_of(run.model, run.settings.architecture)
    details = {"gradient_norms": diagnostics.gradient_norms(parts), "gates": diagnostics.gates(run.model)}
    before = diagnostics.values_of(parts)
    norm = _update(run, loss)
    details["relative_updates"] = diagnostics.relative_updates(parts, before)
    return loss, norm, {name: _significant(values) for name, values in details.items() if values}


def _backward(run: Run, batch: Batch) -> float:
    """The loss on `batch`, and its gradient with respect to the parameters."""
    # Back-propagation is cut at the window's edge; rows that begin a passage forget the one before.
    held = {} if bool(batch.fresh.all()) else run.model.get_states()  # a cache forgets by being dropped, not by zeros
    states = {name: _without(state.detach(), batch.fresh) for name, state in held.items()}
    run.model.set_states(states or None)
    loss = functional.cross_entropy(run.model(batch.inputs).flatten(0, 1), batch.targets.flatten())
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return loss.item()


def _without(state: Tensor, rows: Tensor) -> Tensor:
    """`state` (B, ...) with zeros in the `rows` (B) that are True."""
    kept = (~rows).to(state.dtype).view(-1, *[1] * (state.dim() - 1))  # (B, 1, ...)
    return state * kept


def _update(run: Run, loss: float) -> float:
    """Clip, check and apply the gradient; its norm before clipping."""
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), run.settings.clip).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingDiverged(
            f"step {run.step}: the loss is {loss} and the gradient norm {norm}; "
            f"try a lower --peak-rate than {run.settings.peak_rate}"
        )
    run.optimizer.step()
    return norm


def _training_row(run: Run, losses: list[float], norms: list[float]) -> Row:
    return {
        "step": run.step,
        "train_loss": significant(sum(losses) / len(losses)),
        "lr": significant(run.settings.rate(run.step)),
        "gradient_norm": significant(sum(norms) / len(norms)),
    }


def _validation(run: Run, windows: Windows) -> Row:
    loss, states = evaluate_with_states(run.model, windows)
    return {
        "validation_loss": significant(loss),
        "perplexity": significant(math.exp(loss)),
        "state_rms": _significant(diagnostics.state_rms(states)),
        "health": _significant(diagnostics.health(run.model, run.settings.architecture, windows)),
    }


def _significant(values: Mapping[str, float]) -> dict[str, float]:
    return {name: significant(value) for name, value in values.items()}


def _untrained_output(model: LanguageModel, batch: Batch) -> Row:
    """An untrained model should be undecided: the mean entropy of its output against log V, its largest value."""
    with torch.no_grad():
        log_shares = model(batch.inputs).log_softmax(-1)  # (B, T, V)
    model.set_states(None)
    entropy = float(-(log_shares.exp() * log_shares).sum(-1).mean())
    return {"output_entropy": significant(entropy), "log_vocabulary": significant(math.log(log_shares.shape[-1]))}


def _checkpoint(run: Run, digest: str) -> None:
    log_bytes = run.log.mark()  # the log first: a checkpoint never knows of rows that the disk may lose
    content = {
        "step": run.step,
        "settings": json.dumps(run.settings.to_dict()),
        "corpus": digest,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),  # a str subclass that weights_only would refuse
        "weights": run.model.state_dict(),
        "states": {name: state.detach() for name, state in run.model.get_states().items()},
        "optimizer": run.optimizer.state_dict(),
        "generator": torch.get_rng_state(),
        "log_bytes": log_bytes,
    }
    save_checkpoint(run.folder, content)


def _write_throughput(run: Run, steps: int, seconds: float) -> None:
    """Clock times stand in a file of their own: they differ from run to run, the log must not."""
    tokens = steps * run.settings.batch * run.settings.window
    row = {"step": run.step, "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds, 1)}
    with (run.folder / THROUGHPUT).open("a") as file:
        file.write(json.dumps(row) + "\n")
