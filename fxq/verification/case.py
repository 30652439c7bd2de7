"""Case: a file, the target that it is for, and the questions that rules ask of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from fxq.targets import Target
from fxq.verification.finding import Finding
from fxq.verification.onnx_file import OnnxFile
from fxq.verification.questions import Questions, bodies


def name_of(node: ir.Node | None) -> str:
    """Return the name of a node, or what it writes where it has none."""
    return "" if node is None else node.name or node.outputs[0].name or ""


@dataclass(frozen=True)
class Case:
    """What a rule gets to see."""

    file: OnnxFile
    target: Target

    @cached_property
    def ask(self) -> Questions:
        """Questions about the file."""
        return Questions(self.file.model)

    @property
    def nodes(self) -> list[ir.Node]:
        """The nodes of the file, in its order, without those in bodies."""
        return list(self.file.model.graph)

    @property
    def all_nodes(self) -> list[ir.Node]:
        """The nodes of the file, and behind each one those in its bodies: what If, Loop and Scan run."""
        return list(self.file.model.graph.all_nodes())

    @cached_property
    def _runs(self) -> Mapping[ir.Graph, ir.Node]:
        return {body: node for node in self.all_nodes for body in bodies(node)}

    def wants_integers(self, kind: str) -> bool:
        """Does the target compute operations of this kind in integers, by default?"""
        return self.target.quantizes_inputs(kind)

    def behind_activations(self, node: ir.Node) -> tuple[ir.Value, ir.Node | None]:
        """Return the output of a node behind the activations that fuse into it, and the last of these, if any."""
        value, last = node.outputs[0], None
        while (reader := self.ask.only_reader(value)) is not None:
            if self.ask.kind(reader) not in self.target.fused_activations:
                break
            value, last = reader.outputs[0], reader
        return value, last

    def finding(self, rule: str, node: ir.Node, severity: str, fix: str, *, what: str, cost: str) -> Finding:
        """Return the finding of a rule at a node; ``what`` is read after the node's name."""
        name = name_of(node)
        path = self.file.path_of(node) or name
        around = None if node.graph is None else self._runs.get(node.graph)
        # Names may repeat in bodies.
        place = "" if around is None else f" in the body of {around.op_type} {name_of(around)!r}"
        return Finding(rule, name, path, severity, fix, f"{node.op_type} {name!r}{place} {what}", cost)
