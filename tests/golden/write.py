"""Write the plans of all models anew: ``PYTHONPATH=tests uv run python tests/golden/write.py``; then read the diff."""

from pathlib import Path

from support.golden import MODELS, TARGETS, plans_text

for name in MODELS:
    text = "\n\n".join(plans_text(name, target) for target in TARGETS)
    (Path(__file__).parent / f"{name}.txt").write_text(text + "\n")
