"""Stages: what a graph has been through. Each has rules (``fxq.graph.check``)."""

import enum


class Stage(enum.IntEnum):
    """The stages in order. A pass belongs to the stage whose graph it helps to make."""

    TRACED = 0
    NORMALIZED = 1
    PLANNED = 2
    PREPARED = 3
    CALIBRATED = 4
    FROZEN = 5
    LOWERED = 6
    INTEGER = 7

    def __str__(self) -> str:
        return self.name.lower()
