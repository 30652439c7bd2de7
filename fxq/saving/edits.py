"""What passes with data did to a prepared model beyond its numbers: modules replaced, nodes inserted; done again."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from fxq.errors import SavedModelError
from fxq.graph.edges import put_in
from fxq.graph.match import output_edges
from fxq.graph.modules import add_module
from fxq.graph.weight_changes import WeightChanges, are_equal, weights_of
from fxq.module_tree import named_modules
from fxq.nn import TensorQuantizer
from fxq.saving.module_text import module_from_dict, module_to_dict
from fxq.saving.packed import AFTER, BEFORE, EQUIVALENT


def edits_to_dict(gm: GraphModule, changes: WeightChanges, passes: Iterable[str]) -> dict[str, Any]:
    """Return which modules were put in, and which nodes; SavedModelError for a module that cannot be stored."""
    names = f"a pass of calibration ({', '.join(passes)})"
    nodes = {node.name: node for node in gm.graph.nodes}
    inserted = [nodes[name] for name in nodes if name in changes.inserted]
    return {
        "replaced": {path: module_to_dict(gm.get_submodule(path), path, names) for path in changes.replaced},
        "inserted": [
            {
                "name": node.name,
                "path": str(node.target),
                "module": module_to_dict(gm.get_submodule(str(node.target)), str(node.target), names),
                "reads": node.all_input_nodes[0].name,
                "behind": node.prev.name,
                "readers": [[edge.consumer.name, edge.position] for edge in output_edges(node)],
            }
            for node in inserted
        ],
        "switched_off": list(changes.switched_off),
    }


def do_again(gm: GraphModule, edits: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Put modules and nodes in; return the modules that were there before, by path."""
    before = {}
    for path, fields in edits["replaced"].items():
        before[path] = gm.get_submodule(path)
        gm.set_submodule(path, module_from_dict(fields).train(gm.training))
    for fields in edits["inserted"]:
        add_module(gm, fields["path"], module_from_dict(fields["module"]).train(gm.training))
        readers = {(name, position) for name, position in fields["readers"]}
        put_in(gm, (fields["name"], fields["path"]), fields["reads"], fields["behind"], readers)
    gm.recompile()
    return before


def changes_to_tensors(
    gm: GraphModule, changes: WeightChanges, within: str = ""
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return, as names and tensors, the weights before and after calibration; what is stored already is named only.

    ``within``: what stands before their paths in the names of the tensors.
    """
    own = weights_of(gm)
    tensors = {f"{BEFORE}{within}{path}": value for path, value in changes.before.items() if value is not None}
    for path, value in changes.after.items():
        if path not in own or not are_equal(value, own[path]):
            tensors[f"{AFTER}{within}{path}"] = value
    equivalent = {}
    for path, value in changes.equivalent.items():
        before = changes.before[path]
        equivalent[path] = BEFORE if before is not None and are_equal(value, before) else EQUIVALENT
        if equivalent[path] == EQUIVALENT:
            tensors[f"{EQUIVALENT}{within}{path}"] = value
    return {"changed": list(changes.after), "equivalent": equivalent}, tensors


def changes_of(
    gm: GraphModule,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    replaced: Mapping[str, nn.Module],
    within: str = "",
) -> WeightChanges:
    """Return the changes that :func:`changes_to_tensors` stored, of a graph that has its tensors back.

    Args:
        gm: the graph.
        fields: what the header has of it: its ``changes`` and ``edits``.
        tensors: all of the file.
        replaced: as of :func:`do_again`.
        within: as it was stored.
    """
    own = weights_of(gm)

    def placed(prefix: str, path: str) -> Tensor | None:
        found = tensors.get(f"{prefix}{within}{path}")
        return None if found is None else found.to(own[path].device)

    changes = fields["changes"]
    after = {path: placed(AFTER, path) for path in changes["changed"]}
    before = {path: placed(BEFORE, path) for path in changes["changed"]}
    equivalent = {path: placed(prefix, path) for path, prefix in changes["equivalent"].items()}
    return WeightChanges(
        before,
        {path: own[path].detach().clone() if value is None else value for path, value in after.items()},
        dict(replaced),
        tuple(one["name"] for one in fields["edits"]["inserted"]),
        _switched_off(gm, fields["edits"].get("switched_off", ())),
        {path: value for path, value in equivalent.items() if value is not None},
    )


def _switched_off(gm: GraphModule, paths: Iterable[Any]) -> tuple[str, ...]:
    found = tuple(map(str, paths))
    quantizers = {path for path, one in named_modules(gm, remove_duplicate=False) if isinstance(one, TensorQuantizer)}
    if unknown := [path for path in found if path not in quantizers]:
        raise SavedModelError(
            f"the file is damaged: it switches {unknown[0]!r} off, which is no quantizer of the model"
        )
    return found
