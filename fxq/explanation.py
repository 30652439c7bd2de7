"""Explanation: for each node, which tensor is quantized how, by which pass, why; or why not."""

import io
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from fxq.compare.quality import Quality
from fxq.coverage import Coverage
from fxq.literal import literal

# Of text that nobody watches: the same on every machine.
_WIDTH = 160
# Below, six columns would break their words.
_WIDE = 120


def text_width(elsewhere: int = _WIDTH) -> int:
    """Return the columns of the terminal that stdout is; ``elsewhere`` for a file, a pipe or a notebook."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else elsewhere


@dataclass(frozen=True)
class QuantizedTensor:
    """One tensor that a node reads in quantized form.

    Args:
        role: "input", "residual", "output" (quantized where it was produced), "inside" (in the computation of a module
            such as an LSTM) or "weight".
        position: argument position at the node; None for what a module quantizes itself.
        quantizer: module path of the quantizer.
        descriptor: how it is quantized, in words.
        range: the fitted range in words; "not calibrated" before, "each tensor's own" where it is measured as it runs.
        pass_name: which pass planned it.
        why: the pass's reason.
    """

    role: str
    position: int | None
    quantizer: str
    descriptor: str
    range: str
    pass_name: str
    why: str


@dataclass(frozen=True)
class NodeExplanation:
    """One operation of the graph. ``reason`` says why nothing was quantized for it; "" where something was."""

    node: str
    path: str
    kind: str
    quantized: tuple[QuantizedTensor, ...]
    reason: str

    @property
    def is_quantized(self) -> bool:
        """Does the node read any quantized tensor?"""
        return bool(self.quantized)


@dataclass(frozen=True)
class Explanation:
    """What became of each operation. ``print`` shows a table; ``to_dict`` and ``nodes`` are for programs.

    ``coverage``: which layers compute with integers. ``quality``: how close a converted model is to the float one, None
    where it is not known. ``traced``: which front end traced the model, and why, where it was not the first. ``notes``:
    what else there is to say.
    """

    target: str
    recipe: str
    nodes: tuple[NodeExplanation, ...]
    coverage: Coverage = Coverage()  # noqa: RUF009 - frozen
    quality: Quality | None = None
    traced: str = ""
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many tensor readings are quantized, by role."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            for tensor in node.quantized:
                counts[tensor.role] = counts.get(tensor.role, 0) + 1
        return counts

    def __getitem__(self, name: str) -> NodeExplanation:
        """Return the explanation of a node by its name or module path."""
        for node in self.nodes:
            if name in (node.node, node.path):
                return node
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain data."""
        return {**asdict(self), "counts": self.counts}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._wide_table() if options.max_width >= _WIDE else self._narrow_table()
        for note in self.notes:
            yield _text(note, "dim")

    def __str__(self) -> str:
        console = Console(width=text_width(), record=True, file=io.StringIO())
        console.print(self)
        return "\n".join(line.rstrip() for line in console.export_text().splitlines())

    def _wide_table(self) -> Table:
        """One row for each tensor, everything in a column of its own."""
        table = Table(title=self._title, title_justify="left")
        for heading in ("node", "operation", "quantized", "how", "range"):
            table.add_column(heading, overflow="fold")
        table.add_column("why, or why not", overflow="fold", ratio=1)
        for node in self.nodes:
            name = (_text(node.path or node.node), _text(node.kind))
            if node.reason:
                how = "–" if node.quantized else "float"
                table.add_row(*name, _text(how, "dim"), "", "", _text(node.reason, "dim"))
                name = (Text(), Text())
            for tensor in node.quantized:
                why = _text(tensor.why) + _text(f" ({tensor.pass_name})", "dim")
                table.add_row(*name, *map(_text, (_role(tensor), tensor.descriptor, tensor.range)), why)
                name = (Text(), Text())
        return table

    def _narrow_table(self) -> Table:
        """Two columns; ranges and reasons stand below each other, so that no word is broken in 80 columns."""
        table = Table(title=self._title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(overflow="fold", max_width=32)
        table.add_column(overflow="fold", ratio=1)
        for node in self.nodes:
            reason = f"{'' if node.quantized else ', float'}: {node.reason}" if node.reason else ""
            table.add_row(_text(node.path or node.node, "bold"), _text(node.kind) + _text(reason, "dim"))
            for tensor in node.quantized:
                table.add_row(_text(f"  {_role(tensor)}"), _text(f"{tensor.descriptor}, {tensor.range}"))
                table.add_row("", _text(f"{tensor.why} ({tensor.pass_name})", "dim"))
        return table

    @property
    def _title(self) -> Text:
        recipe = self.recipe if self.recipe == self.target else f"{self.recipe} for {self.target}"
        lines = [f"{recipe}: {_counted(self.counts)}", str(self.coverage)]
        lines += [self.traced] if self.traced else []
        lines += [] if self.quality is None else [str(self.quality)]
        return Text("\n").join(map(_text, lines))


def _role(tensor: QuantizedTensor) -> str:
    if tensor.position is None:
        name = tensor.quantizer.rpartition(".")[2].strip("_").removesuffix("_quantizer")
        return tensor.role if name == tensor.role else f"{tensor.role} {name.removeprefix('weight_')}"
    # What was quantized where it was produced is an input here all the same.
    return f"{'input' if tensor.role == 'output' else tensor.role} {tensor.position}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {role}" for role, count in sorted(counts.items())) or "nothing quantized"


def _text(text: str, style: str = "") -> Text:
    """Return text for a cell, in which nothing is markup."""
    return Text(literal(text), style)
