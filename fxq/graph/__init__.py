"""What passes know about a graph: questions, kinds, plans, and the rewriter."""

from fxq.graph.altered import has_backward_hooks, why_altered
from fxq.graph.check import check_graph
from fxq.graph.dead_nodes import has_effect
from fxq.graph.kinds import (
    ACTIVATIONS,
    MOVES_DATA,
    kind,
    module_kind,
    module_of,
    produces_tensor,
    produces_values,
    shape_of,
)
from fxq.graph.match import (
    Edge,
    ancestors,
    has_one_reader,
    input_edges,
    is_add,
    is_constant,
    is_quantizer,
    is_weighted,
    module_path,
    only_reader,
    output_edges,
    owner_path,
    tensor_edges,
)
from fxq.graph.memory import aliases, out_of_place_arguments, out_of_place_target, overwriting, writes_in_place
from fxq.graph.modules import free_path
from fxq.graph.observers import (
    activation_quantizers,
    fit_observed,
    forget,
    observing,
    observing_quantizers,
    share_observations,
)
from fxq.graph.plan import (
    Plan,
    inserted_for,
    is_quantized,
    note_inserted,
    note_part,
    planned_input,
    planned_inputs,
    planned_inside,
    planned_output,
    plans_by_module,
    plans_of,
    range_group,
)
from fxq.graph.rewriter import Rewriter
from fxq.graph.settings import Settings
from fxq.graph.stored import fit_weights, stored_input, weight_quantizers
from fxq.graph.text import graph_text
from fxq.graph.written_out import written_out

__all__ = [
    "ACTIVATIONS",
    "MOVES_DATA",
    "Edge",
    "Plan",
    "Rewriter",
    "Settings",
    "activation_quantizers",
    "aliases",
    "ancestors",
    "check_graph",
    "fit_observed",
    "fit_weights",
    "forget",
    "free_path",
    "graph_text",
    "has_backward_hooks",
    "has_effect",
    "has_one_reader",
    "input_edges",
    "inserted_for",
    "is_add",
    "is_constant",
    "is_quantized",
    "is_quantizer",
    "is_weighted",
    "kind",
    "module_kind",
    "module_of",
    "module_path",
    "note_inserted",
    "note_part",
    "observing",
    "observing_quantizers",
    "only_reader",
    "out_of_place_arguments",
    "out_of_place_target",
    "output_edges",
    "overwriting",
    "owner_path",
    "planned_input",
    "planned_inputs",
    "planned_inside",
    "planned_output",
    "plans_by_module",
    "plans_of",
    "produces_tensor",
    "produces_values",
    "range_group",
    "shape_of",
    "share_observations",
    "stored_input",
    "tensor_edges",
    "weight_quantizers",
    "why_altered",
    "writes_in_place",
    "written_out",
]
