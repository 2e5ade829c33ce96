"""Names for what flows through the library.

Shapes: B examples in a batch, *S the shape of one example (for images [H, W, C], in pixels of
[0, 1]), C classes. Everything is float32 unless said otherwise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any

Params = PyTree
ModelState = PyTree  # what a forward pass may update: batch statistics, or {}

LogitsFn = Callable[[Array], Array]  # x [B, *S] -> logits [B, C], every example by itself
LossFn = Callable[[Array, Array], Array]  # (logits [B, C], y [B, ...]) -> loss [B]
Forward = Callable[[Array], tuple[Array, ModelState]]  # x [B, *S] -> (logits [B, C], model_state)


class Scored(NamedTuple):
  """What a value_fn may return in place of its value, when points are judged by something else.

  Attributes:
    value: [B], what the adversary ascends.
    score: [B], what points are compared by when the best is kept: the margin, which says whether
      the net is fooled, while the cross-entropy climbs better.
  """

  value: Array
  score: Array


# x [B, *S] -> what the adversary ascends, [B] (or its sum, [])
ValueFn = Callable[[Array], Array | Scored]


class Stochastic(NamedTuple):
  """What an attack may be given in place of a value_fn, when every step has noise of its own.

  Attributes:
    at: (step [], int32, traced) -> the value_fn of that step of the ascent.
  """

  at: Callable[[Array | int], ValueFn]


class ApplyFn(Protocol):
  """A model: (params, model_state, x [B, *S]) -> (logits [B, C], updated model_state)."""

  def __call__(
    self, params: Params, model_state: ModelState, x: Array, *, train: bool, key: Array | None
  ) -> tuple[Array, ModelState]:
    """train: batch statistics of the batch and dropout by key, or running statistics and none."""
    ...


class Batch(NamedTuple):
  """Examples that travel together.

  Attributes:
    x: images [B, *S], float32 pixels in [0, 1] (data sets at rest are uint8 in [0, 255]).
    y: classes [B], int32 in [0, C); or whatever the loss takes, [B, ...]: targets of a regression,
      soft labels.
    ids: [B], int32, the place of each example in its data set. Random starts derive from it, so
      that an example's fate depends neither on its neighbours nor on the device it lies on.
  """

  x: Array
  y: Array
  ids: Array
