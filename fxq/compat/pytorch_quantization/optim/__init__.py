"""Helpers for optimizers of quantized models."""
