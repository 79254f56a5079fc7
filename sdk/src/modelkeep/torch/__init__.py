"""Modules to graphs and back (extra ``torch``): `trace` for uploads, `load` for downloads.

A graph is a description from a closed list of operations, with the weights apart as safetensors; no code travels.
docs/reference/graph.md lists the operations. Neither function opens a pickle.
"""

from modelkeep.torch._build import GraphModule, load
from modelkeep.torch._trace import Traced, trace

__all__ = ["GraphModule", "Traced", "load", "trace"]
