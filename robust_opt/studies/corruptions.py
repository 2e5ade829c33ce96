"""The errors of a network on common corruptions, and the mean corruption error (mCE).

  result = run(Options({"workdir": "runs/cifar"}, "generate"))
  result = run(Options({"workdir": "runs/cifar"}, "CIFAR-10-C", baseline=Path("other.json")))

Prints a table, and writes the result as a JSON file, which may be the baseline of another network.

  CE_c = sum_s E_{s,c} / sum_s E^baseline_{s,c}          mCE = mean of CE_c over c

Source: Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions
and perturbations" (arXiv 1903.12261), section 4.2; their baseline is AlexNet.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.table import Table

from robust_opt import layout
from robust_opt.arrays import digest
from robust_opt.data import corruptions
from robust_opt.data.corruptions import BENCHMARK, SEVERITIES, Corrupted
from robust_opt.errors import InputError
from robust_opt.evaluation.batches import default_batch_size, predictions
from robust_opt.evaluation.collection import pixels
from robust_opt.experiments import metrics, target
from robust_opt.files import write_json
from robust_opt.layout import ChannelAxis
from robust_opt.precision import stated
from robust_opt.types import LogitsFn

GENERATE = "generate"

Errors = Mapping[str, Sequence[float]]  # corruption -> the error at each severity, in [0, 1]


class Options(NamedTuple):
  """What to evaluate, and on what."""

  source: dict[str, Any]  # as target.load takes it
  images: str  # GENERATE, from the test images; or a folder in the layout of CIFAR-10-C
  baseline: Path | None = None  # an earlier result, whose errors are those of 100 %
  examples: int = 0  # the first so many; 0: all
  seed: int = 0  # of the noise
  batch_size: int | None = None  # None: `batches.default_batch_size`
  channel_axis: ChannelAxis = layout.AUTO  # of one example
  output: Path | None = None  # a folder; None: `corruptions` within the run's work directory
  precision: str | None = None  # of float32 products; None: float32


def run(options: Options) -> dict[str, Any]:
  """Evaluates, writes, prints; returns what it wrote.

  Raises:
    InputError: the images do not fit the network, or the baseline is not of the same images.
  """
  path = output_path(options)
  net = target.load(options.source, options.examples)
  axis = layout.resolve(options.channel_axis, net.x.shape[1:])
  corrupted, images = _corrupted(options, net, axis)
  baseline = None
  if options.baseline:
    shape = (len(SEVERITIES),)
    baseline = read_baseline(options.baseline, "errors", shape, images, corrupted.names)
  size = options.batch_size or default_batch_size(net.logits_fn, net.x, jax.local_device_count())
  clean = predictions(net.logits_fn, net.x, size, precision=options.precision)
  errors = measure(net.logits_fn, corrupted, size, axis, options.precision)
  result = {
    "net": net.name,
    "net_sha256": net.net_sha256,
    "precision": stated(options.precision),
    "images": images,
    "clean_error": float(np.mean(clean != net.y)),
    "errors": errors,
    "mean_errors": {name: float(np.mean(of_name)) for name, of_name in errors.items()},
    "mean_over": averaged(errors),
    "mean_error": mean_error(errors),
  }
  if baseline is not None:
    ces = corruption_errors(errors, baseline)
    mce = float(np.mean([ces[name] for name in averaged(errors)]))
    result |= {"baseline": str(options.baseline), "corruption_errors": ces, "mce": mce}
  publish(path, result, _table(result), _in_words(result))
  return result


def publish(path: Path, result: dict[str, Any], table: Table, words: str) -> None:
  """Writes a result, and prints it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write_json(path, result)
  metrics.print_table(table)
  metrics.print_sentences(words)
  print(f"The result is in {path}")


def measure(
  logits_fn: LogitsFn,
  corrupted: Corrupted,
  batch_size: int,
  channel_axis: int | None = -1,
  precision: str | None = None,
) -> dict[str, list[float]]:
  """The error of a network at each severity of each corruption.

  Args:
    logits_fn: x [B, *S] in [0, 1] -> logits [B, C].
    corrupted: the images, with channels last.
    batch_size: images at a time.
    channel_axis: where the network has the channels of one image; None: nowhere, of gray ones.
    precision: of float32 products; None: float32.
  """

  def error(name: str, severity: int) -> float:
    images = pixels(corrupted.images(name, severity))
    x = layout.from_last(images, layout.resolve(channel_axis, images.shape[1:]))
    predicted = predictions(logits_fn, np.ascontiguousarray(x), batch_size, precision=precision)
    return float(np.mean(predicted != corrupted.labels))

  return {name: [error(name, severity) for severity in SEVERITIES] for name in corrupted.names}


def averaged(measured: Mapping[str, Any], benchmark: Sequence[str] = BENCHMARK) -> list[str]:
  """The corruptions of the mean: those of the benchmark that were measured, or else all."""
  return [name for name in benchmark if name in measured] or list(measured)


def mean_error(errors: Errors) -> float:
  """The mean of the errors over severities and `averaged` corruptions; not normalized."""
  return float(np.mean([errors[name] for name in averaged(errors)]))


