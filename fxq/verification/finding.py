"""Finding: one rule that a file breaks, where, what that costs, and what to do about it."""

from dataclasses import dataclass

# The runtime refuses the file, or computes something else than it says; it is slower or less accurate than need be;
# something to know, which breaks no rule.
ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """One rule that a file breaks.

    Args:
        rule: its name, such as "residual-quantizer".
        node: of the file, or of the runtime's graph; "" for the file as a whole.
        path: of the module that the node came from; the name of the node where the file does not tell.
        severity: "error" (refused, or computed otherwise), "warning" (slower or less accurate) or "note" (no rule is
            broken).
        fix: what to do.
        what: what is wrong.
        cost: what that costs.
    """

    rule: str
    node: str
    path: str
    severity: str
    fix: str
    what: str = ""
    cost: str = ""

    @property
    def is_broken(self) -> bool:
        """Is a rule broken, rather than something noted?"""
        return self.severity != NOTE
