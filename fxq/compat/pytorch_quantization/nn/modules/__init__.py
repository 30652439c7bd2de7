"""The quantized modules, a file for each kind."""
