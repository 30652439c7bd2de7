"""Recipe: what to quantize, how, for which target, by which passes. Data in, text out, and back (TOML)."""

import dataclasses
import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import tomli_w
from torch import nn

from fxq.accuracy_levels import DEFAULT_LEVEL, pass_names
from fxq.compare.quality import LEAST_DB, is_decibels
from fxq.errors import FxqError, RecipeError
from fxq.literal import did_you_mean, has_utf8_form
from fxq.passbase import Pass
from fxq.quant.descriptor import CALIBRATORS, QuantDescriptor, calibrator_names
from fxq.quant.qconfig import QConfig, Rule
from fxq.quant.registry import is_fit
from fxq.recipe_parts import PassSpec, as_pass_spec, as_rule, as_tuple, spec_from_dict, tables
from fxq.registry import get_target, is_registered, registered_targets, target_from_file
from fxq.rule_text import config_from_dict, rule_from_dict, rule_to_dict
from fxq.stage import Stage
from fxq.targets import TARGETS, Target
from fxq.toml_text import parse_toml, read_text

DEFAULT_PASSES = tuple(
    PassSpec(name)
    for name in (
        "write_out", "remove_inplace", "fold_weights", "functional_to_module", "remove_dropout", "fold_batchnorm",
        "fold_affine", "split_silu",
        "plan_ops", "plan_residual_adds", "solve_scales",
        "insert_quantizers", "attach_observers",
        "observe_ranges", "fit_ranges",
        "freeze_ranges",
        "lower_to_qdq",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """All that ``prepare`` needs to know beside the model.

    Args:
        name: for people and for the metadata of exported files; "" for the target's name.
        target: a name that is built in or registered, a .toml file with a target, or a Target.
        default: descriptors where no rule matches; what it leaves open comes from the target.
        rules: ordered Rules, or (match, config) pairs; the last match wins, None leaves the module in float.
        calibrator: what observes activations, and so how ranges are fitted: "max" (fastest), "minmax",
            "moving_average", "percentile", "mse", "entropy" or another calibration method, or "histogram", which
            fits the maximum and lets ``fit_ranges`` try the methods without the data.
        passes: in order of their stages.
        leaf_modules: globs on module paths or class names that tracing does not enter; they stay in float.
        min_sqnr_db: ``convert`` and ``export_onnx`` warn of an output that is further from the float model's; 0 dB is
            an error as large as the signal.
    """

    name: str = ""
    target: str | Target = "tensorrt"
    default: QConfig = field(default_factory=QConfig)
    rules: tuple[Rule, ...] = ()
    calibrator: str = "histogram"
    passes: tuple[PassSpec, ...] = DEFAULT_PASSES
    leaf_modules: tuple[str, ...] = ()
    min_sqnr_db: float = LEAST_DB

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise RecipeError(f"name must be a text, got {self.name!r}")
        if not has_utf8_form(self.name):
            raise RecipeError(f"name must be text that UTF-8 can write, got {self.name!r}")
        if isinstance(self.target, str) and self.target.endswith(".toml"):
            object.__setattr__(self, "target", target_from_file(self.target))
        if isinstance(self.target, str):
            get_target(self.target)
        elif not isinstance(self.target, Target):
            raise RecipeError(f"target must be a name, a .toml file or a fxq.Target, got {self.target!r}")
        object.__setattr__(self, "name", self.name or self.resolved_target.name)
        # "dynamic" observes nothing: it is part of a descriptor, as in the recipe of that name.
        if not isinstance(self.calibrator, str):
            raise RecipeError(f"calibrator must be a name such as 'histogram', got {self.calibrator!r}")
        if self.calibrator == "dynamic" or not (self.calibrator in CALIBRATORS or is_fit(self.calibrator)):
            names = [name for name in calibrator_names() if name != "dynamic"]
            raise RecipeError(f"unknown calibrator {self.calibrator!r}; choose one of {', '.join(names)}")
        if not isinstance(self.default, QConfig):
            raise RecipeError(f"default must be a fxq.QConfig, got {self.default!r}")
        if not is_decibels(self.min_sqnr_db):
            raise RecipeError(f"min_sqnr_db must be a number of dB, got {self.min_sqnr_db!r}")
        leaf_modules = as_tuple(self.leaf_modules, "leaf_modules", "globs")
        for glob in leaf_modules:
            if not isinstance(glob, str):
                raise RecipeError(f"leaf_modules must be a tuple of globs, which are texts, got {glob!r} in it")
        object.__setattr__(self, "leaf_modules", leaf_modules)
        object.__setattr__(self, "rules", tuple(map(as_rule, as_tuple(self.rules, "rules", "rules"))))
        object.__setattr__(self, "passes", tuple(map(as_pass_spec, as_tuple(self.passes, "passes", "names"))))

    @property
    def resolved_target(self) -> Target:
        """The target as data."""
        return self.target if isinstance(self.target, Target) else get_target(self.target)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        try:
            return dataclasses.replace(self, **changes)
        except TypeError as error:
            known = ", ".join(field.name for field in dataclasses.fields(self))
            raise RecipeError(f"a recipe has the fields {known}: {error}") from error

    def with_rules(self, *rules: Rule | tuple[Any, QConfig | None]) -> Self:
        """Return a copy with rules appended, such as ``("fc", None)``."""
        return self.replace(rules=(*self.rules, *rules))

    def with_pass(self, name: str, *, after: str | None = None, before: str | None = None, **options: Any) -> Self:
        """Return a copy with one more pass: after or before another, else last in its stage.

        Passes that close their stage (``Pass.closes_stage``) stay behind it.
        """
        if after is not None and before is not None:
            raise RecipeError(f"with_pass({name!r}) takes after or before, not both: {after!r} and {before!r}")
        spec = PassSpec(name, tuple(options.items()))
        new = spec.create()
        if after is not None or before is not None:
            index = self._index_of(str(after or before)) + (after is not None)
        else:
            index = sum(_runs_before(found.create(), new) for found in self.passes)
        return self.replace(passes=(*self.passes[:index], spec, *self.passes[index:]))

    def without_pass(self, name: str) -> Self:
        """Return a copy without a pass."""
        index = self._index_of(name)
        return self.replace(passes=self.passes[:index] + self.passes[index + 1 :])

    def with_pass_options(self, name: str, **options: Any) -> Self:
        """Return a copy with other options for one of its passes."""
        index = self._index_of(name)
        spec = PassSpec(name, tuple({**dict(self.passes[index].options), **options}.items()))
        spec.create()  # an option that does not exist is an error here already
        return self.replace(passes=(*self.passes[:index], spec, *self.passes[index + 1 :]))

    def with_accuracy(self, level: str) -> Self:
        """Return a copy whose calibration does more, or less, for accuracy.

        Args:
            level: "plain" (ranges alone), "fast" (a few times the cost of calibration) or "best" (minutes). Which
                passes that is, the recipe then shows. Each is measured on samples that it did not see, and undone
                where it hurts.

        Raises:
            RecipeError: there is no such level, or the target quantizes no activations by calibrated ranges.
        """
        specs = {spec.name: spec for spec in self.passes}
        names = pass_names([spec.name for spec in self.passes], self.resolved_target, level, self.name)
        return self.replace(passes=tuple(specs.get(name, PassSpec(name)) for name in names))

    def create_passes(self) -> dict[Stage, list[Pass]]:
        """Return the passes by stage.

        Raises:
            RecipeError: a pass or an option does not exist, or a pass stands behind one of a later stage.
        """
        passes = [spec.create() for spec in self.passes]
        for earlier, later in itertools.pairwise(passes):
            if earlier.stage > later.stage:
                raise RecipeError(
                    f"pass {later.name!r} ({later.stage}) stands behind {earlier.name!r} ({earlier.stage}); "
                    "list passes in the order of their stages"
                )
        return {stage: [step for step in passes if step.stage is stage] for stage in Stage}

    def to_toml(self) -> str:
        """Return the recipe as text; a predicate has none and is a RecipeError.

        A target without a registered name is written out in full.
        """
        target = self.resolved_target
        written = target.name if is_registered(target) else target.to_dict()
        fields: dict[str, Any] = {"name": self.name, "target": written, "calibrator": self.calibrator}
        if self.min_sqnr_db != LEAST_DB:
            fields["min_sqnr_db"] = self.min_sqnr_db
        if self.leaf_modules:
            fields["leaf_modules"] = list(self.leaf_modules)
        if self.default != QConfig():
            fields["default"] = self.default.to_dict()
        fields["rules"] = [rule_to_dict(rule) for rule in self.rules]
        fields["passes"] = [
            {"name": spec.name, **({"options": dict(spec.options)} if spec.options else {})} for spec in self.passes
        ]
        return tomli_w.dumps({name: value for name, value in fields.items() if value != []})

    def to_text(self) -> str:
        """Return TOML, or where the recipe cannot be written as such (predicates), its repr: for people to read."""
        try:
            return self.to_toml()
        except RecipeError:
            return repr(self)

    @classmethod
    def from_toml(cls, text: str, folder: Path = Path()) -> Self:
        """Build a recipe from text; anything it does not know is a RecipeError.

        Args:
            text: TOML.
            folder: where a target's .toml file that the text names is looked for.
        """
        fields = parse_toml(text, "the recipe", RecipeError)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            if "ops" in fields:
                raise RecipeError('this is a target and no recipe: write target = "FILE.toml" in a recipe')
            hint = did_you_mean(unknown[0], known, f"there are {', '.join(sorted(known))}")
            raise RecipeError(f"unknown entry {unknown[0]!r} in the recipe; {hint}")
        if "target" not in fields:
            raise RecipeError(f"the recipe names no target; there are {', '.join(registered_targets())}")
        values = dict(fields)
        if isinstance(fields["target"], dict):
            values["target"] = Target.from_dict(fields["target"])
        elif isinstance(fields["target"], str) and fields["target"].endswith(".toml"):
            values["target"] = target_from_file(folder / fields["target"])
        if "default" in fields:
            values["default"] = config_from_dict(fields["default"], "default")
        if "rules" in fields:
            values["rules"] = tuple(rule_from_dict(rule, where) for rule, where in tables(fields, "rules"))
        if "passes" in fields:
            values["passes"] = tuple(spec_from_dict(spec, where) for spec, where in tables(fields, "passes"))
        return cls(**values)

    def _index_of(self, name: str) -> int:
        names = [spec.name for spec in self.passes]
        if name not in names:
            raise RecipeError(f"the recipe {self.name!r} has no pass {name!r}; it has {', '.join(names)}")
        return names.index(name)


def recipe(name: str | Path | Recipe) -> Recipe:
    """Return a recipe by name, one of RECIPES or a registered target's, or read one from a TOML file.

    Raises:
        RecipeError: there is no such recipe and no such file.
    """
    if isinstance(name, Recipe):
        return name
    if not isinstance(name, str | Path):
        raise RecipeError(f"a recipe is a name, a .toml file or a fxq.Recipe, got {type(name).__name__}")
    if str(name) in RECIPES:
        return RECIPES[str(name)]
    path = Path(name)
    if path.suffix == ".toml":
        return _read_recipe(path)
    names = dict.fromkeys((*RECIPES, *registered_targets()))
    if name in names:
        return Recipe(target=str(name))
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? There" if close else "there"
    raise RecipeError(f"unknown recipe {str(name)!r}; {hint} are {', '.join(names)}, or name a .toml file")


def recipe_at(
    name: str | Path | Recipe, level: str | None, has_islands: bool = False, has_batches: bool = False
) -> tuple[Recipe, bool]:
    """Return a recipe with the passes of an accuracy level, and whether it was asked for them.

    Where none is asked for, a recipe that comes by its name gets those of DEFAULT_LEVEL; one's own, and one from a
    file, stays as it is. So does that of a model with islands: a batch is one sample there, and an island may see few;
    and one that needs no data, where there are no batches.

    Raises:
        RecipeError: there is no such recipe, or it has no such level.
    """
    found = recipe(name)
    if level is not None:
        return found.with_accuracy(level), True
    lists_its_passes = isinstance(name, Recipe) or Path(name).suffix == ".toml"
    learns = has_batches or found.resolved_target.needs_data
    if lists_its_passes or has_islands or found.resolved_target.is_dynamic or not learns:
        return found, True
    return found.with_accuracy(DEFAULT_LEVEL), False


def _read_recipe(path: Path) -> Recipe:
    """Return the recipe of a TOML file; a target's file that it names lies beside it."""
    text = read_text(path, "the recipe", RecipeError)
    try:
        return Recipe.from_toml(text, path.parent)
    except FxqError as error:
        raise RecipeError(f"{path}: {error}") from error


def _runs_before(found: Pass, new: Pass) -> bool:
    return found.stage < new.stage or (found.stage == new.stage and (new.closes_stage or not found.closes_stage))


_INT4_IN_BLOCKS = QConfig(weight=QuantDescriptor(num_bits=4, axis=0, block_size=32))
# TensorRT's int4 has blocks of 64 or 128, and only matrix products read it.
_INT4_FOR_TENSORRT = QConfig(weight=QuantDescriptor(num_bits=4, axis=0, block_size=64))
_E4M3 = QuantDescriptor(num_bits=(4, 3))

# Built where all that a recipe checks itself with is defined.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        **{name: Recipe(target=name) for name in TARGETS},
        # Convolutions, recurrent layers and tables have few weights, or need them precise: they keep 8 bits.
        "weight_only_int4": Recipe(
            "weight_only_int4",
            "weight_only",
            rules=(Rule(nn.Linear, _INT4_IN_BLOCKS), Rule(nn.MultiheadAttention, _INT4_IN_BLOCKS)),
        ),
        "tensorrt-fp8": Recipe("tensorrt-fp8", "tensorrt", QConfig(_E4M3, _E4M3.replace(axis=0))),
        "tensorrt-int4": Recipe(
            "tensorrt-int4",
            "weight_only",
            rules=(
                Rule("*", None),
                Rule(nn.Linear, _INT4_FOR_TENSORRT),
                Rule(nn.MultiheadAttention, _INT4_FOR_TENSORRT),
            ),
        ),
    }
)
