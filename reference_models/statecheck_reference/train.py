"""Training of a reference model: seeded, and resumable after a kill at any moment with the very same result.

What a step reads is a function of (seed, step). A checkpoint holds everything else that the next step depends on: the
weights, the optimiser, the carried states, the random generator, and how far the log reaches. A run that is killed and
started again goes back to its last checkpoint, cuts the log there, and repeats the steps in between bit for bit, on the
same machine with the same number of threads.

Several processes can train together (see `parallel.py`): each steps with its rows; the first validates, and writes all
files. A checkpoint holds whole weights and the states of all rows, so that any number of processes can go on from it.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer

from statecheck_reference import diagnostics
from statecheck_reference.checkpointing import CHECKPOINT, held, kept_checkpoint, load_checkpoint, save_checkpoint
from statecheck_reference.corpus import Corpus, corpus_tokenizer
from statecheck_reference.evaluation import Windows, evaluate_with_states
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.models import LanguageModel
from statecheck_reference.optimiser import load_optimiser
from statecheck_reference.parallel import ALONE, World, gathered, share
from statecheck_reference.sampling import sample_text
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.start_checks import G3_STEPS, Check, check_falling, check_untrained, complaints
from statecheck_reference.stepping import Row, Stepped, Stepper, TrainingDiverged
from statecheck_reference.streams import PassageStreams, validation_windows
from statecheck_reference.training_log import TrainingLog, read_log, significant

LOG = "training_log.jsonl"
PROMPT = 16  # tokens of the first held-out passage that the generated sample goes on from
CHANGED = {  # what the result depends on beside the settings, in its last bits: then, now
    "threads": "with {} threads, this process has {}",
    "processes": "by {} processes, now there are {}",
    "device": "on {}, this run is on {}",
}
Report = Callable[[int, Row | None], None]
Warn = Callable[[str], None]


@dataclass
class Run:
    """A training run under way."""

    settings: TrainingSettings
    folder: Path
    corpus: Corpus
    stepper: Stepper
    plain: LanguageModel  # the model, or what its shares are gathered in
    log: TrainingLog | None  # of the main process
    streams: PassageStreams
    windows: Windows
    tokenizer: Tokenizer
    warn: Warn
    step: int = 0
    since: list[Stepped] = field(default_factory=list)  # the last row of the log
    clock: float = field(default_factory=time.perf_counter)

    @property
    def model(self) -> LanguageModel:
        """The model that is trained."""
        return self.stepper.model

    @property
    def world(self) -> World:
        """The processes that train together."""
        return self.stepper.world

    def whole(self) -> LanguageModel:
        """The model with all of its parameters, in the main process; all must ask for it together."""
        if self.world.sharded:
            weights = gathered(self.model.state_dict(), keep=self.world.main)
            if self.world.main:
                self.plain.load_state_dict(weights)
        return self.plain

    def due(self, every: int) -> bool:
        """True if something that happens every so many steps, and at the end, is to happen now."""
        return self.step % every == 0 or self.step == self.settings.steps


def train(
    settings: TrainingSettings,
    corpus: Corpus,
    folder: Path,
    *,
    world: World = ALONE,
    report: Report = lambda step, row: None,
    warn: Warn = print,
    keep: Collection[int] = (),
) -> LanguageModel:
    """Train until `settings.steps`, or go on where an earlier call in `folder` stopped; return the trained model.

    `report(step, row)` is called after every step, with the log's row where there is one; `warn(line)` if the number of
    threads or processes is another one than the checkpoint's, and for the gates G2 and G3 if they fail. The
    checkpoints of the steps in `keep` stay as `checkpoint-STEP.pt`. All processes of `world` must call it; the main one
    reports, and with "fsdp" each returns a model with its shares of the parameters.

    Raises ValueError if settings, corpus and processes don't fit each other, if `folder` holds a run with other
    settings or another corpus, or for a step to keep that is no checkpoint's; RuntimeError if another run trains
    there, TrainingDiverged if a loss or anything else that is logged is not finite.
    """
    lost = [step for step in keep if not settings.has_checkpoint(step)]
    if lost:
        raise ValueError(
            f"keep: expected multiples of checkpoint_every = {settings.checkpoint_every} or the last step, "
            f"{settings.steps}, found {lost[0]}"
        )
    if not world.main:
        report, warn = _silent, _silent
    model = _untrained(settings, world)
    _refuse_what_does_not_fit(settings, corpus, model)
    with held(folder) if world.main else nullcontext():
        world.wait()  # until the folder is the main process's
        run = _begin_or_resume(settings, corpus, folder, model, world, warn)
        try:
            _run_to_the_end(run, report, keep)
        finally:
            if run.log is not None:
                run.log.close()
        return run.model


def _silent(*said: Any) -> None:
    """Neither report nor warn."""


def _untrained(settings: TrainingSettings, world: World) -> LanguageModel:
    world.rows(settings.batch)  # ValueError if they can't be dealt out
    torch.manual_seed(settings.seed)
    model = settings.architecture.build(settings.shape)
    if settings.activation_checkpointing:
        if not hasattr(model, "activation_checkpointing"):
            raise ValueError(
                f"activation_checkpointing: expected a hybrid, found {settings.model}, which keeps all activations; "
                "leave out --activation-checkpointing"
            )
        cast(HybridLanguageModel, model).activation_checkpointing = True
    return cast(LanguageModel, model.to(world.device))


def _refuse_what_does_not_fit(settings: TrainingSettings, corpus: Corpus, model: LanguageModel) -> None:
    vocabulary = settings.shape["vocabulary"]
    if corpus.vocabulary != vocabulary:
        raise ValueError(
            f"corpus: expected the {vocabulary} tokens of the model's vocabulary, found {corpus.vocabulary}; "
            f"train with --shape vocabulary={corpus.vocabulary} or encode the texts anew"
        )
    growing = any(None in shape for shape in model.state_shapes.values())
    if growing and settings.carry and settings.passage_windows > 1:
        raise ValueError(
            f"passage_windows: expected 1, found {settings.passage_windows}: the memory of the {settings.model} grows "
            "with what it reads and can't be cleared row by row; train with --passage-windows 1 or --no-carry"
        )


def _begin_or_resume(
    settings: TrainingSettings, corpus: Corpus, folder: Path, model: LanguageModel, world: World, warn: Warn
) -> Run:
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
    windows = [(inputs.to(world.device), targets.to(world.device)) for inputs, targets in windows]
    plain = copy.deepcopy(model) if world.sharded and world.main else model
    stepper = Stepper.of(settings, model, world)
    step, log_bytes = _restore(stepper, load_checkpoint(folder), corpus.digest, warn)
    world.require_same("checkpoint's step", step)
    log = TrainingLog(folder / LOG, keep_bytes=log_bytes) if world.main else None
    return Run(settings, folder, corpus, stepper, plain, log, streams, windows, corpus_tokenizer(corpus), warn, step)


def _restore(stepper: Stepper, checkpoint: Row | None, digest: str, warn: Warn) -> tuple[int, int]:
    """Put a checkpoint back; the step that it was written at, and how far the log reached."""
    if checkpoint is None:
        return 0, 0
    _refuse_another_run(checkpoint, stepper.settings, digest)
    for what, now in _circumstances(stepper.world).items():
        then = {**_circumstances(ALONE), **checkpoint}[what]  # the first checkpoints told of the threads only
        if then != now:
            warn(
                f"warning: the checkpoint was written {CHANGED[what].format(then, now)}: "
                "the weights will not be bit-identical to an uninterrupted run's"
            )
    own = stepper.model.state_dict()
    stepper.model.load_state_dict(
        {name: share(whole, own.get(name, whole)) for name, whole in checkpoint["weights"].items()}
    )
    stepper.model.set_states(stepper.world.own_states(checkpoint["states"]))
    load_optimiser(stepper.optimiser, checkpoint["optimizer"])
    torch.set_rng_state(checkpoint["generator"])
    return checkpoint["step"], checkpoint["log_bytes"]


def _circumstances(world: World) -> Row:
    """The present value of each in `CHANGED`."""
    return {"threads": torch.get_num_threads(), "processes": world.size, "device": world.device.type}


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


def _run_to_the_end(run: Run, report: Report, keep: Collection[int]) -> None:
    settings = run.settings
    if run.step == 0:
        report(0, _log_untrained(run))
    run.clock = time.perf_counter()
    while run.step < settings.steps:
        run.step += 1
        batch = run.world.own(run.streams.batch_at(run.step - 1))
        run.since.append(run.stepper.step(batch, run.step, detailed=run.due(settings.log_every)))
        row = _log_row(run) if run.due(settings.log_every) else None
        if run.due(settings.checkpoint_every):
            _checkpoint(run, keep)
        report(run.step, row)


def _log_untrained(run: Run) -> Row:
    model = run.whole()
    if run.log is None:
        return {}
    checks = check_untrained(model, run.streams.batch_at(0).inputs.to(run.world.device))
    row: Row = {"step": 0, "checks": _checked(run, checks)}
    if not checks["G1"]["passed"]:
        run.log.append(row)
        raise TrainingDiverged("step 0: the first forward pass is not finite (G1); look at --shape")
    row.update(_validation(run, model))
    run.log.append(row)
    return row


def _log_row(run: Run) -> Row:
    count, seconds = len(run.since), time.perf_counter() - run.clock
    tokens = count * run.settings.batch * run.settings.window
    row = {
        "step": run.step,
        "train_loss": significant(sum(one.loss for one in run.since) / count),
        "lr": significant(run.stepper.rate),
        "gradient_norm": significant(sum(one.norm for one in run.since) / count),
        **run.since[-1].details,
        "tokens_per_second": significant(tokens / seconds, 4),
    }
    if run.due(run.settings.validate_every):
        row.update(_validation(run, run.whole()))
    if run.log is not None:
        if run.step - count < min(G3_STEPS, run.settings.steps) <= run.step:  # the first row from there on
            row["checks"] = _checked(run, check_falling([*read_log(run.folder / LOG), row]))
        run.log.append(row)
    run.since, run.clock = [], time.perf_counter()
    return row


def _checked(run: Run, checks: Mapping[str, Check]) -> dict[str, Check]:
    """The checks with figures of a few digits; those that failed are told."""
    for line in complaints(checks):
        run.warn(line)
    return {
        name: {key: significant(value) if isinstance(value, float) else value for key, value in check.items()}
        for name, check in checks.items()
    }


def _validation(run: Run, model: LanguageModel) -> Row:
    """What the log tells of the whole model on the validation windows; nothing in all but the main process."""
    if not run.world.main:
        return {}
    loss, states = evaluate_with_states(model, run.windows)
    reading = diagnostics.read_states(model, run.settings, run.windows)
    row = {
        "validation_loss": significant(loss),
        "perplexity": significant(math.exp(min(loss, 700))),
        "state_rms": _significant(diagnostics.state_rms(states)),
        "state_entropy": _significant(diagnostics.state_entropy(states)),
        "evolution": _significant(reading.evolution),
        "pinned": _significant(reading.pinned),
        "health": _significant(reading.health),
    }
    run.stepper.require_finite(run.step, row)
    if run.settings.sample_tokens:
        prompt = run.windows[0][0][0, :PROMPT]
        row["sample"] = sample_text(model, run.tokenizer, prompt, run.settings.sample_tokens, seed=run.step)
    return row


def _significant(values: Mapping[str, float]) -> dict[str, float]:
    return {name: significant(value) for name, value in values.items()}


def _checkpoint(run: Run, keep: Collection[int]) -> None:
    log_bytes = (
        run.log.mark() if run.log is not None else 0
    )  # the log first: a checkpoint never knows of rows that the disk may lose
    content = {
        "step": run.step,
        "settings": json.dumps(run.settings.to_dict()),
        "corpus": run.corpus.digest,
        **_circumstances(run.world),
        "torch": str(torch.__version__),  # a str subclass that weights_only would refuse
        "weights": gathered(run.model.state_dict(), keep=run.world.main),
        "states": run.world.all_states({name: state.detach() for name, state in run.model.get_states().items()}),
        "optimizer": gathered(run.stepper.optimiser.state_dict(), keep=run.world.main),
        "generator": torch.get_rng_state(),
        "log_bytes": log_bytes,
    }
    if not run.world.main:
        return
    if run.step in keep:
        save_checkpoint(run.folder, content, kept_checkpoint(run.step))
    save_checkpoint(run.folder, content, CHECKPOINT)
