"""What was measured of each model, as Markdown: a table a model, one over all of them, and what it is held to."""

from collections.abc import Sequence
from dataclasses import dataclass, field

NOISE_DB = 0.3  # what the choice of the data moves
PLAIN, BEST = "plain", "best"


@dataclass(frozen=True)
class Row:
    """A quantized model.

    Args:
        model: its name.
        method: who quantized it, and how.
        target, level: of fxq; None for a peer.
        sqnr_db: of the first output, of the module; of the file where the peer makes a file.
        file_db: the same of the exported file in ONNX Runtime; None where there is none.
        figures: of the task, the one to compare first.
        seconds: of CPU that quantizing took.
        note: in words; what failed, where nothing was measured.
    """

    model: str
    method: str
    target: str | None = None
    level: str | None = None
    sqnr_db: float | None = None
    file_db: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    note: str = ""


def model_table(rows: Sequence[Row]) -> str:
    """Return the rows of one model as a table, with a column for each figure of its task."""
    figures = list(dict.fromkeys(name for row in rows for name in row.figures))
    heading = ["method", "SQNR, dB", "file in ONNX Runtime, dB", *figures, "CPU s", "note"]
    lines = [
        [row.method, _text(row.sqnr_db, 1), _text(row.file_db, 1)]
        + [_text(row.figures.get(name), 4) for name in figures]
        + [_text(row.seconds, 1), row.note]
        for row in rows
    ]
    return f"**{rows[0].model}**\n\n{markdown(heading, lines)}"


def summary(rows: Sequence[Row]) -> str:
    """Return one table over all models: SQNR in dB and the first figure of the task."""
    models = list(dict.fromkeys(row.model for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    cells = {(row.method, row.model): _cell(row) for row in rows}
    lines = [[method, *(cells.get((method, model), "") for model in models)] for method in methods]
    return f"**SQNR in dB / figure of the task**\n\n{markdown(['method', *models], lines)}"


def never_worse(rows: Sequence[Row]) -> str:
    """Return whether each level is as good as plain, the module and the file alike, and each row that is not."""
    plain = {(row.model, row.target): row for row in rows if row.level == PLAIN}
    compared, worse = 0, []
    for row in rows:
        base = plain.get((row.model, row.target))
        if row.target is None or base is None or row is base:
            continue
        for what, ours, theirs in (("", row.sqnr_db, base.sqnr_db), (", file", row.file_db, base.file_db)):
            if theirs is None:
                continue
            compared += 1
            if ours is None:
                worse.append(f"{row.model}, {row.method}{what}: nothing, plain {theirs:.1f} dB")
            elif not ours >= theirs - NOISE_DB:
                worse.append(f"{row.model}, {row.method}{what}: {ours:.1f} dB, plain {theirs:.1f} dB")
    return _verdict(f"Never worse than plain by more than {NOISE_DB} dB", compared, worse)


def file_as_module(rows: Sequence[Row]) -> str:
    """Return whether each exported file is as far from float in ONNX Runtime as the module, and each that is not."""
    both = [(row, row.sqnr_db, row.file_db) for row in rows if row.sqnr_db is not None and row.file_db is not None]
    other = [
        f"{row.model}, {row.method}: file {file_db:.1f} dB, module {module_db:.1f} dB"
        for row, module_db, file_db in both
        if not abs(file_db - module_db) <= NOISE_DB
    ]
    return _verdict(f"Files in ONNX Runtime within {NOISE_DB} dB of the module", len(both), other)


def ahead_of_peers(rows: Sequence[Row]) -> str:
    """Return whether "best" is as good as every peer, and each row that is not."""
    peers: dict[str, Row] = {}
    for row in rows:
        known = peers.get(row.model)
        if row.target is None and row.sqnr_db is not None and (known is None or row.sqnr_db > (known.sqnr_db or 0)):
            peers[row.model] = row
    compared, worse = 0, []
    for row in rows:
        peer = peers.get(row.model)
        if row.level != BEST or peer is None or peer.sqnr_db is None:
            continue
        compared += 1
        if row.sqnr_db is None or not row.sqnr_db >= peer.sqnr_db - NOISE_DB:
            worse.append(
                f"{row.model}, {row.method}: {_text(row.sqnr_db, 1) or 'no'} dB, {peer.method} {peer.sqnr_db:.1f} dB"
            )
    return _verdict(f"Best not behind the best peer by more than {NOISE_DB} dB", compared, worse)


def _verdict(claim: str, compared: int, broken: list[str]) -> str:
    if not compared:
        return f"{claim}: nothing to compare."
    if not broken:
        return f"{claim}: holds in all {compared} comparisons."
    return "\n".join(
        [f"{claim}: broken in {len(broken)} of {compared} comparisons:", "", *(f"- {line}" for line in broken)]
    )


def _cell(row: Row) -> str:
    figure = next(iter(row.figures.values()), None)
    return f"{_text(row.sqnr_db, 1) or '-'} / {_text(figure, 3) or '-'}"


def _text(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}f}"


def markdown(heading: list[str], lines: list[list[str]]) -> str:
    """Return a table whose columns are as wide as their widest cell."""
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in (heading, *lines)) for column in range(len(heading))]
    ruler = ["-" * max(3, width) for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(max(3, width)) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (heading, ruler, *lines)
    )
