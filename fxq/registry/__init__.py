"""Names of passes and targets, and the lowerings of modules: decorators, and the entry points of installed packages.

``fxq.registry.tables``, ``fxq.kinds`` and ``fxq.quant.registry`` are the only modules with state.
"""

from fxq.registry.integer_forms import find_integer_form, integer_form, kinds_with_integer_form
from fxq.registry.lowerings import find_lowering, lowers
from fxq.registry.passes import create_pass, pass_options, register_pass, registered_pass, registered_passes
from fxq.registry.plugins import PASSES, load_plugins
from fxq.registry.tables import IntegerForm, ModuleLowering, Registration, TargetRegistration
from fxq.registry.targets import get_target, is_registered, register_target, registered_targets, target_from_file

__all__ = [
    "PASSES",
    "IntegerForm",
    "ModuleLowering",
    "Registration",
    "TargetRegistration",
    "create_pass",
    "find_integer_form",
    "find_lowering",
    "get_target",
    "integer_form",
    "is_registered",
    "kinds_with_integer_form",
    "load_plugins",
    "lowers",
    "pass_options",
    "register_pass",
    "register_target",
    "registered_pass",
    "registered_passes",
    "registered_targets",
    "target_from_file",
]
