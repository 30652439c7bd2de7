"""Options that are for images in files, and would be ignored for arrays."""

from pathlib import Path

import typer


def refuse_image_options(context: typer.Context, path: Path) -> None:
    """Refuse what would be ignored: arrays are not resized, and no file of theirs is skipped."""
    for name in ("image_size", "resize", "skip_bad_images"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise typer.BadParameter(f"it is for images in files, and {path} holds arrays", param_hint=option)
