"""What a worker holds: the plan, the model with its evidence, loaded once, and a function for each kind of cell."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from platform import platform, python_version
from typing import Any, cast

import numpy as np
import torch

from statecheck.catalogue import ItemEntry, items
from statecheck.errors import UsageError
from statecheck.naming import Kind, read_spec
from statecheck.plan import Cell, Plan, digest, versions
from statecheck.probes.contract import Effort, Evidence, gather
from statecheck.resolve import Request, Subject, registered_model, resolve
from statecheck.runner import check_options, run_item
from statecheck.store import changed_sources, not_written, read_json
from statecheck.suite import Suite, parse_suite
from statecheck.supervisor import cores
from statecheck.verdict import Outcome

#: What a cell of each kind runs: "module:function", called with the session and the cell, returns plain data.
KINDS = {
    "item": "statecheck.session:item",
    "trace": "statecheck.tracing:trace_cell",
    "calibrate": "statecheck.testing:calibrate_cell",
    "doctor": "statecheck.doctor:examine",
}


@dataclass
class Session:
    """One worker's view of a run. `model` and `evidence` are None where the plan asks for no model."""

    folder: Path
    plan: Plan
    table: Mapping[str, ItemEntry]
    suite: Suite | None
    model: Subject | None
    evidence: Evidence | None
    seen: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def load(folder: Path) -> Session:
        """Load what the plan in `folder` asks for.

        Raises what :func:`statecheck.resolve.resolve` and :func:`statecheck.probes.contract.gather` raise, and
        :class:`UsageError` for a wrong option in the suite, or a model that is another one than before.
        """
        plan = Plan.from_json(read_json(folder / "plan.json"))
        _use_all_cores()
        table = items()
        suite = parse_suite(plan.suite["text"], items=table) if plan.suite else None
        _check_suite(suite, table, plan)
        model = _resolve(plan)
        evidence = _gather(plan, model)
        session = Session(folder, plan, table, suite, model, evidence)
        session._refuse_another_model()
        return session

    def run(self, cell: Cell) -> dict[str, Any]:
        """What the cell brings, as plain data."""
        module, _, name = KINDS[cell.kind].partition(":")
        function = cast(Callable[[Session, Cell], dict[str, Any]], getattr(import_module(module), name))
        return function(self, cell)

    def subject(self, seconds: float) -> dict[str, Any]:
        """What `subject.json` holds: the model, its inputs, the environment, and the user's source files."""
        return {
            "model": _describe(self.model),
            "inputs": self.evidence.source if self.evidence else "none",
            "inputs_digest": inputs_digest(self.evidence) if self.evidence else "",
            "notes": [*(self.model.notes if self.model else ()), *(self.evidence.notes if self.evidence else ())],
            "environment": environment(),
            "sources": self.sources(),
            "seconds": seconds,
        }

    def sources(self) -> dict[str, str]:
        """SHA-256, when first seen, of what the numbers rest on and the plan does not name.

        These are the Python files loaded so far that belong to no installed package (the user's own), and the files
        that came with a registered model or a checkpoint folder.
        """
        for path in (*_user_files(), *_companions(self.plan, self.model)):
            if str(path) not in self.seen:
                self.seen[str(path)] = digest(path)
        return dict(self.seen)

    def _refuse_another_model(self) -> None:
        """A new worker in a run that has begun must go on with the very same model."""
        before = (read_json(self.folder / "subject.json") or {}).get("model")
        now = _describe(self.model)
        if before is None:
            return
        changed = changed_sources(self.folder)
        if changed:
            raise UsageError(f"while the run went on, {', '.join(changed)} changed; --fresh starts over")
        if before["digest"] != now["digest"]:
            raise UsageError(
                f"{now['title']} has other weights than when this run began: a factory must build the same weights at"
                " every call (seed it, or give a checkpoint); --fresh starts over"
            )


def item(session: Session, cell: Cell) -> dict[str, Any]:
    """A cell of kind "item": one check of the suite on the model; its options are the effort of a search."""
    assert session.suite is not None
    assert session.evidence is not None
    wanted = next(row for row in session.suite.items if row.id == cell.id)
    evidence = replace(session.evidence, effort=Effort(**cell.options))
    outcome = run_item(session.table[cell.id], wanted, evidence)
    _write_violations(session, evidence, outcome)
    return outcome.to_json()


