"""``fxq.verify``: the rules of a target on the file itself, then the runtime's own word, in a process of its own."""

import os
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fxq.errors import RuntimeCrashedError, RuntimeRefusedError, RuntimeUnavailableError, TargetError
from fxq.export.integer_rules import is_integer_file
from fxq.registry import get_target, target_from_file
from fxq.runtimes import RUNTIMES, ExecutedOp, get_runtime
from fxq.runtimes.child import in_child
from fxq.targets import Target
from fxq.verification.case import Case, name_of
from fxq.verification.executed_rules import EXECUTED_RULES
from fxq.verification.finding import ERROR, NOTE, WARNING, Finding
from fxq.verification.onnx_file import OnnxFile
from fxq.verification.refusals import refused_node
from fxq.verification.refuted import not_refuted
from fxq.verification.report import VerifyReport
from fxq.verification.rules import FILE_RULES, INTEGER_FILE_RULES
from fxq.verification.shapes import Profile, Shapes, check_all_known, read_profile, with_stored_sizes

_ORDER = (ERROR, WARNING, NOTE)
_RULES_ALONE = "only the rules of the file were checked"
_NAME_ONE = (
    f"name one in the target's file rules (runtime, under [file] in its .toml): {', '.join(RUNTIMES)}; or load the "
    "file yourself in the runtime that it is for"
)


def check_file(
    path: str | os.PathLike[str], target: str | os.PathLike[str] | Target, shapes: Shapes | None = None
) -> VerifyReport:
    """Do what ``fxq.verify`` says."""
    file = OnnxFile.read(path)
    case = Case(file, _target(target))
    name = case.target.file.runtime
    profile = with_stored_sizes(file.model, read_profile(file.path, file.model, shapes))
    rules = INTEGER_FILE_RULES if is_integer_file(file.model) else FILE_RULES
    findings = [finding for rule in rules for finding in rule(case)]
    executed, more = _execute(case, name, profile)
    findings = [*not_refuted(case, findings, more, executed), *more]
    ordered = sorted(findings, key=lambda finding: _ORDER.index(finding.severity))
    return VerifyReport(os.fspath(path), case.target.name, tuple(ordered), _with_version(name), executed)


def _target(given: str | os.PathLike[str] | Target) -> Target:
    if isinstance(given, Target):
        return given
    if not isinstance(given, str | os.PathLike):
        raise TargetError(
            f"target is a name ('tensorrt'), the path of a .toml file or a fxq.Target, got {type(given).__name__}"
        )
    given = os.fspath(given)
    return target_from_file(given) if given.endswith(".toml") else get_target(given)


def _options(runtime: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(RUNTIMES[runtime])) if runtime in RUNTIMES else ()


def _execute(case: Case, name: str, profile: Profile) -> tuple[tuple[ExecutedOp, ...], list[Finding]]:
    """Return what the runtime executes, and what it says about that."""
    if not name:
        what = f"target {case.target.name!r} names no runtime to ask"
        return (), [_of_the_file("runtime", NOTE, what, _RULES_ALONE, _NAME_ONE)]
    options: Mapping[str, Any] = {"profile": profile} if "profile" in _options(name) else {}
    path = case.file.path
    try:
        if not get_runtime(name).is_installed():
            raise RuntimeUnavailableError(f"{name} is not installed")
        if options:  # asked for no sooner: the rules need no sizes
            check_all_known(path, case.file.model, profile, name)
        ops = in_child(get_runtime(name, **options).executed_ops, path, what=f"{name} on {path.name}")
    except RuntimeUnavailableError as error:
        fix = f"pip install {RUNTIMES[name].package}" if name in RUNTIMES else _NAME_ONE
        return (), [_of_the_file("runtime", NOTE, str(error), _RULES_ALONE, fix)]
    except RuntimeCrashedError as error:
        fix = "report it to the makers of the runtime, with the file; the other findings may say what it stumbles over"
        return (), [_of_the_file("crash", ERROR, str(error), "the runtime does not survive the file", fix)]
    except RuntimeRefusedError as error:
        return (), [_refusal(case, str(error))]
    rule = EXECUTED_RULES.get(name)
    return ops, [] if rule is None else list(rule(case, ops))


def _refusal(case: Case, words: str) -> Finding:
    node, words = refused_node(case.file, words), " ".join(words.split())
    cost, fix = "the file does not load", "mend what the runtime names; other findings may say how"
    if node is None:
        return _of_the_file("refused", ERROR, words, cost, fix)
    name = name_of(node)
    return Finding("refused", name, case.file.path_of(node) or name, ERROR, fix, words, cost)


def _of_the_file(rule: str, severity: str, what: str, cost: str, fix: str) -> Finding:
    return Finding(rule, "", "", severity, fix, what, cost)


def _with_version(runtime: str) -> str:
    if runtime not in RUNTIMES or not RUNTIMES[runtime].is_installed():
        return ""
    try:
        return f"{runtime} {version(RUNTIMES[runtime].package.split()[0])}"
    except PackageNotFoundError:  # installed by other means than pip
        return runtime
