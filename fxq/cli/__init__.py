"""The command line: ``fxq demo | quantize | explain | passes | recipe``."""
