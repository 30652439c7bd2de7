"""``fxq explain``: what would be quantized how, and why, or why not."""

import json

from fxq.cli.console import print_plain, print_result
from fxq.cli.example_inputs import example_inputs
from fxq.cli.input_spec import InputSpec
from fxq.cli.models import ModelSource, load_model
from fxq.cli.recipes import RecipeChoice
from fxq.explain import explain


def run_explain(source: ModelSource, choice: RecipeChoice, inputs: tuple[InputSpec, ...], as_json: bool) -> None:
    """Print the explanation of a model as a table, or as JSON.

    Args:
        source: the model; its weights do not matter.
        choice: the recipe.
        inputs: what the model takes; none for models that trace without.
        as_json: print plain data.
    """
    model = load_model(source)
    explanation = explain(choice.prepare(model, example_inputs(inputs, model) if inputs else None))
    if as_json:
        print_plain(json.dumps(explanation.to_dict(), indent=2))
    else:
        print_result(explanation)
