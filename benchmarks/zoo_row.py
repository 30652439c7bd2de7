"""What became of one model of the zoo, and the table of all: written as Markdown, and read from it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

_HEADINGS = ("row", "model", "nodes", "int8", "stays in float, and why", "seconds", "file, dB")
_REASON = re.compile(r"(\d+): (.*)")
_BREAK = "<br>"


@dataclass(frozen=True)
class Row:
    """One model.

    Args:
        row: "torchvision/NAME" or "timm/FAMILY".
        model: its name.
        failure: why there is no result: "refused: ..." by fxq, or "not run: ..."; "" where there is one.
        nodes: operations of the graph.
        quantized, total: convolutions, linear layers and products of matrices in int8, and all of them.
        reasons: why the others stay in float, and how many each.
        seconds: of prepare, calibrate and convert.
        file: how close to the float model the exported file is, in dB, in ONNX Runtime; "" where none was written.
    """

    row: str
    model: str
    failure: str = ""
    nodes: int = 0
    quantized: int = 0
    total: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    file: str = ""

    @property
    def has_run(self) -> bool:
        """There is a result, good or bad."""
        return not self.failure.startswith("not run")

    @property
    def is_taken(self) -> bool:
        """Something was quantized."""
        return not self.failure and self.quantized > 0

    def line(self) -> str:
        """Return the row as Markdown."""
        if self.failure:
            cells = [self.row, self.model, "", "", self.failure, "", ""]
        else:
            ranked = sorted(self.reasons.items(), key=lambda pair: (-pair[1], pair[0]))
            why = _BREAK.join(f"{count}: {reason}" for reason, count in ranked)
            share = f"{self.quantized} of {self.total}"
            cells = [self.row, self.model, str(self.nodes), share, why, f"{self.seconds:.1f}", self.file]
        return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Return the row that ``line`` wrote."""
        row, model, nodes, share, why, seconds, file = (cell.strip() for cell in line.strip().strip("|").split("|"))
        if not nodes:
            return cls(row, model, why)
        quantized, total = map(int, share.split(" of "))
        found = (_REASON.fullmatch(part) for part in why.split(_BREAK))
        reasons = {match[2]: int(match[1]) for match in found if match}
        return cls(row, model, "", int(nodes), quantized, total, reasons, float(seconds), file)


def read_rows(text: str) -> dict[str, Row]:
    """Return the rows of a table by their name."""
    lines = [line for line in text.splitlines() if line.startswith(("| torchvision/", "| timm/"))]
    return {row.row: row for row in map(Row.from_line, lines)}


def table(rows: Sequence[Row], wanted: int, recipe: str) -> str:
    """Return the text of the table, the summary first."""
    parts = [
        "# The zoo",
        f'All models of torchvision, and the smallest of each family of timm, with random weights: recipe "{recipe}", '
        f"prepared, calibrated with one batch, converted; every tenth written and run in ONNX Runtime. Layers are "
        f"convolutions, linear layers and products of matrices. Written by `python -m benchmarks zoo`.",
        _summary(rows, wanted),
        "## What stays in float",
        _reasons(rows),
        "## Models",
        "\n".join([_line(_HEADINGS), _line(["---"] * len(_HEADINGS)), *(row.line() for row in rows)]),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(rows: Sequence[Row], wanted: int) -> str:
    lines = []
    for library in ("torchvision", "timm"):
        of = [row for row in rows if row.row.startswith(library)]
        taken = [row for row in of if row.is_taken]
        whole = sum(row.quantized == row.total for row in taken)
        share = f"{sum(row.quantized for row in taken)} of {sum(row.total for row in taken)} layers in int8"
        lines.append(f"- {library}: {len(taken)} of {len(of)} give a quantized result, {whole} of them whole; {share}")
    nothing = [row.model for row in rows if not row.failure and not row.quantized]
    silent = [row.model for row in rows if sum(row.reasons.values()) != row.total - row.quantized]
    for word in ("refused", "not run"):
        found = [row.model for row in rows if row.failure.startswith(word)]
        lines.append(f"- {word}: {len(found)}{': ' if found else ''}{', '.join(found)}")
    lines.append(f"- nothing quantized: {len(nothing)}{': ' if nothing else ''}{', '.join(nothing)}")
    lines.append(f"- with a layer in float without a reason: {len(silent)}{': ' if silent else ''}{', '.join(silent)}")
    if len(rows) < wanted:
        lines.append(f"- not yet swept: {wanted - len(rows)} of {wanted}")
    return "\n".join(lines)


def _reasons(rows: Sequence[Row]) -> str:
    layers: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for row in rows:
        layers.update(row.reasons)
        models.update(row.reasons.keys())
    lines = [_line([str(count), str(models[reason]), reason]) for reason, count in layers.most_common()]
    return "\n".join([_line(["layers", "models", "why"]), _line(["---"] * 3), *lines])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
