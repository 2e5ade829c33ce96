"""Augmentations by name, one after the other, as `make_scan` takes them.

  scan = ro.make_scan(step, plan, augment=pipeline.augment(("crop", "flip")))
  scan = ro.make_scan(step, plan, mix=pipeline.mix(("cutmix",), num_classes=10, smoothing=0.1))

The draws of a name depend on its place among the names, and on the key of the example.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from robust_opt.data import augmentation, mixing, trivial
from robust_opt.types import Array

# Those that leave labels as they are, and those that mix two examples.
AUGMENTATIONS: dict[str, Callable[..., Array]] = {
  "flip": augmentation.flip,
  "crop": augmentation.crop,
  "cutout": augmentation.cutout,
  "trivial_augment": trivial.trivial_augment,
}
MIXTURES: dict[str, Callable[..., tuple[Array, Array]]] = {
  "mixup": mixing.mixup,
  "cutmix": mixing.cutmix,
}


def augment(names: Sequence[str]) -> Callable[[Array, Array], Array] | None:
  """(keys [B], images [B, H, W, C]) -> images, by those in AUGMENTATIONS; None if none is."""
  chosen = _chosen(names, AUGMENTATIONS)
  if not chosen:
    return None

  def apply(keys: Array, images: Array) -> Array:
    for place, function in chosen:
      images = function(_keys_at(place, keys), images, channel_axis=-1)
    return images

  return apply


def mix(
  names: Sequence[str], num_classes: int, smoothing: float = 0.0
) -> Callable[[Array, Array, Array], tuple[Array, Array]] | None:
  """(keys [B], images [B, H, W, C], classes [B]) -> (images, soft labels [B, num_classes]).

  By label smoothing and those of MIXTURES; None if there is neither, and labels remain classes.
  """
  chosen = _chosen(names, MIXTURES)
  if not chosen and not smoothing:
    return None

  def apply(keys: Array, images: Array, labels: Array) -> tuple[Array, Array]:
    labels = mixing.smoothed(labels, num_classes, smoothing)
    for place, function in chosen:
      images, labels = function(_keys_at(place, keys), images, labels)
    return images, labels

  return apply


def _chosen(names: Sequence[str], functions: dict[str, Any]) -> list[tuple[int, Any]]:
  return [(place, functions[name]) for place, name in enumerate(names) if name in functions]


def _keys_at(place: int, keys: Array) -> Array:
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, place)
