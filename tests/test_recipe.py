from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxq
from fxq.recipe import DEFAULT_PASSES, RECIPES

INT4 = fxq.QConfig(weight=fxq.QuantDescriptor(num_bits=4, axis=0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def everything() -> fxq.Recipe:
    """Return a recipe in which nothing has its default value."""
    activation = fxq.QuantDescriptor(amax=2.5, narrow_range=True, name="mine")
    return (
        fxq.Recipe(
            name="all of it",
            target="onnxruntime",
            default=fxq.QConfig(activation, fxq.QuantDescriptor(num_bits=7, axis=0, scale_amax=0.9)),
            calibrator="entropy",
            leaf_modules=("body.*", "Swish"),
        )
        .with_rules(("fc", None), (nn.Conv2d, INT4), ("body.*", fxq.QConfig()), (fxq.nn.QuantLinear, None))
        .with_pass_options("plan_ops", min_channels=16, depthwise=False)
        .without_pass("remove_dropout")
    )


def test_a_recipe_with_everything_comes_back_from_text() -> None:
    recipe = everything()
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe
    assert hash(fxq.Recipe.from_toml(recipe.to_toml())) == hash(recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_comes_with_fxq_is_found_by_name_and_comes_back_from_text(name: str) -> None:
    recipe = fxq.recipe(name)
    assert recipe.name == name
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "openvino", "dynamic", "weight_only"])
def test_a_built_in_recipe_comes_back_from_text(target: str) -> None:
    recipe = fxq.recipe(target)
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe
    assert fxq.Recipe.from_toml(f'target = "{target}"') == recipe


def test_a_target_of_ones_own_that_equals_a_built_in_one_is_written_by_name() -> None:
    recipe = fxq.recipe("tensorrt").replace(target=fxq.get_target("tensorrt"))
    assert fxq.Recipe.from_toml(recipe.to_toml()).resolved_target == recipe.resolved_target


@pytest.mark.parametrize(
    "descriptor",
    [fxq.QuantDescriptor(num_bits=4, axis=0, block_size=64), fxq.QuantDescriptor(num_bits=(4, 3), axis=0)],
    ids=["blocks", "float8"],
)
def test_blocks_and_float8_come_back_from_text(descriptor: fxq.QuantDescriptor) -> None:
    config = fxq.QConfig(weight=descriptor)
    recipe = fxq.recipe("weight_only").replace(default=config).with_rules(("fc", config))
    assert fxq.Recipe.from_toml(recipe.to_toml()) == recipe


def test_dynamic_is_no_calibrator_of_a_recipe() -> None:
    with pytest.raises(fxq.RecipeError, match="unknown calibrator 'dynamic'; choose one of max"):
        fxq.recipe("tensorrt").replace(calibrator="dynamic")


def test_a_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(everything().to_toml())
    assert fxq.recipe(path) == fxq.recipe(str(path)) == everything()


@dataclass(frozen=True)
class OwnOptions(fxq.Pass):
    stage = fxq.Stage.NORMALIZED
    kinds: tuple[str, ...] = ()
    share: float = 0.5

    def run(self, rw: fxq.Rewriter) -> None:
        pass


def test_options_that_are_tuples_come_back_as_tuples() -> None:
    fxq.register_pass("test_own_options")(OwnOptions)
    recipe = fxq.recipe("tensorrt").with_pass("test_own_options", kinds=("a", "b"), share=0.25)
    again = fxq.Recipe.from_toml(recipe.to_toml())
    assert again == recipe
    assert OwnOptions(("a", "b"), 0.25) in again.create_passes()[fxq.Stage.NORMALIZED]


def test_what_text_cannot_hold_is_an_error() -> None:
    class Local(nn.Module):
        pass

    recipe = fxq.recipe("tensorrt")
    with pytest.raises(fxq.RecipeError, match="matches by a predicate, which cannot be written as text"):
        recipe.with_rules((lambda path, module: True, None)).to_toml()
    with pytest.raises(fxq.RecipeError, match="Local' is not a module class that is imported"):
        recipe.with_rules((Local, None)).to_toml()


BAD_TEXT: dict[str, tuple[str, type[fxq.FxqError], str]] = {
    "no TOML": ("a = ", fxq.RecipeError, "the recipe is not valid TOML"),
    "no target": (
        "name = 'x'",
        fxq.RecipeError,
        "the recipe names no target; there are onnxruntime, openvino, tensorrt",
    ),
    "unknown entry": ("target = 'tensorrt'\ncolour = 1", fxq.RecipeError, "unknown entry 'colour' in the recipe"),
    "unknown target": ("target = 'tpu'", fxq.TargetError, "unknown target 'tpu'; there are onnxruntime, openvino"),
    "target of another type": (
        "target = 3",
        fxq.RecipeError,
        "target must be a name, a .toml file or a fxq.Target, got 3",
    ),
    "unknown calibrator": ("target = 'tensorrt'\ncalibrator = 'x'", fxq.RecipeError, "unknown calibrator 'x'"),
    "rules are no tables": (
        "target = 'tensorrt'\nrules = 'fc'",
        fxq.RecipeError,
        r"'rules' in a recipe is a list of tables",
    ),
    "passes are no tables": (
        "target = 'tensorrt'\npasses = [1]",
        fxq.RecipeError,
        r"'passes' in a recipe is a list of",
    ),
    "default is no table": (
        "target = 'tensorrt'\ndefault = 8",
        fxq.RecipeError,
        "a config has the tables 'activation'",
    ),
    "leaf modules are a text": (
        "target = 'tensorrt'\nleaf_modules = 'a'",
        fxq.RecipeError,
        "leaf_modules must be a tuple",
    ),
    "rule without match": (
        "target = 'tensorrt'\n[[rules]]\nfloat = true",
        fxq.RecipeError,
        "a rule has either 'match'",
    ),
    "rule with both": (
        "target = 'tensorrt'\n[[rules]]\nmatch = 'fc'\nfloat = true\n[rules.weight]\nnum_bits = 4",
        fxq.RecipeError,
        "a rule with float = true has no descriptors",
    ),
    "rule of unknown type": (
        "target = 'tensorrt'\n[[rules]]\ntype = 'os.system'\nfloat = true",
        fxq.RecipeError,
        "rule type 'os.system' is not",
    ),
    "descriptor out of range": (
        "target = 'tensorrt'\n[[rules]]\nmatch = 'fc'\n[rules.weight]\nnum_bits = 99",
        fxq.DescriptorError,
        "from 2 to 16",
    ),
    "unknown descriptor field": (
        "target = 'tensorrt'\n[default.weight]\nbits = 8",
        fxq.DescriptorError,
        "unknown descriptor field 'bits'",
    ),
    "pass without name": ("target = 'tensorrt'\n[[passes]]\noptions = {}", fxq.RecipeError, "a pass has a 'name'"),
    "options are no table": (
        "target = 'tensorrt'\n[[passes]]\nname = 'plan_ops'\noptions = 3",
        fxq.RecipeError,
        "options \\(a table\\)",
    ),
}


@pytest.mark.parametrize(("text", "error", "message"), BAD_TEXT.values(), ids=BAD_TEXT)
def test_text_that_is_no_recipe_is_an_error(text: str, error: type[fxq.FxqError], message: str) -> None:
    with pytest.raises(error, match=message):
        fxq.Recipe.from_toml(text)


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("target = 'tpu'")
    with pytest.raises(fxq.RecipeError, match=r"mine.toml: unknown target 'tpu'"):
        fxq.recipe(path)
    with pytest.raises(fxq.RecipeError, match=r"cannot read the recipe .*none.toml: No such file"):
        fxq.recipe(tmp_path / "none.toml")
    with pytest.raises(fxq.RecipeError, match=r"unknown recipe 'weightonly'; did you mean 'weight_only'\? There are"):
        fxq.recipe("weightonly")
    with pytest.raises(fxq.RecipeError, match=r"unknown recipe 'tpu'; there are .*, or name a .toml file"):
        fxq.recipe("tpu")


def prepare(recipe: fxq.Recipe) -> Any:
    return fxq.prepare(Net().eval(), torch.zeros(1, 3, 8, 8), recipe=recipe)


def test_a_glob_that_matches_nothing_is_an_error_that_suggests_a_path() -> None:
    with pytest.raises(fxq.RecipeError, match=r"rule \('bdy.0', None\) matches no module of the model; did you mean"):
        prepare(fxq.recipe("tensorrt").with_rules(("bdy.0", None)))


def test_a_recipe_that_lacks_a_stage_is_refused_where_the_graph_needs_it() -> None:
    recipe = fxq.recipe("tensorrt")
    with pytest.raises(
        fxq.PassError, match="has no pass of stage 'prepared', whose rules the graph breaks: input 0 of"
    ):
        prepare(recipe.without_pass("insert_quantizers").without_pass("attach_observers"))
    with pytest.raises(
        fxq.PassError, match="after attach_observers the graph still breaks the rules of stage 'prepared'"
    ):
        prepare(recipe.without_pass("insert_quantizers"))
    unlowered = prepare(recipe.without_pass("lower_to_qdq"))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fxq.calibrate(unlowered, [x], progress=False)
    with pytest.raises(
        fxq.PassError, match=r"has no pass of stage 'lowered', .*quantizer 'body.0._weight_quantizer' was"
    ):
        fxq.convert(unlowered)
    unfrozen = prepare(recipe.without_pass("freeze_ranges"))
    with pytest.raises(fxq.PassError, match=r"has no pass of stage 'frozen', .* has no range"):
        fxq.convert(unfrozen)


def test_unknown_passes_options_and_fields_are_errors() -> None:
    recipe = fxq.recipe("tensorrt")
    with pytest.raises(fxq.RecipeError, match="unknown pass 'no_such_pass'"):
        prepare(recipe.replace(passes=("no_such_pass",)))
    with pytest.raises(fxq.RecipeError, match="pass 'fold_batchnorm' has no option 'after'; its options: before"):
        recipe.with_pass_options("fold_batchnorm", after=True)
    with pytest.raises(fxq.RecipeError, match="option 'before' is a bool, got 'no'"):
        recipe.with_pass_options("fold_batchnorm", before="no")
    with pytest.raises(fxq.RecipeError, match=r"with_pass\('fold_affine'\) takes after or before, not both"):
        recipe.with_pass("fold_affine", after="plan_ops", before="solve_scales")
    with pytest.raises(fxq.RecipeError, match="a recipe has the fields name, target, "):
        recipe.replace(colour="red")
    with pytest.raises(
        fxq.RecipeError, match="the recipe 'tensorrt' has no pass 'nothing'; it has write_out, remove_inplace"
    ):
        recipe.without_pass("nothing")
    with pytest.raises(fxq.RecipeError, match=r"a rule is a fxq.Rule or a \(match, config\) pair, got 'fc'"):
        recipe.with_rules("fc")  # type: ignore[arg-type]


def test_passes_stand_in_the_order_of_their_stages() -> None:
    recipe = fxq.recipe("tensorrt").without_pass("fold_batchnorm").with_pass("fold_batchnorm", after="plan_ops")
    with pytest.raises(fxq.RecipeError, match=r"'fold_batchnorm' \(normalized\) stands behind 'plan_ops' \(planned\)"):
        prepare(recipe)


def names(recipe: fxq.Recipe) -> list[str]:
    return [spec.name for spec in recipe.passes]


def test_a_pass_is_added_at_the_end_of_its_stage_or_where_it_is_told_to() -> None:
    short = fxq.recipe("tensorrt").without_pass("fold_batchnorm")
    default = [spec.name for spec in DEFAULT_PASSES]
    assert names(short.with_pass("fold_batchnorm", before="fold_affine")) == default
    assert names(short.with_pass("fold_batchnorm", after="remove_dropout")) == default
    found = names(short.with_pass("fold_batchnorm"))
    assert found.index("fold_batchnorm") == found.index("plan_ops") - 1


def test_a_rule_that_says_none_leaves_a_module_in_float() -> None:
    explained = fxq.explain(prepare(fxq.recipe("tensorrt").with_rules(("body", None))))
    assert explained.counts == {"input": 1, "weight": 1}
    assert explained["body.0"].reason == "rule ('body', None) leaves it in float"


def test_the_default_fills_in_what_a_rule_leaves_open() -> None:
    recipe = fxq.recipe("tensorrt").replace(default=INT4).with_rules(("fc", fxq.QConfig()))
    prepared = prepare(recipe)
    assert prepared.fc.weight_quantizer.descriptor.num_bits == 4
    assert prepared.fc_input_quantizer.descriptor.num_bits == 8  # the target's
