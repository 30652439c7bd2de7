"""The record of a run: what each pass changed, planned and declined, and why. Plain data.

Whether a pass changed something, the report and ``fxq.explain`` come from here, never from a pass's own claim.
"""

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """One line of the record.

    Args:
        pass_name: who wrote it.
        action: "edit" (the graph changed), "plan" (a decision was noted) or "skip" (a pass declined).
        node: name of the node.
        path: module path that leads to it.
        text: what was done, or why not.
    """

    pass_name: str
    action: str
    node: str
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.path or self.node}: {self.text}"


@dataclass
class Record:
    """All entries of a run, in order, and the passes that ran."""

    entries: list[Entry] = field(default_factory=list)
    passes: list[str] = field(default_factory=list)
    _skips: dict[str, list[Entry]] = field(default_factory=dict, repr=False)  # by node, as often as entries has them

    def add(self, entry: Entry) -> None:
        """Append an entry; a pass that runs twice declines twice, and the record says it once."""
        if entry.action == "skip":
            skips = self._skips.setdefault(entry.node, [])
            if entry in skips:
                return
            skips.append(entry)
        self.entries.append(entry)

    def copy(self, without: Collection[str] = ()) -> "Record":
        """Return a record that goes on by itself from here, without what some passes wrote.

        What is written is never changed, so lines are shared.
        """
        entries = [entry for entry in self.entries if entry.pass_name not in without]
        skips: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.action == "skip":
                skips.setdefault(entry.node, []).append(entry)
        return Record(entries, [name for name in self.passes if name not in without], skips)

    def become(self, other: "Record") -> None:
        """Take over what ``other`` says."""
        self.entries, self.passes, self._skips = other.entries, other.passes, other._skips

    def of(self, pass_name: str, action: str | None = None) -> list[Entry]:
        """Return the entries of one pass, of one action if given."""
        return [entry for entry in self.entries if entry.pass_name == pass_name and action in (None, entry.action)]

    def skipped(self, node: str) -> list[Entry]:
        """Return why passes declined ``node``, first pass first."""
        return list(self._skips.get(node, ()))
