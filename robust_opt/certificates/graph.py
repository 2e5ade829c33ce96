"""A network as a graph of the operations that bounds go through; `tracing` makes it.

for index, node in graph.nodes.items():   # in the order of computation
  node.operation, node.inputs             # an `operations.Operation` of the values of those nodes
"""

import math
from typing import Any, NamedTuple

from robust_opt.certificates.operations import Affine, Operation


class Node(NamedTuple):
  """A value [*shape] that depends on the image; the image itself has no operation."""

  operation: Operation | None
  inputs: tuple[int, ...]
  shape: tuple[int, ...]

  @property
  def is_nonlinear(self) -> bool:
    """Whether its operation needs a relaxation."""
    return self.operation is not None and not isinstance(self.operation, Affine)


class Graph(NamedTuple):
  """A network for one image [1, *S].

  Attributes:
    nodes: by index, in the order of computation; the first is the image.
    output: the index of the logits [1, C].
    uses: by index, how often other nodes use it.
    dtype: of all values.
  """

  nodes: dict[int, Node]
  output: int
  uses: dict[int, int]
  dtype: Any

  @property
  def bounded(self) -> list[int]:
    """The inputs of nonlinear operations, whose bounds decide how tight the relaxations are."""
    inputs = (node.inputs for node in self.nodes.values() if node.is_nonlinear)
    return sorted({index for (index,) in inputs})

  def mixing(self, index: int) -> float:
    """How many affine operations that add up inputs lie before a node; inf after a nonlinear one.

    Up to one, intervals are exact over an l_inf ball.
    """
    seen, left, count = set(), [index], 0.0
    while left:
      current = left.pop()
      node = self.nodes[current]
      if current in seen or node.operation is None:
        continue
      seen.add(current)
      left.extend(node.inputs)
      count += node.operation.mixes if isinstance(node.operation, Affine) else math.inf
    return count
