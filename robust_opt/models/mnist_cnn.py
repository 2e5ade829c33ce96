"""The MNIST network of Shaham, Yamada and Negahban (https://arxiv.org/abs/1511.05432)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.models import affine
from robust_opt.models.layers import ConvPool, Standardize
from robust_opt.types import Array, Params


class MnistCNN(nn.Module):
  """Pixels x [B, 28, 28, 1] in [0, 1] -> logits [B, num_classes].

  Zero-pad to 32 x 32, standardize, conv 5x5x32 - ReLU - max pool 3x3, conv 5x5x64 - ReLU -
  max pool 2x2, dense 200 - ReLU, dense num_classes.
  """

  num_classes: int = 10
  mean: float | Sequence[float] = 0.1000  # of the padded training pixels
  std: float | Sequence[float] = 0.2752
  input_batch_norm: bool = False  # also batch-normalize the input, without scale and offset
  axis_name: str | None = None  # under pmap and shard_map, to share batch statistics over
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:  # noqa: D102
    x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    x = Standardize(self.mean, self.std)(x)
    if self.input_batch_norm:
      x = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, use_bias=False, use_scale=False,
        axis_name=self.axis_name if train else None,
      )(x)  # fmt: skip
    x = nn.relu(ConvPool(32, (5, 5), "VALID", pool_size=3, dtype=self.dtype, name="conv1")(x))
    x = nn.relu(ConvPool(64, (5, 5), "VALID", pool_size=2, dtype=self.dtype, name="conv2")(x))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(200, dtype=self.dtype, name="dense1")(x))
    return nn.Dense(self.num_classes, dtype=self.dtype, name="dense2")(x).astype(jnp.float32)

  def layer_list(self, params: Params) -> list[affine.Layer]:
    """The same net as a list of layers, for penalties; without input_batch_norm only."""
    if self.input_batch_norm:
      raise InputError("MnistCNN has a list of layers only without input_batch_norm.")
    return [
      affine.Pad(2),
      affine.standardization(self.mean, self.std),
      *affine.conv_pool_relu(params["conv1"], 3, "VALID"),
      *affine.conv_pool_relu(params["conv2"], 2, "VALID"),
      *affine.perceptron(params["dense1"], params["dense2"]),
    ]
