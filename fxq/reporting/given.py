"""What callers of ``report`` found out elsewhere, checked before long work: the page would fail on it at the end."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from fxq.comparison_report import Comparison
from fxq.errors import InputError
from fxq.runtimes import Latency
from fxq.sensitivity_report import Sensitivity
from fxq.verification.bench_report import BenchReport
from fxq.verification.finding import Finding


def check_results(file: Any, comparison: Any, sensitivity: Any) -> None:
    """Raise an InputError for what is of another class than it should be; None is none."""
    if file is comparison is sensitivity is None:
        return
    from fxq.export.options import ExportReport  # noqa: PLC0415 - where a file was written it is there already

    for name, given, wanted, source in (
        ("file", file, ExportReport, "fxq.export_onnx(...)"),
        ("comparison", comparison, Comparison, "fxq.compare(...)"),
        ("sensitivity", sensitivity, Sensitivity, "fxq.sensitivity(...)"),
    ):
        if given is not None and not isinstance(given, wanted):
            raise InputError(f"{name}= takes what {source} returned, got {type(given).__name__}")


def latencies(given: Any) -> dict[str, Latency]:
    """Return latencies by what was timed; InputError for what holds none."""
    if isinstance(given, BenchReport):
        return {f"{os.path.basename(row.path)} in {row.runtime}": row.latency for row in given.rows}
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(one, Latency) for one in given.values()):
        raise InputError(
            "latency= takes what fxq.bench(...) returned, or a dict of what was timed to a Latency, got "
            f"{type(given).__name__}"
        )
    return {str(name): one for name, one in given.items()}


def all_findings(given: Any) -> tuple[Finding, ...]:
    """Return findings; InputError for anything else."""
    found = tuple(given) if isinstance(given, Iterable) else None
    if found is None or not all(isinstance(one, Finding) for one in found):
        raise InputError(
            f"findings= takes what fxq.verify(...) returned, or some of its findings, got {type(given).__name__}"
        )
    return found
