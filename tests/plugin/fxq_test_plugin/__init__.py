"""A plugin for the tests: one pass that works, and one that leaves a dead node behind."""

from fxq_test_plugin.passes import DropSoftmax, LeaveDeadNode

__all__ = ["DropSoftmax", "LeaveDeadNode"]
