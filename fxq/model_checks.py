"""What is asked of a model before and after it is prepared: what fxq cannot take, and what does not come along."""

import contextlib
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.parameter import is_lazy

from fxq.errors import InputError, PassError, StageError, TraceError
from fxq.given_model import holds_program, wrappers
from fxq.graph.altered import has_backward_hooks, why_altered
from fxq.graph.modules import deep_copy
from fxq.graph.quiet import quiet_torch
from fxq.graph.source_lines import line_of
from fxq.module_tree import all_modules, named_modules
from fxq.nn import Quantized, TensorQuantizer
from fxq.recipe import Recipe
from fxq.registry import find_lowering
from fxq.state import check_values, find_state

# Where train() sets `training`; that of transformers also chooses kernels for the mode.
_SETTING_TRAINING_ONLY = ("torch.", "fxq.", "transformers.modeling_utils")


def has_quantizers(model: nn.Module) -> bool:
    """Return whether a quantizer of the model is on."""
    return any(isinstance(module, TensorQuantizer) and module.is_enabled for module in all_modules(model))


def warn_of_nothing(prepared: GraphModule, recipe: Recipe) -> None:
    """Warn of a prepared model without a quantizer."""
    if not has_quantizers(prepared):
        warnings.warn(
            f"nothing was quantized: with recipe {recipe.name!r} the result computes in float throughout. "
            "print(fxq.explain(prepared)) says why, operation by operation",
            stacklevel=levels_to_caller(),
        )


def check_quantized_unaltered(prepared: GraphModule) -> None:
    """Raise a PassError for a quantized module with hooks or a forward of its own, which lowering would lose."""
    for path, module in named_modules(prepared):
        reason = why_altered(module) if path and isinstance(module, Quantized | TensorQuantizer) else None
        if reason is not None:
            raise PassError(f"convert takes the quantized module {path!r} apart, which {reason}: remove it first")


def warn_of_chance(lines: str | None) -> None:
    """Say which ``lines`` of the model draw random numbers; None: none do."""
    if lines is not None:
        warnings.warn(
            f"the model draws random numbers in evaluation, in {lines}: it returns something else each time, and so "
            "would its file, which export_onnx cannot compare. Let dropout follow the mode, as in F.dropout(x, p, "
            "training=self.training); make other random values an input of forward, or a buffer",
            stacklevel=levels_to_caller(),
        )


def warn_of_memory(kept: Sequence[str]) -> None:
    """Say which attributes of the model a call changes, so that the next one returns something else."""
    if kept:
        more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
        warnings.warn(
            f"a second call of the model returns something else, for what the first left in "
            f"{', '.join(map(repr, kept[:3]))}{more}; a file does each time what the first call does. Make what is "
            "kept between calls an input and an output of forward",
            stacklevel=levels_to_caller(),
        )


def warn_of_batch_statistics(batch_norms: Sequence[Node]) -> None:
    """Say which batch norms have running statistics, and normalize by those of the batch in evaluation."""
    if batch_norms:
        places = "; ".join(line_of(node) for node in batch_norms[:5])
        warnings.warn(
            "batch_norm(..., training=True) normalizes by the statistics of the batch in evaluation too, and so does "
            f"the file: a sample's result depends on the others of its batch. In {places}. If it shall use the running "
            "statistics, pass training=self.training",
            stacklevel=levels_to_caller(),
        )


def warn_of_own_train(model: nn.Module) -> None:
    """Say which modules do more in ``train()`` than torch does, such as freezing batch norms: a graph does not."""
    own = [
        repr(path) if path else "the model"
        for path, module in named_modules(model)
        if not type(module).train.__module__.startswith(_SETTING_TRAINING_ONLY)
    ]
    if own:
        warnings.warn(
            f"train() is overridden in {', '.join(own[:5])}: the prepared model's train() and eval() set `training` "
            "and do nothing else; do what else it does yourself",
            stacklevel=levels_to_caller(),
        )


