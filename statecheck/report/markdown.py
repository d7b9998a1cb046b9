"""The files of a run that people read: the gate, the statefulness report with its pictures; and their plain data.

report.json  baseline_metrics.json  statefulness_report.md  images/*.png  VALIDATION_GATE_{PASS,FAIL,INCONCLUSIVE}.md
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statecheck import plots
from statecheck.atomic import atomic_write_bytes, atomic_write_text
from statecheck.compare import baseline_metrics
from statecheck.escaping import visible
from statecheck.report.prose import answer, shortfalls
from statecheck.report.record import Report, json_text, to_plain
from statecheck.report.rows import counts, interval_text, part_remark, row_of, sides, value_text
from statecheck.report.violations import broken_laws, lines_of, replay_of
from statecheck.verdict import Verdict

if TYPE_CHECKING:
    from jinja2 import Environment


class Trusted(str):
    """Text of statecheck's own, or escaped already: the templates print it as it is, and escape all else."""

    __slots__ = ()


RAN = ("backend", "dtype", "device")  # facts of the model that have a row of their own
VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE")


def write_reports(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write all files of a report to `folder` (made if it is not there) and return their paths.

    Each file is written whole or not at all. The gate's file comes last, and that of another verdict is removed
    first: a folder with a gate's file holds the complete report that it belongs to. Raises OSError where the folder
    can't be written.
    """
    folder = Path(folder)
    pictures = {name: plots.png(figure) for name, figure in plots.figures(report).items()}
    gate_text, statefulness_text = gate_markdown(report), statefulness_markdown(report)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for verdict in VERDICTS:
        (folder / f"VALIDATION_GATE_{verdict}.md").unlink(missing_ok=True)
    texts = {
        "report.json": report.to_text(),
        "baseline_metrics.json": json_text(baseline_metrics(report)),
        "statefulness_report.md": statefulness_text,
        report.decision.file_name: gate_text,
    }
    for name, data in pictures.items():
        atomic_write_bytes(folder / "images" / name, data)
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    return [*(folder / name for name in texts), *(folder / "images" / name for name in pictures)]


def gate_markdown(report: Report) -> str:
    """The gate's file: banner, path, what was judged, one table row an item, the criteria with their sources."""
    template = _environment().get_template("gate.md.j2")
    return template.render(
        report=report,
        backend=_backend(report),
        answer=Trusted(answer(report, escape)),
        counts=counts(report),
        rows=[row_of(verdict) for verdict in report],
        criteria=[criterion for verdict in report for criterion in verdict.criteria],
    )


def statefulness_markdown(report: Report) -> str:
    """The statefulness report: what was checked, the answer, a section an item, what falls short, the environment."""
    template = _environment().get_template("statefulness_report.md.j2")
    return template.render(
        report=report,
        backend=_backend(report),
        answer=Trusted(answer(report, escape)),
        counts=counts(report),
        sections=_sections(report),
        shortfalls=shortfalls(report),
        violations={row.id: _indented(lines_of(row, replay_of(report))) for row in broken_laws(report)},
        has_margins=plots.margins(report) is not None,
        environment=flat(report.environment),
        timings=flat(report.timings),
        facts=flat(_facts(report)),
    )


def escape(text: object) -> str:
    r"""`text` as Markdown that shows it as it is: no markup, no HTML, no table cell, no terminal code comes out of it.

    What can't be markup where it stands is left alone (`< 2`, `[1, 2]`, `a_b`), so that the file reads well as text.

    >>> escape("a|b`<script>\x1b[31m"), escape("< 2 at h_0 [1, 2]")
    ('a\\|b\\`&lt;script>\\\\x1b[31m', '< 2 at h_0 [1, 2]')
    """
    shown = re.sub(r"([\\`*~|])", r"\\\1", visible(text))
    shown = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", shown)
    shown = re.sub(r"\](?=[(\[:])", r"\\]", shown)  # links and their definitions
    shown = re.sub(r"&(?=#?\w+;)", "&amp;", shown).replace("$", "&#36;")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", shown)


def escape_line(text: object) -> str:
    r"""The same at the start of a line, where `#`, `-` or `1.` would begin a heading or a list.

    >>> escape_line("# not a heading"), escape_line("1. no list")
    ('\\# not a heading', '1\\. no list')
    """
    return re.sub(r"^(\s*\d*)([#>+\-=.)])", r"\1\\\2", escape(text).lstrip())


def flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain data as rows of (dotted name, text).

    >>> flat({"threads": 2, "torch": {"version": "2.13"}})
    [('threads', '2'), ('torch.version', '2.13')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in to_plain(data).items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows += flat(value, f"{name}.")
        else:
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, list) else _word(value)))
    return rows


def _word(value: Any) -> str:
    words = {None: "none", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("statecheck.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # HTML's rules, which are not Markdown's: `finalize` escapes every value that is not Trusted
        finalize=lambda value: value if isinstance(value, Trusted) else escape(value),
    )
    environment.filters |= {"line": _line, "alt": _alternative, "ours": Trusted}
    functions = (row_of, part_remark, sides, value_text, interval_text)
    environment.globals |= {function.__name__: function for function in functions}
    return environment


def _sections(report: Report) -> list[tuple[Verdict, list[tuple[str, str]]]]:
    """Each item with its pictures (title, file); a picture that items share stands with the first of them."""
    files = plots.figures_of(report)
    sections = []
    for verdict in report:
        own = {series.name: files.pop(series.name) for series in verdict.series if series.name in files}
        sections.append((verdict, [(title, file) for title, names in own.items() for file in names]))
    return sections


def _backend(report: Report) -> str:
    """What computed, in which dtype and where, as it was found when the model was tried."""
    facts = report.model.get("facts")
    facts = facts if isinstance(facts, Mapping) else {}
    backend, dtype, device = (facts.get(name) or "not known" for name in RAN)
    return f"{backend}, {dtype} on {device}" if any(facts.get(name) for name in RAN) else "not known"


def _facts(report: Report) -> dict[str, Any]:
    """What the model declares, without the long list of its states and what has a row of its own."""
    facts = report.model.get("facts")
    facts = {name: value for name, value in facts.items() if name not in RAN} if isinstance(facts, Mapping) else {}
    states, components = facts.pop("states", None), facts.pop("components", None)
    if states:
        facts["states"] = len(states)
    if components:
        facts["components"] = list(components)
    return facts


def _indented(lines: Sequence[str]) -> Trusted:
    """Printable lines as a block of code, in which nothing is markup."""
    return Trusted("\n".join(f"    {line}" for line in lines))


def _line(text: object) -> Trusted:
    return Trusted(escape_line(text))


def _alternative(text: object) -> Trusted:
    """For the description of a picture, which brackets would end."""
    return Trusted(escape(str(text).replace("[", "(").replace("]", ")")))
