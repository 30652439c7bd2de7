"""The version of pytorch-quantization whose names this door has."""

__version__ = "2.2.1"
