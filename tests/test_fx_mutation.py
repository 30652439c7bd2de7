"""One pair of hands: nothing but the Rewriter, and what makes graphs in the first place, changes an FX graph."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Where a graph may be changed, and why there.
ALLOWED = {
    "fxq/graph/rewriter.py": "the hands",
    "fxq/graph/edges.py": "the hands: how readers change over",
    "fxq/graph/members.py": "keeps what flowed through in the meta of nodes",
    "fxq/graph/plan.py": "keeps plans in the meta of nodes",
    "fxq/graph/trace.py": "the front end makes graphs",
    "fxq/graph/numbers_in_tensors.py": "the front end makes graphs",
    "fxq/graph/untraceable_modules.py": "the front end makes graphs",
    "fxq/graph/shape_tracer.py": "the front end makes graphs",
    "fxq/graph/evaluation.py": "the front ends make graphs",
    "fxq/graph/size_decisions.py": "copies a part of a graph to ask it",
    "fxq/frontend/rebuilt_graph.py": "the front end makes graphs",
    "fxq/frontend/choice.py": "takes what a front end left in the meta of a graph module",
    "fxq/graph/arguments.py": "the front end makes graphs",
    "fxq/graph/dead_nodes.py": "the front end makes graphs",
    "fxq/graph/batch_statistics.py": "the front end makes graphs",
    "fxq/graph/hidden_writes.py": "the front end makes graphs",
    "fxq/graph/training.py": "the front end makes graphs",
    "fxq/graph/moved.py": "brings traced values where the model is now",
    "fxq/state.py": "keeps what fxq remembers in the meta of graph modules",
    "fxq/islands/layout.py": "makes the graph around islands, one call of the model",
    "fxq/graph/snapshot.py": "puts a graph back as it was",
    "fxq/graph/modules.py": "copies a graph module without that meta",
    "fxq/export/capture.py": "writes scopes into a copy that only torch.export sees",
    "fxq/export/clean.py": "ONNX graphs, which are exported for good",
    "fxq/export/decompositions.py": "exported programs, which only torch.onnx sees",
    "fxq/export/hidden_clamps.py": "ONNX graphs",
    "fxq/quant/ops/integer_onnx.py": "notes with ONNX values how they are fused",
    "fxq/export/channel_scales.py": "ONNX graphs",
    "fxq/export/emulation.py": "ONNX graphs",
    "fxq/export/float_side.py": "ONNX graphs",
    "fxq/export/stand_ins.py": "that copy, and ONNX graphs",
    "fxq/export/stored_weights.py": "ONNX graphs",
    "fxq/verification/onnx_file.py": "ONNX graphs",
}
METHODS = {
    "replace_all_uses_with", "replace_input_with", "erase_node", "create_node", "call_function", "call_method",
    "call_module", "get_attr", "placeholder", "node_copy", "graph_copy", "inserting_before", "inserting_after",
    "update_arg", "update_kwarg", "insert_arg", "prepend", "append_node", "eliminate_dead_code", "replace_pattern",
    "add_submodule", "delete_submodule", "delete_all_unused_submodules",
}  # fmt: skip
ATTRIBUTES = {"args", "kwargs", "meta", "target", "op", "graph"}
DICT_METHODS = {"pop", "update", "setdefault", "clear"}


def changes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and what looks like a change of an FX graph."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if node.func.attr in METHODS and not _is_super(owner):
                yield node.lineno, f".{node.func.attr}()"
            if node.func.attr in DICT_METHODS and isinstance(owner, ast.Attribute) and owner.attr == "meta":
                yield node.lineno, f".meta.{node.func.attr}()"
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
        if isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in (leaf for one in targets for leaf in ast.walk(one)):
            where = target.value if isinstance(target, ast.Subscript) else target
            is_set = target is not where or isinstance(getattr(where, "ctx", None), ast.Store)
            if isinstance(where, ast.Attribute) and where.attr in ATTRIBUTES and is_set and not _is_self(where.value):
                yield target.lineno, f".{where.attr} = ..."


def _is_self(owner: ast.expr) -> bool:
    return isinstance(owner, ast.Name) and owner.id == "self"


def _is_super(owner: ast.expr) -> bool:
    """An interpreter's own call_module runs one."""
    return isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super"


def sources() -> list[str]:
    files = [*ROOT.glob("fxq/**/*.py"), *ROOT.glob("passes/**/*.py"), *ROOT.glob("examples/**/*.py")]
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


def test_graphs_are_changed_by_the_rewriter_alone() -> None:
    found = [
        f"{source}:{line}: {what}"
        for source in sources()
        if source not in ALLOWED
        for line, what in changes(ast.parse((ROOT / source).read_text()))
    ]
    assert found == []


@pytest.mark.parametrize("source", ALLOWED)
def test_what_is_allowed_to_change_graphs_does(source: str) -> None:
    assert list(changes(ast.parse((ROOT / source).read_text()))), f"{source} changes no graph: take it off the list"


@pytest.mark.parametrize(
    "code",
    [
        "node.replace_all_uses_with(other)",
        "rw.gm.graph.erase_node(node)",
        "gm.graph.call_function(torch.relu, (x,))",
        "node.args = ()",
        "reader.args, reader.kwargs = args, kwargs",
        "node.meta['val'] = value",
        "del node.meta['val']",
        "node.meta.pop('val', None)",
        "node.target = 'gone'",
        "gm.graph = other",
        "self.gm.graph = other",
        "gm.delete_submodule('conv')",
    ],
)
def test_a_change_is_seen(code: str) -> None:
    assert list(changes(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["self.args = 1", "value = node.args[0]", "metas['val'] = 1", "rw.replace_input(a, b)"]
)
def test_what_changes_nothing_is_not_taken_for_a_change(code: str) -> None:
    assert not list(changes(ast.parse(code)))
