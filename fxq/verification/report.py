"""VerifyReport: what ``fxq.verify`` found in a file, and what the runtime makes of it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fxq.errors import InputError
from fxq.layer_report import as_text
from fxq.literal import literal
from fxq.runtimes import ExecutedOp, count_kinds, traffic_mb
from fxq.verification.finding import ERROR, NOTE, WARNING, Finding

_MOST_PLACES, _MOST_NAMES = 6, 3
_STYLES = {ERROR: "bold red", WARNING: "yellow", NOTE: "dim"}


@dataclass(frozen=True)
class VerifyReport:
    """What is wrong with a file for one target: iterate over it, or ``print`` it.

    Args:
        path: of the file.
        target: its name.
        findings: errors first, then warnings, then notes.
        runtime: which runtime was asked, with its version; "" where none was.
        executed: what it executes of the file; () where it was not asked, or did not take it.
    """

    path: str
    target: str
    findings: tuple[Finding, ...]
    runtime: str = ""
    executed: tuple[ExecutedOp, ...] = ()

    @property
    def ok(self) -> bool:
        """Is no rule broken? Notes break none."""
        return not any(finding.is_broken for finding in self.findings)

    @property
    def kinds(self) -> Counter[str]:
        """How many operations of each kind the runtime executes."""
        return count_kinds(self.executed)

    @property
    def traffic_mb(self) -> float | None:
        """Megabytes of activations that its operations read and write; None where sizes are open or not told."""
        try:
            return traffic_mb(self.executed) if self.executed else None
        except InputError:
            return None

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def table(self) -> str:
        """Return a table of text, as wide as the terminal; 120 columns where stdout is none."""
        return as_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "path": self.path,
            "target": self.target,
            "ok": self.ok,
            "findings": [asdict(finding) for finding in self.findings],
            "runtime": self.runtime,
            "kinds": dict(self.kinds),
            "traffic_mb": self.traffic_mb,
            "executed": [asdict(op) for op in self.executed],
        }

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        counts = Counter(finding.severity for finding in self.findings)
        found = ", ".join(f"{counts[word]} {word}{'s' * (counts[word] != 1)}" for word in _STYLES if counts[word])
        yield Text(literal(f"{self.path} for {self.target}: {found or 'no rule is broken'}"), style="italic")
        if self.runtime:
            yield Text(literal(self._executed_in_words()), style="dim")
        if not self.findings:
            return
        table = Table("where", "what, what it costs, what to do", box=None, padding=(0, 2, 1, 0))
        table.columns[0].overflow = table.columns[1].overflow = "fold"
        table.columns[1].ratio = 1
        for group in _alike(self.findings):
            first = group[0]
            where = Text("\n".join(_capped([literal(_place(finding)) for finding in group])), style="bold")
            where.append(f"\n{first.severity}", style=_STYLES[first.severity]).append(f" {first.rule}", style="dim")
            text = Text(literal(first.what))
            text.append(f" (and {len(group) - 1} more)" if len(group) > 1 else "", style="dim")
            for label, part in (("cost: ", literal(first.cost)), ("fix: ", _fix(group))):
                if part:
                    text.append(f"\n{label}", style="dim").append(part)
            table.add_row(where, text)
        yield table

    def _executed_in_words(self) -> str:
        if not self.executed:
            return f"{self.runtime}: no plan"
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        traffic = "" if self.traffic_mb is None else f"; activation traffic {self.traffic_mb:.2f} MB"
        return f"{self.runtime} executes {len(self.executed)} operations: {kinds}{traffic}"


def _alike(findings: tuple[Finding, ...]) -> Iterator[list[Finding]]:
    """Yield the findings that differ in their places alone, together."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        key = (finding.severity, finding.rule, finding.cost)
        groups.setdefault(key, []).append(finding)
    yield from groups.values()


def _place(finding: Finding) -> str:
    path, node = finding.path or finding.node, finding.node
    return f"{path} ({node})" if node not in ("", path) else path or "the file"


def _fix(group: list[Finding]) -> str:
    """Return what to do, and where, if not the same everywhere."""
    places: dict[str, list[str]] = {}
    for finding in group:
        places.setdefault(literal(finding.fix), []).append(literal(finding.node) or "the file")
    if len(places) == 1:
        return next(iter(places))
    return "\n".join(["", *_capped([f"{_listed(nodes)}: {fix}" for fix, nodes in places.items()])])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(names[:_MOST_NAMES])}{more}"


def _capped(lines: list[str]) -> list[str]:
    more = [f"... {len(lines) - _MOST_PLACES} more, all in --json"] if len(lines) > _MOST_PLACES else []
    return [*lines[:_MOST_PLACES], *more]
