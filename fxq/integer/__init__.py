"""Integer models: a lowered graph whose values between quantize and dequantize are integers alone."""

from fxq.integer import forms
from fxq.integer.conversion import to_integer
from fxq.integer.grid import Grid, Term
from fxq.integer.writer import Writer

__all__ = ["Grid", "Term", "Writer", "forms", "to_integer"]
