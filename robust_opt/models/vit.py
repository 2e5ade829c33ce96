"""Vision transformers (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929).

  net = models.ViT(1000)                                      # ViT-S/16, for images of 224 x 224
  net = models.ViT(10, patch=4, dim=192, heads=3)             # ViT-Ti/4, for images of 32 x 32

The positional embeddings fit images of one size. Attention has no list of layers (models.affine).
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.models.layers import Conv, Standardize, full
from robust_opt.types import Array

_init = nn.initializers.truncated_normal(0.02)


class ViT(nn.Module):
  """Blocks of attention over patches and a class token: [B, H, W, C] -> [B, num_classes]."""

  num_classes: int = 10
  mean: float | Sequence[float] = 0.0
  std: float | Sequence[float] = 1.0
  patch: int = 16  # height and width of a patch, which those of the images are multiples of
  dim: int = 384  # of a token
  depth: int = 12  # blocks
  heads: int = 6  # of the attention
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """`train` has no effect."""
    if x.shape[1] % self.patch or x.shape[2] % self.patch or self.dim % self.heads:
      raise InputError(
        f"A ViT needs images whose sides are multiples of patch={self.patch}, but they are "
        f"{x.shape[1]} x {x.shape[2]}, and dim={self.dim} to be a multiple of heads={self.heads}."
      )
    x, size = Standardize(self.mean, self.std)(x), (self.patch, self.patch)
    conv = Conv(self.dim, size, 0, strides=size, dtype=self.dtype, name="patch_embed_proj")
    tokens = conv(x).reshape(x.shape[0], -1, self.dim)
    first = self.param("cls_token", nn.initializers.zeros, (1, 1, self.dim))
    first = jnp.broadcast_to(first.astype(self.dtype), (x.shape[0], 1, self.dim))
    tokens = jnp.concatenate([first, tokens], axis=1)
    position = self.param("pos_embed", _init, (1, tokens.shape[1], self.dim))
    tokens += position.astype(self.dtype)
    for i in range(self.depth):
      tokens = _Block(self.heads, self.dtype, name=f"blocks_{i}")(tokens)
    tokens = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(tokens)
    head = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
    return head(tokens[:, 0]).astype(jnp.float32)

  def torch_name(self, name: str) -> str:
    """The PyTorch module of one of ours, by timm's names."""
    name = re.sub(r"^blocks_(\d+)_", r"blocks.\1.", name)
    return re.sub(r"\b(patch_embed|attn|mlp)_", r"\1.", name)


class _Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)): [B, N, D] -> [B, N, D]."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_init)
    norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
    batch, count, dim = x.shape
    qkv = dense(3 * dim, name="attn_qkv")(norm(name="norm1")(x))
    q, k, v = jnp.moveaxis(qkv.reshape(batch, count, 3, self.heads, -1), 2, 0)
    scores = full(jnp.einsum("bihd,bjhd->bhij", q, k)) / (dim // self.heads) ** 0.5
    mixed = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores).astype(v.dtype), v)
    x += dense(dim, name="attn_proj")(mixed.reshape(batch, count, dim))
    hidden = dense(4 * dim, name="mlp_fc1")(norm(name="norm2")(x))
    return x + dense(dim, name="mlp_fc2")(nn.gelu(hidden, approximate=False))
