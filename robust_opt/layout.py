"""The channel axis of examples, for operations on neighboring pixels.

  axis = layout.resolve("auto", (1, 28, 28))          # 0, as in PyTorch
  last = layout.to_last(images, axis)                 # [B, 1, 28, 28] -> [B, 28, 28, 1]
  layout.from_last(last, axis)                        # and back

Axes are those of one example, without the batch: 0 for [C, H, W], -1 for [H, W, C].
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from robust_opt.errors import InputError

AUTO: Literal["auto"] = "auto"
CHANNEL_SIZES = (1, 3, 4)  # gray, RGB, RGBA

# An axis of one example, None if there is no channel axis, or "auto": see `resolve`.
ChannelAxis = int | Literal["auto"] | None

AnyArray = TypeVar("AnyArray", bound=Any)  # of NumPy or JAX


def resolve(channel_axis: ChannelAxis, shape: Sequence[int]) -> int | None:
  """The channel axis of examples of a shape, in [0, len(shape)), or None if there is none.

  "auto" is the axis of size 1, 3 or 4, if exactly one of at least two axes has such a size.
  Otherwise it is the last of three or more axes, and None for one or two: 2 for (28, 28, 1) and 0
  for (1, 28, 28), but also 2 for (2, 32, 32), where channel_axis=0 must be given.

  Raises:
    InputError: channel_axis is not "auto", None, or an axis of one example.
  """
  ndim = len(shape)
  if channel_axis is None:
    return None
  if channel_axis == AUTO:
    candidates = [axis for axis, size in enumerate(shape) if size in CHANNEL_SIZES]
    if len(candidates) == 1 and ndim > 1:
      return candidates[0]
    return ndim - 1 if ndim > 2 else None
  if not isinstance(channel_axis, int | np.integer) or channel_axis not in range(-ndim, ndim):
    raise InputError(
      f"channel_axis must be 'auto', None or an axis of one example of shape {tuple(shape)}, from "
      f"{-ndim} to {ndim - 1}, but was {channel_axis!r}."
    )
  return int(channel_axis) % ndim


def describe_guess(channel_axis: ChannelAxis, shape: Sequence[int]) -> str:
  """Describes a guessed channel axis other than the last one; otherwise empty."""
  axis = resolve(channel_axis, shape)
  if channel_axis != AUTO or axis in (None, len(shape) - 1):
    return ""
  return f"channels guessed to be axis {axis} of examples of shape {tuple(shape)}"


def to_last(x: AnyArray, axis: int | None) -> AnyArray:
  """[B, *S] -> [B, *W, C]: moves the resolved axis to the end; None appends an axis of size 1."""
  # np.moveaxis returns an array of JAX for one of JAX: it uses the array's own transpose.
  return x[..., None] if axis is None else np.moveaxis(x, axis + 1, -1)


def from_last(x: AnyArray, axis: int | None) -> AnyArray:
  """[B, *W, C] -> [B, *S], the inverse of `to_last`."""
  return x[..., 0] if axis is None else np.moveaxis(x, -1, axis + 1)
