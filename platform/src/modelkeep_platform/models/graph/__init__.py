"""The graph: a code-free description of a torch module, its checks, and building it inside workers."""

from modelkeep_platform.models.graph.format import Graph, Node, Tensor, parse, with_affine

__all__ = ["Graph", "Node", "Tensor", "parse", "with_affine"]
