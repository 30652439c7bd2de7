"""The version of pytorch-quantization whose names this package has."""

__version__ = "2.2.1"
