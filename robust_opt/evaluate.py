r"""Measures how robust a trained network is, by AutoAttack and by checks on the measurement itself.

  python -m robust_opt.evaluate --workdir=runs/mnist_linf --norm=linf --radius=0.055

evaluates a run of robust_opt.main on its test set. Any function x [B, ...] -> logits [B, C] on any
data, an .npz file with x (pixels in [0, 1]) and y (labels):

  python -m robust_opt.evaluate --model=my_module:logits_fn --data=test.npz --norm=l2 --radius=0.5 \
      --output=runs/mine

Leaves verdict.npz, which `python -m robust_opt.verify` checks, and a summary in --output.
Killed, the same command goes on from the last batch that was done. Exit code 1: a check of the
trust report failed, and the accuracy should not be believed before it is understood.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding, PartitionSpec

from robust_opt import commands, layout
from robust_opt.errors import InputError, RunError
from robust_opt.evaluation import autoattack, identity, network, trust, verdict
from robust_opt.evaluation.collection import rounded
from robust_opt.experiments import target
from robust_opt.files import atomic_write, read_sealed, write_json, write_sealed
from robust_opt.layout import ChannelAxis
from robust_opt.studies.study import Study, sha256_of
from robust_opt.training import sharding

# Examples that the trust report looks at, at most, drawn by the seed.
TRUST_EXAMPLES = 200
# Seconds between two lines of progress where there is no terminal.
QUIET_SECONDS = 10.0


class Options(NamedTuple):
  """What to evaluate, and by what.

  Attributes:
    source: as subject.load takes it.
    norm: "linf", "l2" or "l1"; empty: what the run was trained against.
    radius: in pixels of [0, 1]; None: what the run was trained against.
    version: of the ensemble.
    examples: the first so many; 0: all.
    seed: of the attacks.
    batch_size: examples at a time.
    channel_axis: of one example, "auto" to guess it, or None if there is none.
    output: a folder; None: one within the run's work directory.
    trust: whether to check the measurement.
  """

  source: dict[str, Any]
  norm: str = ""
  radius: float | None = None
  version: str = "standard"
  examples: int = 0
  seed: int = 0
  batch_size: int = 100
  channel_axis: ChannelAxis = layout.AUTO
  output: Path | None = None
  trust: bool = True


def run(options: Options) -> bool:
  """Evaluates, writes, prints; returns whether no check of the measurement failed."""
  found = target.load(options.source, options.examples)
  norm = options.norm or found.norm
  radius = found.radius if options.radius is None else options.radius
  if norm is None or radius is None or (options.radius is None and norm != found.norm):
    raise InputError("State --norm and --radius, in pixels of [0, 1]: the run says neither itself.")
  x, y = autoattack.checked(found.logits_fn, found.x, found.y, norm, radius, options.batch_size)
  found = found._replace(x=x, y=y)
  # What is refused leaves no folder behind.
  autoattack.phases_of(options.version, found.logits_fn)
  network.checked_logits(found.logits_fn, network.as_argument(found.logits_fn, x), x)
  axis = layout.resolve(options.channel_axis, x.shape[1:])
  claim = verdict.Claim(
    norm=norm,
    radius=radius,
    version=options.version,
    seed=options.seed,
    batch_size=options.batch_size,
    source={**options.source, "examples": options.examples},
    net_sha256=found.net_sha256,
    data_sha256=verdict.data_sha256(found.x, found.y),
    device=f"{sharding.devices_in_words()}, jax {jax.__version__}",
  )
  folder = options.output or _folder(options, norm, radius)
  beside = ("source", "net_sha256", "device")
  description = {k: v for k, v in claim._asdict().items() if k not in beside}
  description["channel_axis"] = axis
  description["jax"] = jax.__version__  # one verdict is of one version
  description["net"] = {
    "name": found.name,
    **identity.of_net(found.logits_fn, found.x, found.definition),
  }
  # The trust report is on few examples: a quarter of the work or so.
  work, flag = 1.25 if options.trust else 1.0, "--output" if options.output else "--workdir"
  study = Study(folder, description, work, flag, identity.same)
  began = time.monotonic()
  try:
    path = folder / "verdict.npz"
    if not path.exists():
      verdict.save(path, _attack(found, claim, axis, study, folder), claim, found.x, found.y)
    stored = verdict.load(path)
    checks = _trust(found, stored, axis, study, options.trust)
  finally:
    study.close()
  in_8_bits = _accuracy_after_rounding(found, stored, options.batch_size)
  guess = layout.guess_in_words(options.channel_axis, x.shape[1:])
  draws = getattr(found.logits_fn, "num_draws", 0)  # of a nets.Randomized
  _write(folder, stored, checks, in_8_bits, guess, draws, time.monotonic() - began)
  print((folder / "summary.md").read_text(encoding="utf-8"))
  print(f"Everything about this evaluation is in {folder}")
  return not any(check.failed for check in checks)


def _folder(options: Options, norm: str, radius: float) -> Path:
  """Within the run; who evaluates a function of their own says where."""
  if not options.source.get("workdir"):
    raise InputError("--model and --data need --output, a folder for what is found.")
  count = f"_{options.examples}" if options.examples else ""
  name = f"{norm}_{radius:.6g}_{options.version}{count}"
  return Path(options.source["workdir"]) / "evaluations" / name


def _attack(
  found: target.Subject, claim: verdict.Claim, axis: int | None, study: Study, folder: Path
) -> autoattack.Verdict:
  """The ensemble on all devices, every finished batch kept in the folder."""
  refuse_batch_size(claim.batch_size, jax.device_count())
  mesh = sharding.data_mesh()
  split = NamedSharding(mesh, PartitionSpec(sharding.AXIS))
  net = sharding.replicate(found.logits_fn, mesh)
  return autoattack.autoattack(
    net,
    found.x,
    found.y,
    norm=claim.norm,
    radius=claim.radius,
    version=claim.version,
    seed=claim.seed,
    batch_size=claim.batch_size,
    channel_axis=axis,
    place=lambda array: jax.device_put(array, split),
    parts=_parts(folder / "parts"),
    report=_reporter(study),
  )


def _parts(folder: Path) -> autoattack.Parts:
  """One file a batch: whole or absent, and one that cannot be read is made again."""

  def load(name: str) -> Mapping[str, np.ndarray] | None:
    try:
      with read_sealed(folder / f"{name}.npz", "part") as arrays:
        return arrays
    except InputError:
      return None

  def save(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    write_sealed(folder / f"{name}.npz", arrays)

  return autoattack.Parts(load, save)


def _reporter(study: Study) -> Callable[[autoattack.Progress], None]:
  """The running robust accuracy, not at every batch."""
  last: dict[str, Any] = {"done": 0.0, "words": "", "when": -QUIET_SECONDS}

  def report(progress: autoattack.Progress) -> None:
    now = time.monotonic()
    if progress.words == last["words"] and now - last["when"] < QUIET_SECONDS:
      return
    share = 100 * progress.standing / progress.total
    words = f"{progress.words}: {share:.2f} % of {progress.total} stand"
    study.progress(progress.done - last["done"], words)
    last.update(done=progress.done, words=progress.words, when=now)

  return report


def _trust(
  found: target.Subject, stored: verdict.Stored, axis: int | None, study: Study, wanted: bool
) -> list[trust.Check]:
  """The checks, made once; where they are not wanted, those that were made before, or none."""
  path = study.workdir / "trust.json"
  if not (wanted or path.exists()):
    return []
  claim = stored.claim

  def compute() -> list[dict[str, Any]]:
    checks = trust.report(
      found.logits_fn,
      found.x,
      found.y,
      norm=claim.norm,
      radius=claim.radius,
      seed=claim.seed,
      batch_size=claim.batch_size,
      channel_axis=axis,
      examples=TRUST_EXAMPLES,
      verdict=stored.verdict,
      progress=lambda part: study.progress(0.25 / len(trust.PARTS), f"trust report: {part}"),
    )
    return [check._asdict() for check in checks]

  made_from = sha256_of(claim.net_sha256, claim.data_sha256)
  made = study.once("trust report", path, made_from, compute, work=0.0)
  return [trust.Check(**values) for values in made]


def _accuracy_after_rounding(
  found: target.Subject, stored: verdict.Stored, batch_size: int
) -> float:
  """What would be measured if the adversarial images were kept as 8-bit files: too much."""
  images, labels = rounded(stored.verdict.images), stored.labels[stored.broken_ids]
  undone = autoattack.predictions(found.logits_fn, images, batch_size) == labels
  return stored.robust_accuracy + float(np.sum(undone)) / len(stored.labels)


def _write(
  folder: Path,
  stored: verdict.Stored,
  checks: list[trust.Check],
  accuracy_after_rounding: float,
  guess: str,
  draws: int,
  seconds: float,
) -> None:
  claim, outcome = stored.claim, stored.verdict
  total = len(outcome.broken_by)
  left = total
  rows: list[dict[str, Any]] = []
  for place, name in enumerate(outcome.names):
    broke = int(np.sum(outcome.broken_by == place))
    left -= broke
    rows.append({"after": name, "broke": broke, "standing": left, "accuracy": left / total})
  summary = {
    "claim": claim._asdict(),
    "total": total,
    "draws": draws,
    "clean_accuracy": outcome.clean_accuracy,
    "robust_accuracy": stored.robust_accuracy,
    "accuracy_after_rounding": accuracy_after_rounding,
    "attacks": rows,
    "trust": [check._asdict() for check in checks],
    "seconds_since_last_start": round(seconds, 1),
  }
  write_json(folder / "summary.json", summary)
  version = claim.version + (f" ({draws} draws an answer)" if draws else "")
  lines = [
    f"# {claim.norm}, radius {claim.radius:.6g}, {version}, {total} examples",
    "",
    "| after | broken by it | standing | accuracy |",
    "|---|---|---|---|",
  ]
  lines += [
    f"| {row['after']} | {row['broke']} | {row['standing']} | {100 * row['accuracy']:.2f} % |"
    for row in rows
  ]
  lines += [
    "",
    f"The adversarial images, rounded to 8 bits, leave {100 * accuracy_after_rounding:.2f} %.",
  ]
  if guess:
    lines += ["", f"Layout: {guess}; `--channel_axis` states it."]
  if checks:
    lines += ["", trust.to_markdown(checks).strip()]
  with atomic_write(folder / "summary.md") as file:
    file.write(("\n".join(lines) + "\n").encode())


def refuse_batch_size(batch_size: int, devices: int) -> None:
  """Refuses what cannot be split over the devices, since its eighth, too, must be."""
  if devices > 1 and batch_size % (8 * devices):
    raise InputError(
      f"--batch_size must be a multiple of 8 x {devices} devices, but was {batch_size}."
    )


def usual_batch_size(devices: int) -> int:
  """100, or the next number whose eighth, too, can be split over the devices."""
  unit = 8 * devices if devices > 1 else 1
  return -(-100 // unit) * unit


def main(argv: list[str]) -> None:
  """Flags to options."""
  given = flags.FLAGS
  commands.refuse_positional(argv)
  passed = run(
    Options(
      source=commands.source(),
      norm=given.norm or "",
      radius=given.radius,
      version=given.version,
      examples=given.examples,
      seed=given.seed,
      batch_size=given.batch_size or usual_batch_size(jax.device_count()),
      channel_axis=_channel_axis(given.channel_axis),
      output=Path(given.output) if given.output else None,
      trust=given.trust,
    )
  )
  if not passed:
    raise RunError("A check of the trust report failed: see the table above.")


def _channel_axis(given: str) -> ChannelAxis:
  if given in (layout.AUTO, "none"):
    return layout.AUTO if given == layout.AUTO else None
  try:
    return int(given)
  except ValueError:
    raise InputError(f"--channel_axis must be auto, none or an integer, but was {given}.") from None


def define_flags() -> None:
  """Only where this file is the program, so that importing it defines none."""
  commands.define_source_flags()
  flags.DEFINE_enum("norm", None, list(autoattack.NORMS), "Of the ball; not given: the run's own.")
  flags.DEFINE_float("radius", None, "Of the ball, in pixels of [0, 1]; by default the run's own.")
  words = "Of the ensemble; rand: for a --model that answers at random, with --draws."
  flags.DEFINE_enum("version", "standard", list(autoattack.VERSIONS), words)
  flags.DEFINE_integer("examples", 0, "Use only the first so many; 0: all.", lower_bound=0)
  flags.DEFINE_integer("seed", 0, "Of the attacks.", lower_bound=0)
  words = "Examples at a time; by default 100, or a little more where devices divide them."
  flags.DEFINE_integer("batch_size", None, words, lower_bound=1)
  words = "Of one example: auto guesses it, none, or a number, 0 for [C, H, W]."
  flags.DEFINE_string("channel_axis", layout.AUTO, words)
  flags.DEFINE_string("output", "", "Folder for what is found; by default within --workdir.")
  flags.DEFINE_boolean("trust", True, "Whether to check the measurement itself.")


if __name__ == "__main__":
  define_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
