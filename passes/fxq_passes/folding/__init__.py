"""Arithmetic that moves one layer into another."""
