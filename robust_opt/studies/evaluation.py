"""An evaluation in a folder: AutoAttack, its verdict, the trust report; resumable.

  passed = run(Options({"workdir": "runs/mnist_linf"}, set=ball_config("linf", 0.055)))

The folder holds verdict.npz, which `python -m robust_opt.verify` checks, summary.json and
summary.md, trust.json, costs.json with the seconds and images of each attack, and below parts/ the
finished batches, from which a killed run resumes.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from robust_opt import layout
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, identity, network, trust, verdict
from robust_opt.evaluation.batches import default_batch_size, predictions
from robust_opt.evaluation.collection import rounded
from robust_opt.evaluation.inputs import check_examples, check_set
from robust_opt.evaluation.phases import phases_of
from robust_opt.experiments import target
from robust_opt.files import atomic_write, read_sealed, write_json, write_sealed
from robust_opt.layout import ChannelAxis
from robust_opt.precision import products, stated
from robust_opt.sets import BALLS, Ball, check_ball
from robust_opt.sets.build import build_set, config_sha256
from robust_opt.studies.study import Study, sha256_of
from robust_opt.training import sharding

TRUST_EXAMPLES = 200  # of the trust report, at most, drawn by the seed
TRUST_BATCH = 256  # of its batches, at most
COSTS = "costs.json"
QUIET_SECONDS = 10.0  # between two lines of progress without a terminal


class Options(NamedTuple):
  """What to evaluate, and how.

  Attributes:
    source: as target.load takes it.
    set: the uncertainty set, as `sets.build.build_set` takes it; None: the ball of `norm` and
      `radius` in [0, 1].
    norm: "linf", "l2" or "l1"; empty: that of the run's training.
    radius: in pixels of [0, 1]; None: that of the run's training. Without a norm either, the set is
      that of the run's training, a ball cut to [0, 1].
    version: of the ensemble.
    examples: the first so many; 0: all.
    seed: of the attacks.
    batch_size: examples at a time; None: `batches.default_batch_size`.
    channel_axis: of one example, "auto" to guess it, or None if there is none.
    output: a folder; None: one within the run's work directory.
    trust: whether to check the measurement.
    precision: of float32 products, as for `autoattack`; None: float32.
    search_precision: of those in the attacks; None: the same.
  """

  source: dict[str, Any]
  set: dict[str, Any] | None = None
  norm: str = ""
  radius: float | None = None
  version: str = "standard"
  examples: int = 0
  seed: int = 0
  batch_size: int | None = None
  channel_axis: ChannelAxis = layout.AUTO
  output: Path | None = None
  trust: bool = True
  precision: str | None = None
  search_precision: str | None = None


def run(options: Options) -> bool:
  """Evaluates, writes, prints; returns whether no check of the measurement failed."""
  net = target.load(options.source, options.examples)
  set_config = _set_config(options, net)
  u = build_set(set_config)
  check_set(u)
  x, y = check_examples(net.logits_fn, net.x, net.y, u, options.batch_size or 1)
  net = net._replace(x=x, y=y)
  batch_size = options.batch_size or default_batch_size(net.logits_fn, x, jax.device_count())
  precision = stated(options.precision)
  # Everything that may be refused, before a folder is made.
  phases_of(options.version, net.logits_fn, u)
  network.checked_logits(net.logits_fn, network.as_argument(net.logits_fn, x), x)
  axis = layout.resolve(options.channel_axis, x.shape[1:])
  claim = verdict.Claim(
    set=set_config,
    version=options.version,
    seed=options.seed,
    batch_size=batch_size,
    source={**options.source, "examples": options.examples},
    net_sha256=net.net_sha256,
    data_sha256=verdict.data_sha256(x, y),
    device=f"{sharding.devices_in_words()}, jax {jax.__version__}",
    set_sha256=config_sha256(set_config),
    precision=precision,
    search_precision=stated(options.search_precision or precision),
  )
  folder = options.output or _folder(options, claim)
  with_trust = options.trust and isinstance(u, Ball)
  study = _study(folder, claim, net, axis, with_trust, bool(options.output))
  began = time.monotonic()
  try:
    path = folder / "verdict.npz"
    if not path.exists():
      verdict.save(path, _attack(net, claim, axis, study, folder), claim, x, y)
    stored = verdict.load(path)
    checks = _trust(net, stored, axis, study, with_trust)
  finally:
    study.close()
  after_rounding = _accuracy_after_rounding(net, stored)
  guess = layout.describe_guess(options.channel_axis, x.shape[1:])
  draws = getattr(net.logits_fn, "num_draws", 0)  # of a ro.Randomized
  _write(folder, stored, checks, after_rounding, guess, draws, time.monotonic() - began)
  print((folder / "summary.md").read_text(encoding="utf-8"))
  print(f"Everything about this evaluation is in {folder}")
  return not any(check.failed for check in checks)


def _set_config(options: Options, net: target.EvalTarget) -> dict[str, Any]:
  """The set of the options, or the one that the run was trained over."""
  if options.set is not None:
    if options.norm or options.radius is not None:
      raise InputError("Give either --set, or --norm and --radius, not both.")
    return options.set
  trained = net.set or {}
  trained_norm = next((n for n, b in BALLS.items() if b.__name__ == trained.get("name")), None)
  if trained and trained_norm is None and not options.norm and options.radius is None:
    return json.loads(json.dumps(trained))  # tuples as lists, as files have them
  norm = options.norm or trained_norm
  radius = options.radius
  if radius is None and norm == trained_norm:
    radius = trained.get("radius")
  if norm is None or radius is None:
    raise InputError(
      "Give --norm and --radius, in pixels of [0, 1], or --set: the run has no radius in that norm."
    )
  return verdict.ball_config(norm, radius)


def _folder(options: Options, claim: verdict.Claim) -> Path:
  """Within the run; for a function of the user's own, --output names the folder."""
  if not options.source.get("workdir"):
    raise InputError("--model and --data need --output, a folder for the results.")
  count = f"_{options.examples}" if options.examples else ""
  radius = "" if math.isnan(claim.radius) else f"_{claim.radius:.6g}"
  name = f"{claim.norm}{radius}_{options.version}{count}"
  return Path(options.source["workdir"]) / "evaluations" / name


