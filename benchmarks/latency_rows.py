"""What was measured of the files of a model in a runtime, as Markdown: a line each, and what all are held to."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.accuracy_rows import markdown
from benchmarks.latency_files import FLOAT, FXQ, PEERS
from fxq.runtimes import ExecutedOp, Latency

# A difference between two files below this is no difference.
TIE = 0.02
# Quartiles of a ratio further apart than this, as a share of it, say little about the machine's usual speed.
_NOISY = 0.25
_FLOATS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Row:
    """The files of a model in a runtime; each mapping is by method, and has float and fxq.

    Args:
        model, runtime: by name.
        times: of the wall, in rounds in turn.
        cpu_times: that the process computed for a run on one thread, in rounds in turn.
        sqnr_db: of the first output, beside the float file's, on images that nothing was calibrated on.
        left: what the runtime has left outside of integers, in words.
    """

    model: str
    runtime: str
    times: Mapping[str, Latency]
    cpu_times: Mapping[str, Latency]
    sqnr_db: Mapping[str, float]
    left: Mapping[str, str]

    @property
    def is_noisy(self) -> bool:
        """Are the rounds of the wall too far apart to tell?"""
        quartiles = [self.times[FXQ].ratio_quartiles(to=one) for name, one in self.times.items() if name != FXQ]
        return any(high - low > _NOISY * middle for low, middle, high in quartiles)

    def slowness(self, method: str, on_cpu: bool) -> float:
        """Return how many times as long as another method's fxq's file takes; nan where there is none."""
        times = self.cpu_times if on_cpu else self.times
        return times[FXQ].ratio(to=times[method]) if method in times else math.nan

    def lead(self, on_cpu: bool) -> float:
        """Return how many times as long as fxq's file the faster one of the peers takes; nan without peers."""
        found = [1 / self.slowness(peer, on_cpu) for peer in PEERS if peer in self.times]
        return min(found, default=math.nan)


def what_is_left(ops: Sequence[ExecutedOp], runtime: str) -> str:
    """Return how many operations compute in float, and how many quantizers run by themselves, in words."""
    quantizers = [op for op in ops if op.kind in ("QuantizeLinear", "DequantizeLinear", "FakeQuantize")]
    in_float = [
        op
        for op in ops
        if op not in quantizers and set(op.input_dtypes) & set(_FLOATS) and set(op.output_dtypes) & set(_FLOATS)
    ]
    return f"{len(ops)}: {len(in_float)} float, {len(quantizers)} {'FakeQuantize' if runtime == 'openvino' else 'Q/DQ'}"


def table(rows: Sequence[Row]) -> str:
    """Return a line for each model and runtime."""
    lines = []
    for row in rows:
        ms = f"{row.times[FXQ].median_ms:.2f}" + (" (noisy)" if row.is_noisy else "")
        ratios = [_both(row, lambda on_cpu, row=row: 1 / row.slowness(FLOAT, on_cpu))]  # type: ignore[misc]
        ratios += [_both(row, lambda on_cpu, row=row, peer=peer: row.slowness(peer, on_cpu)) for peer in PEERS]  # type: ignore[misc]
        methods = [FXQ, *(peer for peer in PEERS if peer in row.left)]
        left, sqnr = ("; ".join(f"{m} {cells[m]}" for m in methods) for cells in (row.left, _texts(row.sqnr_db)))
        lines.append([row.model, row.runtime, ms, *ratios, sqnr, left])
    peers = [f"fxq / {peer}" for peer in PEERS]
    return markdown(["model", "runtime", "fxq, ms", "float / fxq", *peers, "SQNR, dB", "operations"], lines)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return for each runtime what fxq's files are held to, by the CPU time of one thread, and where it is missed."""
    found = []
    for runtime in dict.fromkeys(row.runtime for row in rows):
        own = [row for row in rows if row.runtime == runtime]
        for method in (name for name in (FLOAT, *PEERS) if any(name in row.times for row in own)):
            slower = [
                f"{row.model} {row.slowness(method, True):.2f}" for row in own if row.slowness(method, True) > 1 + TIE
            ]
            found.append(
                f"{runtime}: never slower than {method}: " + (f"missed: {', '.join(slower)}" if slower else "holds")
            )
        leads = [(row.lead(on_cpu=False), row.lead(on_cpu=True)) for row in own if not math.isnan(row.lead(True))]
        if leads:
            wall, cpu = (_geometric_mean(values) for values in zip(*leads, strict=True))
            mean = f"geometric mean of {len(leads)}"
            found.append(f"{runtime}: the better peer takes {wall:.2f} times as long, {cpu:.2f} of CPU; {mean}")
    noisy = [f"{row.model} in {row.runtime}" for row in rows if row.is_noisy]
    if noisy:
        found.append(f"The machine was too noisy for the times of the wall: {', '.join(noisy)}")
    return found


def _both(row: Row, ask: Callable[[bool], float]) -> str:
    """Return a ratio of the wall and one of the CPU."""
    wall, cpu = ask(False), ask(True)
    return "" if math.isnan(cpu) else f"{wall:.2f} ({cpu:.2f})"


def _texts(numbers: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{number:.1f}" for name, number in numbers.items()}


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
