"""What to evaluate, and over which set.

options = Options({"workdir": "runs/mnist_linf"}, norm="linf", radius=0.1, mask="region.npy")
config = set_config(options, net.set)     # for `sets.build.build_set`, after `of_labels`
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from robust_opt import layout
from robust_opt.errors import InputError
from robust_opt.evaluation import verdict
from robust_opt.layout import ChannelAxis
from robust_opt.sets import BALLS
from robust_opt.sets.examples import CLASS_RADII
from robust_opt.sets.radii import with_numbers


class Options(NamedTuple):
  """What to evaluate, and how.

  Without a set the ball of norm and radius in [0, 1] is; without these either, the set of the run's
  training, a ball cut to [0, 1].
  """

  source: dict[str, Any]  # as target.load takes it
  set: dict[str, Any] | None = None  # as `sets.build.build_set` takes it
  mask: str = ""  # an array in a .npy file, bool, where pixels may change; empty: everywhere
  norm: str = ""  # "linf", "l2" or "l1"; empty: that of the run's training
  radius: float | None = None  # in pixels of [0, 1]; None: that of the run's training
  class_radii: tuple[float, ...] = ()  # in place of the radius, one for each class
  version: str = "standard"  # of the ensemble
  share: float | None = None  # of the version "adaptive", as for `autoattack`; None: its default
  examples: int = 0  # the first so many; 0: all
  seed: int = 0  # of the attacks
  batch_size: int | None = None  # examples at a time; None: `batches.default_batch_size`
  channel_axis: ChannelAxis = layout.AUTO  # of one example, or None if there is none
  output: Path | None = None  # a folder; None: one within the run's work directory
  trust: bool = True  # whether to check the measurement
  certify: str = ""  # the method of proofs beside the attacks, as for `ro.certify`; empty: none
  precision: str | None = None  # of float32 products, as for `autoattack`; None: float32
  search_precision: str | None = None  # of those in the attacks; None: the same
  target: str = ""  # a class or one of `targets.RULES`; empty: any wrong prediction counts
  submission: str = ""  # DATASET/THREAT_MODEL/NAME: write what RobustBench asks for; empty: do not


def set_config(options: Options, trained: dict[str, Any] | None) -> dict[str, Any]:
  """The config of the set of the options, or of the one that the run was trained over.

  Raises:
    InputError: the options contradict each other, or name no set.
  """
  return _masked(_unmasked(options, trained or {}), options.mask)


def _unmasked(options: Options, trained: dict[str, Any]) -> dict[str, Any]:
  of_ball = bool(options.norm) or options.radius is not None or bool(options.class_radii)
  if options.set is not None:
    if of_ball:
      raise InputError(
        "Give either --set or --threats, or a ball by --norm, --radius and --class_radii."
      )
    return with_numbers(options.set)
  trained_norm = {ball.__name__: norm for norm, ball in BALLS.items()}.get(trained.get("name", ""))
  if trained and trained_norm is None and not of_ball:
    return json.loads(json.dumps(trained))  # tuples as lists, as files have them
  norm, radius = options.norm or trained_norm, options.radius
  if options.class_radii:
    if radius is not None:
      raise InputError("Give either --radius or --class_radii, not both.")
    if norm is None:
      raise InputError("Give --norm with --class_radii: the run was not trained over a ball.")
    of_one = verdict.ball_config(norm, 0.0)
    return {"name": of_one["name"], CLASS_RADII: list(options.class_radii), "box": of_one["box"]}
  if radius is None and norm == trained_norm:
    radius = trained.get("radius")
  if norm is None or radius is None:
    raise InputError(
      "Give --norm and --radius, in pixels of [0, 1], or --set: the run has no radius in that norm."
    )
  return verdict.ball_config(norm, radius)


def _masked(config: dict[str, Any], mask: str) -> dict[str, Any]:
  """The config of the set, or of each set of a union, within the mask of that file."""
  if not mask:
    return config
  if not mask.endswith(".npy"):
    raise InputError(
      f"--mask must be a .npy file of bool, True where pixels may change, not {mask}."
    )
  if config["name"] == "Union":
    return {**config, "sets": [_masked(part, mask) for part in config["sets"]]}
  if config["name"] == "Transforms":
    raise InputError("--mask has no meaning for rotations and translations: leave one of them out.")
  return {"name": "Masked", "u": config, "mask": mask}


def set_in_words(options: Options) -> str:
  """What names the set, in messages."""
  if options.set is not None:
    return f"--set={json.dumps(options.set)}"
  if options.class_radii:
    return f"--class_radii={','.join(f'{radius:g}' for radius in options.class_radii)}"
  return "The set of the training" if options.radius is None else f"--radius={options.radius:g}"