def _study(
  folder: Path,
  claim: verdict.Claim,
  net: target.EvalTarget,
  axis: int | None,
  trust: bool,
  own: bool,
) -> Study:
  elsewhere = ("source", "net_sha256", "device")
  description = {k: v for k, v in claim._asdict().items() if k not in elsewhere}
  description["channel_axis"] = axis
  description["jax"] = jax.__version__  # a verdict belongs to one version
  description["net"] = {
    "name": net.name,
    **identity.of_net(net.logits_fn, net.x, net.definition),
  }
  # The trust report, on few examples, is about a quarter of the work.
  work, flag = 1.25 if trust else 1.0, "--output" if own else "--workdir"
  return Study(folder, description, work, flag, identity.same)


def _attack(
  net: target.EvalTarget, claim: verdict.Claim, axis: int | None, study: Study, folder: Path
) -> autoattack.Verdict:
  """The ensemble on all devices; every finished batch and the costs are kept in the folder."""
  check_batch_size(claim.batch_size, jax.device_count())
  mesh = sharding.data_mesh()
  split = NamedSharding(mesh, PartitionSpec(sharding.AXIS))
  costs: dict[str, autoattack.Cost] = {}
  in_words = _reporter(study)

  def report(progress: autoattack.Progress) -> None:
    costs[progress.attack] = costs.get(progress.attack, autoattack.Cost()) + progress.cost
    in_words(progress)

  found = autoattack.autoattack(
    sharding.replicate(net.logits_fn, mesh),
    net.x,
    net.y,
    claim.u,
    version=claim.version,
    seed=claim.seed,
    batch_size=claim.batch_size,
    channel_axis=axis,
    precision=claim.precision,
    search_precision=claim.search_precision,
    put=lambda array: jax.device_put(array, split),
    cache=_resume_cache(folder / "parts"),
    report=report,
  )
  write_json(folder / COSTS, {name: cost._asdict() for name, cost in costs.items()})
  return found


