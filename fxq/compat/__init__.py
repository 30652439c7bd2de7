"""For scripts written for other tools: their module layout and names, thin over fxq."""

from fxq.compat.alias import install_alias

__all__ = ["install_alias"]
