"""Softmax regression: its worst case has a closed form (certify.exact)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from robust_opt.models import affine
from robust_opt.models.layers import Standardize, full
from robust_opt.types import Array, Params


class SoftmaxRegression(nn.Module):
  """One affine layer: images [B, *S] in [0, 1] -> logits [B, num_classes]."""

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  dtype: Any = None  # of the computation, None: of x; parameters and logits are float32 at least

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train` has no effect."""
    x = Standardize(self.mean, self.std)(x)
    x = x.reshape(x.shape[0], -1)
    return full(nn.Dense(self.num_classes, dtype=self.dtype)(x))

  def layer_list(self, params: Params) -> list[affine.Layer]:
    """The same net as a list of layers, for penalties."""
    standardization = affine.standardization(self.mean, self.std)
    return [standardization, *affine.perceptron(params["Dense_0"])]