def _resume_cache(folder: Path) -> autoattack.ResumeCache:
  """One file per batch, complete or absent; a file that cannot be read is computed again."""

  def load(name: str) -> Mapping[str, np.ndarray] | None:
    try:
      with read_sealed(folder / f"{name}.npz", "part") as arrays:
        return arrays
    except InputError:
      return None

  def save(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    write_sealed(folder / f"{name}.npz", arrays)

  return autoattack.ResumeCache(load, save)


def _reporter(study: Study) -> Callable[[autoattack.Progress], None]:
  """Reports the robust accuracy so far, at each new attack and every few seconds."""
  last: dict[str, Any] = {"done": 0.0, "attack": "", "time": -QUIET_SECONDS}

  def report(progress: autoattack.Progress) -> None:
    now = time.monotonic()
    target = "" if progress.target is None else f", target {progress.target + 1}"
    attack = f"{progress.attack}{target}"
    if attack == last["attack"] and now - last["time"] < QUIET_SECONDS:
      return
    share = 100 * progress.remaining / progress.total
    words = f"{attack}: {share:.2f} % of {progress.total} remain correctly classified"
    study.progress(progress.done - last["done"], words)
    last.update(done=progress.done, attack=attack, time=now)

  return report


def _trust(
  net: target.EvalTarget,
  stored: verdict.StoredVerdict,
  axis: int | None,
  study: Study,
  with_trust: bool,
) -> list[trust.Check]:
  """The checks, computed once; without them, those of an earlier run, or none."""
  path = study.workdir / "trust.json"
  if not (with_trust or path.exists()):
    return []
  claim = stored.claim
  u = check_ball(claim.u, "The trust report")

  def compute() -> list[dict[str, Any]]:
    with products(claim.precision):
      checks = trust.report(
        net.logits_fn,
        net.x,
        net.y,
        u,
        seed=claim.seed,
        batch_size=min(claim.batch_size, TRUST_BATCH),
        channel_axis=axis,
        examples=TRUST_EXAMPLES,
        verdict=stored.verdict,
        progress=lambda part: study.progress(0.25 / len(trust.PARTS), f"trust report: {part}"),
      )
    return [check._asdict() for check in checks]

  made_from = sha256_of(claim.net_sha256, claim.data_sha256)
  checks = study.once("trust report", path, made_from, compute, work=0.0)
  return [trust.Check(**values) for values in checks]


def _accuracy_after_rounding(net: target.EvalTarget, stored: verdict.StoredVerdict) -> float:
  """The accuracy if the adversarial images were stored in 8 bits: an overestimate."""
  images, labels = rounded(stored.verdict.images), stored.labels[stored.broken_ids]
  size, precision = stored.claim.batch_size, stored.claim.precision
  undone = predictions(net.logits_fn, images, size, precision=precision) == labels
  return stored.robust_accuracy + float(np.sum(undone)) / len(stored.labels)


def _write(
  folder: Path,
  stored: verdict.StoredVerdict,
  checks: list[trust.Check],
  accuracy_after_rounding: float,
  guess: str,
  draws: int,
  seconds: float,
) -> None:
  claim, outcome = stored.claim, stored.verdict
  total = remaining = len(outcome.broken_by)
  rows: list[dict[str, Any]] = []
  for index, name in enumerate(outcome.names):
    broken = int(np.sum(outcome.broken_by == index))
    remaining -= broken
    rows.append(
      {"after": name, "broke": broken, "standing": remaining, "accuracy": remaining / total}
    )
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
  costs = read_costs(folder)
  if costs:
    summary["costs"] = {name: cost._asdict() for name, cost in costs.items()}
  write_json(folder / "summary.json", summary)
  version = claim.version + (f" ({draws} draws per prediction)" if draws else "")
  radius = "" if math.isnan(claim.radius) else f", radius {claim.radius:.6g}"
  lines = [
    f"# {claim.norm}{radius}, {version}, {total} examples",
    "",
    "| after | broken by it | remaining | accuracy |",
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
  lines += ["", *_cost_table(costs)] if costs else []
  if guess:
    lines += ["", f"Layout: {guess}; `--channel_axis` states it."]
  if checks:
    lines += ["", trust.to_markdown(checks).strip()]
  elif not isinstance(claim.u, Ball):
    lines += ["", "The trust report takes balls of a norm only, and was not made."]
  with atomic_write(folder / "summary.md") as file:
    file.write(("\n".join(lines) + "\n").encode())


def read_costs(folder: Path) -> dict[str, autoattack.Cost]:
  """By attack what it cost; {} of an evaluation before costs were kept."""
  try:
    stored = json.loads((folder / COSTS).read_text(encoding="utf-8"))
    return {name: autoattack.Cost(**cost) for name, cost in stored.items()}
  except (OSError, ValueError, TypeError):
    return {}


def _cost_table(costs: dict[str, autoattack.Cost]) -> list[str]:
  """A lane is an example, or one of its targets; images include those that only fill a batch."""
  rows = [
    f"| {name} | {cost.seconds:.1f} | {cost.compiling:.1f} | {cost.batches} | {cost.lanes} "
    f"| {100 * cost.padding / max(1, cost.lanes + cost.padding):.1f} % | {cost.forward} "
    f"| {cost.gradient} |"
    for name, cost in costs.items()
  ]
  head = "attack | seconds | of which compiling | batches | lanes | padding | images, forward"
  return [f"| {head} | images, gradient |", "|---" * 8 + "|", *rows]


def check_batch_size(batch_size: int, devices: int) -> None:
  """InputError unless the batch and its eighth can be split over the devices."""
  if devices > 1 and batch_size % (8 * devices):
    raise InputError(
      f"--batch_size must be a multiple of 8 x {devices} devices, but was {batch_size}."
    )
