"""Integer models: a lowered graph whose values between quantize and dequantize are integers alone."""

from fxq.integer import forms
from fxq.integer.conversion import to_integer
from fxq.integer.file import export_integer
from fxq.integer.grid import Grid, Term
from fxq.integer.writer import Writer

__all__ = ["Grid", "Term", "Writer", "export_integer", "forms", "to_integer"]
