"""Data sets of only robust or only non-robust features, for any network and data.

  images = inverted(features_fn, x, start)          # looks like start, has the representation of x
  images = towards(logits_fn, x, targets)           # looks like x, is classified as its target
  dataset = load(Path("runs/d_rand"))               # written by robust_opt.construct

|  kind           |  an image                             |  its label   |  in the paper         |
|  inverted       |  another image, changed until the     |  that of x   |  D_R (robust net),    |
|                 |  network represents it like x         |              |  D_NR (standard net)  |
|  random         |  x, perturbed toward a random class   |  that class  |  D_rand               |
|  deterministic  |  x, perturbed toward the next class   |  that class  |  D_det                |

Source: Ilyas, Santurkar, Tsipras, Engstrom, Tran and Madry 2019, "Adversarial examples are not
bugs, they are features" (arXiv 1905.02175), sections 3.1 and 3.2.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses, maximizers
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.files import read_sealed, write_sealed
from robust_opt.sets import L2
from robust_opt.types import Array, LogitsFn

FeaturesFn = Callable[[Array], Array]  # x [B, *S] -> representation [B, F]

KINDS = ("inverted", "random", "deterministic")
BOX = (0.0, 1.0)


class Settings(NamedTuple):
  """Radius and steps; the defaults are the paper's for CIFAR-10."""

  radius: float = 0.5  # l_2, in pixels of [0, 1], of `random` and `deterministic`
  num_steps: int = 100  # gradient steps for an image
  step: float = 0.1  # l_2, of each step


TARGETED = Settings()
INVERSION = Settings(radius=0.0, num_steps=1000, step=0.1)


def inverted(
  features_fn: FeaturesFn, x: Array, start: Array, settings: Settings = INVERSION
) -> Array:
  """Images with nearly the representation of x, [B, *S] in [0, 1].

    minimize over z in the pixel box |g(z) - g(x)|_2 by normalized gradient steps from z = start

  Source: section 3.1, equation 6. features_fn is g; x and start are [B, *S] in [0, 1]. The radius
  of the settings is not used.
  """
  target = jax.lax.stop_gradient(features_fn(x))

  def nearness(z: Array) -> Array:
    return -jnp.sum((features_fn(z) - target) ** 2)

  def approach(z: Array, _: None) -> tuple[Array, None]:
    move = L2(settings.step).steepest_ascent(jax.grad(nearness)(z), z)
    return jnp.clip(z + move, *BOX), None

  z, _ = jax.lax.scan(approach, start, length=settings.num_steps)
  return z


def towards(logits_fn: LogitsFn, x: Array, targets: Array, settings: Settings = TARGETED) -> Array:
  """x perturbed within an l_2 ball and the pixel box toward other classes.

    minimize over |x' - x|_2 <= radius the cross-entropy J(x', target) by PGD from x

  Source: section 3.2, equation 7. x is [B, *S] in [0, 1], targets [B].
  """

  def value_fn(x: Array) -> Array:
    return -losses.cross_entropy(logits_fn(x), targets)

  maximizer = maximizers.pgd(L2(settings.radius, BOX), L2(settings.step), random_start=False)
  delta, _ = maximizers.ascend(maximizer, settings.num_steps)(value_fn, None, x)
  return jnp.clip(x + delta, *BOX)


def random_targets(keys: Array, num_classes: int) -> Array:
  """A class for every key [B], uniform over all classes: [B], int32."""
  return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(keys)


def next_class(y: Array, num_classes: int) -> Array:
  """(y + 1) mod C, [B]."""
  return (y + 1) % num_classes


def other_ids(keys: Array, ids: Array, count: int) -> Array:
  """For each key [B] an index in [0, count) other than ids [B], uniform among the others."""
  if count < 2:
    raise InputError(f"To start from another image there must be at least 2, but were {count}.")
  drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, count - 1))(keys)
  return drawn + (drawn >= ids)


class Shard(NamedTuple):
  """A part of a constructed data set, of n examples."""

  images: np.ndarray  # [n, *S] float32 in [0, 1]
  labels: np.ndarray  # [n] int32, to train on
  ids: np.ndarray  # [n] int32, the indices of the source images in the original set
  original_labels: np.ndarray  # [n] int32, the labels in the original set


def write_shard(path: Path, shard: Shard) -> None:
  """Writes an .npz that loads without pickle, atomically."""
  write_sealed(path, shard._asdict())


def read_shard(path: Path) -> Shard:
  """Reads a shard; an InputError if the file is absent, damaged or changed."""
  with read_sealed(path, "shard of a constructed data set") as arrays:
    return Shard(**arrays)


def load(folder: Path) -> datasets.Dataset:
  """A constructed data set, in the order of the original.

  Raises:
    InputError: it is missing or unfinished, or one of its files is damaged.
  """
  card = read_card(folder)
  shards = [read_shard(folder / name) for name in card["files"]]
  images, labels, _, _ = map(np.concatenate, zip(*shards))
  return datasets.from_arrays(images, labels, card["num_classes"], card["name"], channel_axis=-1)


def read_card(folder: Path) -> dict[str, Any]:
  """The card of a finished constructed data set; an InputError if it is missing or damaged."""
  try:
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    message = f"{folder} holds no finished data set of robust_opt.construct ({error})."
    raise InputError(message) from error