def warn_of_lost_hooks(model: nn.Module, gm: GraphModule) -> None:
    """Say which backward hooks do not come along: those of modules that were traced through or folded."""
    kept = {path for path, module in named_modules(gm) if has_backward_hooks(module)}
    lost = [repr(path) for path, module in named_modules(model) if has_backward_hooks(module) and path not in kept]
    if lost:
        warnings.warn(
            f"backward hooks do not come along into the graph, and training will not call them: those of modules "
            f"{', '.join(lost)}",
            stacklevel=levels_to_caller(),
        )


def check_model(model: Any, verify: bool, call: str = "prepare") -> None:
    """Refuse what cannot be prepared (InputError, StageError): no module, prepared before, lazy, without values."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}; make an instance" if isinstance(model, type) else type(model).__name__
        if isinstance(model, Mapping):
            got += ", which may hold a state dict: make the model, and let it load_state_dict(...)"
        if isinstance(model, str):
            got += ": make the model, and let it load its weights"
        raise InputError(f"{call} takes a torch.nn.Module, got {got}")
    for path, module in named_modules(model):
        state = find_state(module)
        if state is not None:
            where = f"its submodule {path!r}" if path else "the model"
            raise StageError(
                f"{where} was already prepared (stage '{state.stage}'): prepare the original model, "
                "with another recipe if you want other quantizers"
            )
    lazy = [path for path, module in named_modules(model) if any(map(is_lazy, module.parameters(recurse=False)))]
    if lazy:
        raise StageError(
            f"{len(lazy)} lazy modules of the model have never run ({', '.join(map(repr, lazy[:5]))}): run "
            "model(*example_inputs) once before prepare, so that their weights are there"
        )
    if verify:
        check_values(model, "prepare(verify=True)")


def warn_of_training_mode(model: nn.Module) -> None:
    """Say that a model in training mode, or with modules in it that ask for theirs, is prepared as its eval() self."""
    training = [
        f"{path!r} ({type(module).__name__})"
        for path, module in named_modules(model)
        if path and module.training and _asks_for_its_mode(module)
    ]
    if not (model.training or training) or holds_program(model):  # whose eval() and train() do nothing
        return
    more = f" and {len(training) - 3} more" if len(training) > 3 else ""
    what = "the model is" if model.training else f"the model's {', '.join(training[:3])}{more} are"
    warnings.warn(
        f"{what} in training mode; fxq prepares its eval() self, with running statistics and no dropout. "
        "Call model.eval() first to silence this",
        stacklevel=levels_to_caller(),
    )


def _asks_for_its_mode(module: nn.Module) -> bool:
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names


def own_layers(model: nn.Module) -> Iterator[str]:
    """Yield the paths of quantized modules from elsewhere whose lowering is registered: calls of them stay whole."""
    for path, module in named_modules(model):
        is_own = isinstance(module, Quantized) and type(module).__module__.partition(".")[0] != "fxq"
        if path and is_own and find_lowering(module) is not None:
            yield path


def levels_to_caller() -> int:
    """Return the stacklevel of a warning that shall point to whoever called fxq."""
    files = [frame.filename for frame in traceback.extract_stack()[-2::-1]]
    own, library = Path(__file__).parent, Path(contextlib.__file__).parent
    outside = (not Path(file).is_relative_to(own) and Path(file).parent != library for file in files)
    return next((level for level, is_outside in enumerate(outside, start=1) if is_outside), 1)


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy without wrappers such as torch.compile's; a TraceError where it refuses to be copied."""
    try:
        copies: dict[int, nn.Module] = {}
        # Of programs of torch.export torch 2.11 warns, while it copies them, of what it does itself.
        with quiet_torch() if holds_program(model) else contextlib.nullcontext():
            for wrapper, inner in reversed([*wrappers(model)]):  # inner ones first
                copies[id(wrapper)] = copies[id(inner)] = deep_copy(inner, copies)
            return deep_copy(model, copies)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may hold anything, and refuse to be copied in any way
        raise TraceError(
            f"the model ({type(model).__name__}) cannot be copied: {type(error).__name__}: {error}; fxq works on a "
            "copy, so give its attributes a __deepcopy__, or detach tensors that a forward left behind"
        ) from error
