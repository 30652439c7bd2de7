"""Which operations of the graph a finding about a file is shown at."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from fxq.reporting.content import GraphNode
from fxq.verification.finding import Finding


def places_of(findings: Iterable[Finding], nodes: Sequence[GraphNode]) -> list[list[int]]:
    """Return for each finding the indices of its operations; none for one about the file as a whole.

    They are what it names; or else what reads the quantizer that it names; or else the module of the stored tensor that
    it names ("conv" of "conv.weight"); or else what the module that it names computes in its own forward.
    """
    by_name, by_quantizer, by_owner = (defaultdict[str, list[int]](list) for _ in range(3))
    for index, node in enumerate(nodes):
        for name in {node.path, node.node}:
            by_name[name].append(index)
        for quantizer in {one.quantizer for one in node.quantized}:
            by_quantizer[quantizer].append(index)
        owner, _, name = node.path.rpartition(".")
        if name == node.node:
            by_owner[owner].append(index)

    def places(finding: Finding) -> list[int]:
        path, name = finding.path, finding.node
        if not path:
            return by_name.get(name, [])
        owner = path.rpartition(".")[0] or path
        found = (by_name.get(path), by_name.get(name), by_quantizer.get(path), by_name.get(owner), by_owner.get(path))
        return next(filter(None, found), [])

    return [places(finding) for finding in findings]
