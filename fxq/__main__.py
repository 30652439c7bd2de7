"""``python -m fxq`` does what ``fxq`` does."""

from fxq.cli.main import main

main()
