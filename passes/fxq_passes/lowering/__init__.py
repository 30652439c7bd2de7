"""How each quantized module is written in a lowered graph."""