def _write_violations(session: Session, evidence: Evidence, outcome: Outcome) -> None:
    """For each law that a case broke, a script that shows it."""
    if not any(number.broken for number in outcome.measurements):
        return
    from statecheck.violations import FOLDER, recipe_of_plan, write_violations

    recipe = partial(recipe_of_plan, session.plan, evidence, os.getcwd())
    try:
        write_violations(session.folder, evidence, outcome, recipe)
    except OSError as error:
        raise not_written(session.folder / FOLDER, error) from None


def environment() -> dict[str, Any]:
    """The machine and the versions that numbers may depend on in their last digits."""
    return {
        "statecheck": versions()["statecheck"],
        "python": python_version(),
        "platform": platform(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _use_all_cores() -> None:
    """Set once, as sums depend on it; OMP_NUM_THREADS has the last word."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores())


def _check_suite(suite: Suite | None, table: Mapping[str, ItemEntry], plan: Plan) -> None:
    """Refuse a wrong option before anything has run. A check that can't be imported is left to its own cell."""
    wanted = {cell.id for cell in plan.cells}
    for row in suite.items if suite else ():
        if row.id in wanted and row.options:
            with suppress(ImportError, AttributeError):
                check_options(table[row.id].load(), row)


def _resolve(plan: Plan) -> Subject | None:
    """The model. The global generators are seeded first: a factory must bring the same model to every worker."""
    if plan.request is None:
        return None
    torch.manual_seed(plan.seed)
    random.seed(plan.seed)
    np.random.seed(plan.seed % 2**32)
    names = {one.name for one in fields(Request)}
    return resolve(Request(**{name: value for name, value in plan.request.items() if name in names}))


def _gather(plan: Plan, model: Subject | None) -> Evidence | None:
    if plan.request is None or model is None:
        return None
    from statecheck.documents import load_documents

    data = plan.request.get("data") or model.text
    facts = model.model.facts
    rows, source = None, None
    if data is not None:
        documents = load_documents(
            Path(data), tokenizer=model.tokenizer, vocabulary=facts.vocabulary, width=facts.width
        )
        rows, source = documents.rows, documents.source
    return gather(model.model, rows, seed=plan.seed, source=source, training_log=model.training_log)


def _describe(model: Subject | None) -> dict[str, Any]:
    from statecheck.report.record import to_plain

    if model is None:
        return {"title": "no model", "origin": "", "digest": ""}
    facts = asdict(model.model.facts)
    facts["missing"] = {capability.value: reason for capability, reason in model.model.facts.missing.items()}
    return to_plain({"title": model.title, "origin": model.origin, "digest": model.digest, "facts": facts})


def inputs_digest(evidence: Evidence) -> str:
    """SHA-256 of the documents as the model reads them."""
    total = hashlib.sha256()
    for row in evidence.rows:
        total.update(f"{tuple(row.shape)} {row.dtype}\n".encode())
        total.update(row.cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _companions(plan: Plan, model: Subject | None) -> list[Path]:
    """Tokenizer, training log and text of the model, and the weights of a registered one."""
    if model is None or plan.request is None:
        return []
    named = read_spec(plan.request["spec"])
    weights = registered_model(named.name).folder if named.kind is Kind.REGISTERED else None
    return [path for path in (weights, model.tokenizer, model.training_log, model.text) if path is not None]


def _user_files() -> list[Path]:
    paths = sysconfig.get_paths()
    installed = [str(Path(paths[key])) + os.sep for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    others = (*installed, str(Path(__file__).parent) + os.sep)
    files = {file for module in list(sys.modules.values()) if (file := _source(module))}
    return sorted(Path(file) for file in files if not file.startswith(others) and os.path.isfile(file))


def _source(module: object) -> str | None:
    file = getattr(module, "__file__", None)
    return os.path.abspath(file) if isinstance(file, str) and file.endswith(".py") else None