def corruption_errors(errors: Errors, baseline: Errors) -> dict[str, float]:
  """CE of each corruption: 1 is the error of the baseline.

  Raises:
    InputError: the baseline makes no error under a corruption.
  """
  perfect = [name for name in errors if not sum(baseline[name])]
  if perfect:
    raise InputError(f"The baseline makes no error under {perfect[0]}: it cannot normalize others.")
  return {name: sum(of_name) / sum(baseline[name]) for name, of_name in errors.items()}


def _corrupted(
  options: Options, net: target.EvalTarget, axis: int | None
) -> tuple[Corrupted, dict[str, Any]]:
  """The images, and what they are, by which results are compared."""
  if options.images == GENERATE:
    identity = {"from": GENERATE, "seed": options.seed, "data_sha256": digest((net.x, net.y))}
    x = layout.to_last(net.x, axis)
    corrupted = corruptions.generated(x, net.y, jax.random.key(options.seed))
  else:
    folder = Path(options.images).expanduser()
    if not folder.is_dir():
      raise InputError(
        f"--corruptions must be {GENERATE}, or a folder in the layout of CIFAR-10-C, but was "
        f"{options.images!r}."
      )
    corrupted = corruptions.stored(folder, options.examples)
    identity = {"from": "files", "labels_sha256": digest(corrupted.labels)}
    first = corrupted.images(corrupted.names[0], 1)[:1]
    check_shape(options.images, first, net, axis)
  return corrupted, identity | {"examples": len(corrupted.labels)}


def check_shape(given: str, images: np.ndarray, net: target.EvalTarget, axis: int | None) -> None:
  """InputError unless images [B, H, W, C] of files are such as the network takes."""
  if layout.from_last(images, axis).shape[1:] != net.x.shape[1:]:
    raise InputError(
      f"--corruptions={given} has images {list(images.shape[1:])}, but {net.name} takes "
      f"{list(net.x.shape[1:])}."
    )


def read_baseline(
  path: Path, key: str, shape: tuple[int, ...], images: dict[str, Any], names: Sequence[str]
) -> dict[str, Any]:
  """By corruption what an earlier result on the same images has under `key`, of that shape.

  Raises:
    InputError: it cannot be read, lacks a corruption, or is of other images.
  """
  try:
    stored = json.loads(path.read_text(encoding="utf-8"))
    numbers = {name: np.asarray(stored[key][name], float).reshape(shape) for name in names}
  except KeyError as error:
    raise InputError(f"--corruption_baseline={path} has no {key} of {error}.") from error
  except (OSError, ValueError, TypeError) as error:
    message = f"--corruption_baseline={path} must be a JSON file of --corruptions ({error})."
    raise InputError(message) from error
  of_baseline = stored.get("images", images)  # errors of a paper do not say
  different = sorted(key for key in images if of_baseline.get(key) != images[key])
  if different:
    raise InputError(
      f"--corruption_baseline={path} is of other images than this evaluation: they differ in "
      f"{', '.join(different)}."
    )
  return {name: array.tolist() for name, array in numbers.items()}


def output_path(options: Options) -> Path:
  """GENERATE.json or FOLDER.json; within a run with the number of examples and other data."""
  if not (options.output or options.source.get("workdir")):
    raise InputError("--model and --data need --output, a folder for the results.")
  parts = [Path(options.images).expanduser().resolve().name]
  if options.output:
    return options.output / f"{parts[0]}.json"
  data = str(options.source.get("data", ""))
  parts += [Path(data.partition(":")[0].partition(",")[0]).stem] if data else []
  parts += [str(options.examples)] if options.examples else []
  return Path(options.source["workdir"]) / "corruptions" / f"{'_'.join(parts)}.json"


def new_table(title: str, caption: str | None = None) -> Table:
  """An empty table for the terminal."""
  left: dict[str, Any] = {"title_justify": "left", "caption_justify": "left", "pad_edge": False}
  return Table(title=title, caption=caption, box=box.SIMPLE_HEAD, **left)


def _table(result: Mapping[str, Any]) -> Table:
  title = f"{result['net']}: errors in %, {result['images']['examples']:,} images a severity"
  caption = f"clean images: {100 * result['clean_error']:.2f} %"
  table = new_table(title, caption)
  table.add_column("corruption", no_wrap=True)
  ces = result.get("corruption_errors", {})
  for name in (*map(str, SEVERITIES), "mean", *(["CE"] if ces else [])):
    table.add_column(name, justify="right", no_wrap=True)
  for name, errors in result["errors"].items():
    values = [*errors, result["mean_errors"][name], *([ces[name]] if ces else [])]
    table.add_row(name, *(f"{100 * value:.1f}" for value in values))
  return table


def _in_words(result: Mapping[str, Any]) -> str:
  """The mean, and what it is of."""
  count = len(result["mean_over"])
  of = f"{count} of the benchmark's {len(BENCHMARK)} corruptions"
  mean = f"Mean error over 5 severities of {of}: {100 * result['mean_error']:.2f} %"
  if "mce" in result:
    mce = 100 * result["mce"]
    return f"{mean}; mean corruption error relative to {result['baseline']}: {mce:.1f} %."
  return f"{mean}, not normalized by a baseline (--corruption_baseline)."
