"""What the rules of a file say about one; no runtime is asked."""

from pathlib import Path

from fxq.registry import get_target
from fxq.verification.case import Case
from fxq.verification.finding import Finding
from fxq.verification.onnx_file import OnnxFile
from fxq.verification.rules import FILE_RULES


def findings(path: Path, target: str) -> list[Finding]:
    case = Case(OnnxFile.read(path), get_target(target))
    return [finding for rule in FILE_RULES for finding in rule(case)]


def told(path: Path, target: str) -> set[tuple[str, str, str]]:
    return {(finding.severity, finding.rule, finding.node) for finding in findings(path, target)}
