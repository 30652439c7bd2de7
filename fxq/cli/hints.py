"""Advice in the words of the shell: what fxq advises a script, as the option that does it."""

# What the errors of the API say, and what takes its place; one phrase may be a part of a later one.
PHRASES = (
    ('recipe.replace(leaf_modules=("', "--leaf '"),
    ('",)); it is then left in float', "'; it is then left in float"),
    ('untraceable="float"', "--untraceable float"),
    ('untraceable="islands"', "--untraceable islands"),
    ('frontend="export"', "--frontend export"),
    ('leave frontend at "auto"', "leave --frontend at auto"),
    ("recipe.replace(leaf_modules=(...,))", "--leaf NAME"),
    ("recipe.replace(leaf_modules=...)", "--leaf NAME"),
    ("pass example_inputs, so that shapes are known", "give --input-shape, so that shapes are known"),
    ("pass example_inputs for which model(*example_inputs) runs", "give an --input-shape or data that it takes"),
    ("give fxq.prepare() example_inputs", "give --input-shape"),
    ("give prepare() example_inputs", "give --input-shape"),
    ("or leave it in float by a rule with None", "or name it in --leave-in-float"),
    ("Give prepare() example_inputs for which it runs", "Give an --input-shape or data for which it runs"),
    ("see model.named_modules()", "fxq explain shows them"),
    ("min_sqnr_db= says what", "--min-sqnr-db says what"),
    ("print(fxq.explain(model)) shows", "--explain shows"),
    ("print(fxq.explain(prepared)) says", "fxq explain says"),
    ("and leave in float (a rule with None) what", "and name in --leave-in-float what"),
    (
        'take accuracy="best", or calibrate with another calibrator',
        "take --accuracy best, or another --calibrator",
    ),
    ("mean and standard deviation, the layout", "--mean and --std, the layout"),
    ("pass dynamic_batch=False", "give --static-batch"),
    ("Pass dynamic_batch=False, with example_inputs of the batch that it will see", "Give --static-batch"),
    ("dynamic_batch=False and dynamic_shapes", "--static-batch and --dynamic"),
    ("8 * torch.export.Dim('k'), or Dim(name, min=, max=)", "bounds, --dynamic NAME:DIM=SIZE:LEAST-MOST"),
    ("(torch.export.Dim(name, min=, max=), 8 * Dim(name))", "(--dynamic NAME:DIM=SIZE:LEAST-MOST)"),
    ("(torch.export.Dim(name, min=, max=))", "(--dynamic NAME:DIM=SIZE:LEAST-MOST)"),
    ("pass example_inputs of a size that dynamic_shapes allows", "give data or an --input-shape of a size within"),
    ("dynamic_shapes", "--dynamic"),
    ("output_names", "--output-names"),
    ("input_names", "--input-names"),
    ("Take opset=", "Take --opset "),
    ("opset=", "--opset "),
    ("check=False writes", "in Python, fxq.export_onnx(..., check=False) writes"),
    ("Pass forward=lambda model, batch: ... for batches of another form", "Look at that part of --calib-data"),
    ("pass batches to fxq.calibrate", "give --calib-data"),
    ("call fxq.calibrate(prepared, batches) before fxq.convert", "give --calib-data"),
    ("Run fxq.calibrate(prepared, batches) with data that reaches them before fxq.convert", "Give --calib-data"),
    ("or switch them off with .disable()", "or name their modules in --leave-in-float"),
)


def in_words_of_the_shell(text: str) -> str:
    """Return a message of fxq with the options of the command line in place of Python calls."""
    for phrase, option in PHRASES:
        text = text.replace(phrase, option)
    return text
