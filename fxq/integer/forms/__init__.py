"""The built-in integer forms, rows like those of plugins; importing them registers them."""

from fxq.integer.forms import activations, averages, batch_norm, layers, moves, resize, sums, windows

__all__ = ["activations", "averages", "batch_norm", "layers", "moves", "resize", "sums", "windows"]
