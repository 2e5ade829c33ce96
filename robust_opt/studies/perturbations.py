"""How often predictions change along perturbation sequences: flip rates, and their mean (mFR).

  result = run(Options({"workdir": "runs/cifar"}, "CIFAR-10-P", baseline=Path("other.json")))

  FR = mean over sequences and frames j of [f(x_j) != f(x_{j-1})]; for noise [f(x_j) != f(x_1)]
  mFR = mean over perturbations of FR / FR^baseline

Source: Hendrycks and Dietterich 2019 (arXiv 1903.12261), section 4.3. Options, the table and the
JSON file are as in `studies.corruptions`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from robust_opt import layout
from robust_opt.arrays import digest
from robust_opt.data import perturbations
from robust_opt.data.perturbations import BENCHMARK, Sequences
from robust_opt.errors import InputError
from robust_opt.evaluation.batches import default_batch_size, predictions
from robust_opt.evaluation.collection import pixels
from robust_opt.experiments import target
from robust_opt.precision import stated
from robust_opt.studies import corruptions
from robust_opt.studies.corruptions import Options
from robust_opt.types import LogitsFn

_READ = 200  # sequences at a time


def run(options: Options) -> dict[str, Any]:
  """Evaluates, writes, prints; returns what it wrote.

  Raises:
    InputError: the images do not fit the network, or the baseline is not of the same images.
  """
  path = corruptions.output_path(options)
  net = target.load(options.source, options.examples)
  sequences = perturbations.stored(Path(options.images).expanduser(), options.examples)
  first = sequences.frames(sequences.names[0], 0, 1)
  axis = layout.resolve(options.channel_axis, net.x.shape[1:])
  corruptions.check_shape(options.images, first[0], net, axis)
  identity = {"from": "sequences", "first_sha256": digest(first), "examples": sequences.size}
  baseline = None
  if options.baseline:
    of_baseline = options.baseline, "flip_rates", (), identity, sequences.names
    baseline = corruptions.read_baseline(*of_baseline)
  size = options.batch_size or default_batch_size(net.logits_fn, net.x, jax.local_device_count())
  rates = measure(net.logits_fn, sequences, size, axis, options.precision)
  averaged = corruptions.averaged(rates, BENCHMARK)
  result = {
    "net": net.name,
    "net_sha256": net.net_sha256,
    "precision": stated(options.precision),
    "images": identity,
    "flip_rates": rates,
    "mean_over": averaged,
    "mean_flip_rate": float(np.mean([rates[name] for name in averaged])),
  }
  if baseline is not None:
    relative = relative_rates(rates, baseline)
    mfr = float(np.mean([relative[name] for name in averaged]))
    result |= {"baseline": str(options.baseline), "relative_flip_rates": relative, "mfr": mfr}
  corruptions.publish(path, result, _table(result), _in_words(result))
  return result


def flip_rate(predicted: np.ndarray, *, noise: bool) -> float:
  """The share of frames whose prediction is another than that of the frame before, or of the first.

  Args:
    predicted: [N, T], the classes of T frames of N sequences.
    noise: whether the frames do not follow from each other, and are compared with the first.
  """
  before = predicted[:, :1] if noise else predicted[:, :-1]
  return float(np.mean(predicted[:, 1:] != before))


def measure(
  logits_fn: LogitsFn,
  sequences: Sequences,
  batch_size: int,
  channel_axis: layout.ChannelAxis = -1,
  precision: str | None = None,
) -> dict[str, float]:
  """The flip rate of each perturbation; arguments as of `corruptions.measure`."""

  def classes(name: str, start: int) -> np.ndarray:
    frames = pixels(sequences.frames(name, start, start + _READ))
    images = frames.reshape(-1, *frames.shape[2:])
    x = layout.from_last(images, layout.resolve(channel_axis, images.shape[1:]))
    predicted = predictions(logits_fn, np.ascontiguousarray(x), batch_size, precision=precision)
    return predicted.reshape(frames.shape[:2])

  def rate(name: str) -> float:
    parts = [classes(name, start) for start in range(0, sequences.size, _READ)]
    return flip_rate(np.concatenate(parts), noise="noise" in name)

  return {name: rate(name) for name in sequences.names}


def relative_rates(rates: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
  """Flip rates relative to the baseline's; an InputError where that never flips."""
  constant = [name for name in rates if not baseline[name]]
  if constant:
    raise InputError(f"The baseline never flips under {constant[0]}: it cannot normalize others.")
  return {name: rate / baseline[name] for name, rate in rates.items()}


def _table(result: Mapping[str, Any]) -> Table:
  title = f"{result['net']}: {result['images']['examples']:,} sequences, in %"
  table, relative = corruptions.new_table(title), result.get("relative_flip_rates", {})
  table.add_column("perturbation", no_wrap=True)
  for name in ("flip rate", *(["relative"] if relative else [])):
    table.add_column(name, justify="right", no_wrap=True)
  for name, rate in result["flip_rates"].items():
    values = [rate, *([relative[name]] if relative else [])]
    table.add_row(name, *(f"{100 * value:.2f}" for value in values))
  return table


def _in_words(result: Mapping[str, Any]) -> str:
  of = f"{len(result['mean_over'])} of the benchmark's {len(BENCHMARK)} perturbations"
  mean = f"Mean flip rate of {of}: {100 * result['mean_flip_rate']:.2f} %"
  if "mfr" in result:
    return f"{mean}; relative to {result['baseline']} (mFR): {100 * result['mfr']:.1f} %."
  return f"{mean}, not normalized by a baseline (--corruption_baseline)."
