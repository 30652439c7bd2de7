"""Ratios against peers and limits; ``python -m benchmarks`` prints the tables."""
