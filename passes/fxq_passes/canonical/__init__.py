"""One form for each operation: tables, and functional layers as modules."""
