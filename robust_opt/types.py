"""Types of the values that pass between modules.

Shapes: B examples in a batch, *S the shape of one example (for images [H, W, C], pixels in [0, 1]),
C classes. Arrays are float32 unless stated otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any

Params = PyTree
ModelState = PyTree  # updated by a forward pass: batch statistics, or {}

LogitsFn = Callable[[Array], Array]  # x [B, *S] -> logits [B, C], each example independently
LossFn = Callable[[Array, Array], Array]  # (logits [B, C], y [B, ...]) -> loss [B]
# x [B, *S] -> (logits [B, C], model_state); that of a learner takes train=False too.
Forward = Callable[..., tuple[Array, ModelState]]


class Scored(NamedTuple):
  """A value to maximize, with a separate score for comparing points.

  Attributes:
    value: [B], the value to maximize, such as the cross-entropy.
    score: [B], to choose the best point by, such as the margin, > 0 if misclassified.
    enough: [B], a score above which a higher one would change nothing: an ascent that keeps the
      best point ends once every example has exceeded it. None: it takes all of its steps.
  """

  value: Array
  score: Array
  enough: Array | None = None


# x [B, *S] -> the value to maximize, [B] (or its sum, [])
ValueFn = Callable[[Array], Array | Scored]


class Stochastic(NamedTuple):
  """A value_fn with fresh noise in every step of an attack."""

  at: Callable[[Array | int], ValueFn]  # (step [], int32, traced) -> the value_fn of that step


class ApplyFn(Protocol):
  """A model: (params, model_state, x [B, *S]) -> (logits [B, C], updated model_state)."""

  def __call__(
    self, params: Params, model_state: ModelState, x: Array, *, train: bool, key: Array | None
  ) -> tuple[Array, ModelState]:
    """train: batch statistics and dropout by key; otherwise running statistics, no dropout."""


class PureNet(Protocol):
  """A network as a pair of pure functions, of any library."""

  def init(self, key: Array, image_shape: Sequence[int]) -> tuple[Params, ModelState]:
    """Initial parameters, a pytree of float arrays, and batch statistics or {}; under jit too."""

  def apply(
    self, params: Params, model_state: ModelState, x: Array, train: bool, key: Array | None
  ) -> tuple[Array, ModelState]:
    """Logits [B, C] of x [B, *S], pixels in [0, 1], and the updated state; as an ApplyFn.

    train: whether to use statistics of the batch, and dropout by key. Otherwise every example is
    classified independently, and the state is returned as it is.
    """

  def __hash__(self) -> int:
    """The default, by identity, is enough; define it by value to share compilations."""


class Batch(NamedTuple):
  """A batch of examples.

  Attributes:
    x: images [B, *S], float32 pixels in [0, 1] (stored data sets are uint8 in [0, 255]).
    y: classes [B], int32 in [0, C); or other labels of the loss, [B, ...], such as regression
      targets or soft labels.
    ids: [B], int32, the index of each example in its data set, from which random starts derive.
  """

  x: Array
  y: Array
  ids: Array
