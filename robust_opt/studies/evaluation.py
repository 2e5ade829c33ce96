"""An evaluation in a folder: AutoAttack, its verdict, the trust report; resumable.

passed = run(Options({"workdir": "runs/mnist_linf"}, set=ball_config("linf", 0.055)))

The folder holds verdict.npz, which `python -m robust_opt.verify` checks, summary.json and
summary.md, trust.json, certificates.json of the proofs (`--certify`), costs.json with the seconds
and images of each attack, and below parts/ the finished batches, from which a killed run resumes.

In several processes (`--coordinator`) each attacks its share of the examples on its own devices and
leaves it in parts/process_I/; the first joins them, and alone writes the rest and prints.
"""

import math
import shlex
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robust_opt import layout
from robust_opt.attacks.targets import check_target
from robust_opt.errors import InputError
from robust_opt.evaluation import adaptive, autoattack, identity, network, trust, verdict
from robust_opt.evaluation.batches import default_batch_size, predictions
from robust_opt.evaluation.collection import rounded
from robust_opt.evaluation.inputs import check_examples, check_set
from robust_opt.evaluation.phases import plan
from robust_opt.evaluation.similarity import mean_ssim
from robust_opt.evaluation.targeting import parsed
from robust_opt.experiments import metrics, processes, robustbench, target
from robust_opt.files import atomic_write, write_json
from robust_opt.precision import products, stated
from robust_opt.sets import Ball, check_ball
from robust_opt.sets.build import build_set, config_sha256
from robust_opt.sets.examples import of_labels
from robust_opt.sets.radii import check_extent
from robust_opt.studies import ensemble, evaluation_options, proofs, shares, submission, summaries
from robust_opt.studies.ensemble import VERDICT
from robust_opt.studies.evaluation_options import Options
from robust_opt.studies.study import Study, sha256_of
from robust_opt.training import sharding

TRUST_EXAMPLES = 200  # of the trust report, at most, drawn by the seed
TRUST_BATCH = 256  # of its batches, at most


def run(options: Options) -> bool:
  """Evaluates, writes, prints; returns whether no check of the measurement failed.

  In all but the first of several processes it returns True when the first is done.
  """
  entry = robustbench.find(options.submission) if options.submission else None
  net = target.load(options.source, options.examples)
  _check_class_radii(options, net)
  set_config = evaluation_options.set_config(options, net.set)
  u = build_set(of_labels(set_config, net.y))
  check_set(u)
  gradients = any(step.phase.gradients for step in plan(options.version, net.logits_fn, u))
  kind = {"gradients": gradients, "allow_probabilities": not gradients}
  x, y = check_examples(net.logits_fn, net.x, net.y, u, options.batch_size or 1, **kind)
  check_extent(u, x.shape[1:], evaluation_options.set_in_words(options))
  net = net._replace(x=x, y=y)
  batch_size = options.batch_size or default_batch_size(net.logits_fn, x, jax.local_device_count())
  precision = stated(options.precision)
  # Everything that may be refused, before a folder is made.
  _check_target(options, net)
  allowed = adaptive.check(options.share, options.version, parsed(options.target))
  if options.version == adaptive.VERSION and jax.process_count() > 1:
    raise InputError("--version=adaptive runs in one process: leave out --coordinator.")
  if options.certify:
    proofs.check_supported(options.certify, net.logits_fn, x, u)
  network.checked_logits(net.logits_fn, network.as_argument(net.logits_fn, x), x)
  shares.ids_of(jax.process_index(), jax.process_count(), len(x))
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
    target=options.target,
  )
  folder = options.output or _folder(options, claim)
  with_trust = options.trust and gradients and isinstance(u, Ball)
  # The trust report, on few examples, is about a quarter of the work.
  work = 1.25 if with_trust else 1.0
  began = time.monotonic()

  def open_study() -> Study:
    quiet, description = not processes.is_first(), _description(claim, net, axis)
    if claim.version == adaptive.VERSION:
      description["share"] = allowed
    return Study(folder, description, work, "--output", identity.same, quiet)

  # The first process claims the folder; the others find the same study in it, or refuse.
  with processes.on_first("folder", open_study) or open_study() as study:
    clean: list[trust.Check] = []
    if not (folder / VERDICT).exists():
      if options.trust and gradients:
        clean = processes.on_first("checks", lambda: _preliminary(net, claim)) or []
      ensemble.attack(net, claim, axis, study, options.share)
    checks = processes.on_first("trust", lambda: _trust(net, axis, study, with_trust, clean)) or []

    proved = _prove(options.certify, net, study)
    if proved and (checks or proved.check.failed):
      checks = [*checks, proved.check]

  def summarize() -> None:
    stored = verdict.load(folder / VERDICT)
    summary = _summary(net, axis, stored, checks, proved, time.monotonic() - began)
    guess = layout.describe_guess(options.channel_axis, x.shape[1:])
    _publish(folder, summary, claim, checks, guess, _following(folder, options))
    if entry:
      _print_submission(submission.write(folder / "robustbench", entry, stored, x, axis))

  processes.on_first("summary", summarize)
  return not any(check.failed for check in checks)


def _publish(
  folder: Path,
  summary: dict[str, Any],
  claim: verdict.Claim,
  checks: list[trust.Check],
  guess: str,
  following: list[str],
) -> None:
  """Writes and prints the summary; `guess`: of the layout; `following`: the next commands."""
  costs = ensemble.read_costs(folder)
  if costs:
    summary["costs"] = {name: cost._asdict() for name, cost in costs.items()}
  write_json(folder / "summary.json", summary)
  text = summaries.markdown(summary, claim, checks, guess, costs)
  with atomic_write(folder / "summary.md") as file:
    file.write(text.encode())
  if checks:
    metrics.print_table(summaries.trust_table(checks))
  metrics.print_table(summaries.accuracy_table(summary, claim))
  headline = summaries.headline(summary, claim, checks)
  metrics.print_sentences(
    headline.sentence, headline.warning, summaries.remarks(summary, claim, guess)
  )
  print(f"Everything about this evaluation is in {folder}")
  print("\n".join(["Next, check every claim, and see the images:", *following]))


def _print_submission(paths: list[Path]) -> None:
  info, images = map(str, paths)
  name = images.removesuffix(".npy")
  print(f"For RobustBench: {info}, where what is null is yours to fill in, and {images}.")
  print(f'  torch.save(torch.from_numpy(numpy.load("{name}.npy")), "{name}.pt")')


def _following(folder: Path, options: Options) -> list[str]:
  """The commands that check the claims, and that show the images."""
  shown = folder if options.output else options.source["workdir"]
  arguments = [("verify", folder / VERDICT), ("report", shown)]
  return [f"  python -m robust_opt.{name} {shlex.quote(str(path))}" for name, path in arguments]


def _check_target(options: Options, net: target.EvalTarget) -> None:
  """InputError unless --target is a class of the net or a rule, and nothing contradicts it."""
  rule = parsed(options.target)
  if rule is None:
    return
  if options.submission:
    raise InputError("--target has no place in a submission to RobustBench: leave one of them out.")
  check_target(rule, _num_classes(net))


def _check_class_radii(options: Options, net: target.EvalTarget) -> None:
  """InputError unless there are none, or one for each class of the net."""
  given, count = len(options.class_radii), _num_classes(net)
  if given not in (0, count):
    raise InputError(f"--class_radii must be {count} radii, one for each class, but are {given}.")


def _num_classes(net: target.EvalTarget) -> int:
  example = jax.ShapeDtypeStruct((1, *net.x.shape[1:]), np.float32)
  return int(jax.eval_shape(net.logits_fn, example).shape[-1])


def _folder(options: Options, claim: verdict.Claim) -> Path:
  """Within the run; for any other network, --output names the folder."""
  if not options.source.get("workdir"):
    raise InputError("Without --workdir give --output, a folder for the results.")
  count = f"_{options.examples}" if options.examples else ""
  radius = f"_{claim.radius:.6g}"
  if math.isnan(claim.radius):  # other sets of that class have other arguments
    radius = f"_{claim.set_sha256[:6]}"
  data = str(options.source.get("data", ""))  # FILE, FILE.npz:images,labels, or a folder
  on = f"_{Path(data.partition(':')[0].partition(',')[0]).stem}" if data else ""
  aim = f"_to_{options.target}" if options.target else ""
  of_mask = f"_{Path(options.mask).stem}" if options.mask else ""
  drawn = f"_seed_{options.seed}" if options.seed else ""
  share = "" if options.share is None else f"_{options.share:g}"
  name = f"{claim.norm}{of_mask}{radius}_{options.version}{share}{aim}{drawn}{count}{on}"
  return Path(options.source["workdir"]) / "evaluations" / name


def _description(claim: verdict.Claim, net: target.EvalTarget, axis: int | None) -> dict[str, Any]:
  """What an evaluation depends on, wherever its files are."""
  elsewhere = ("source", "net_sha256", "device")
  arrays = identity.of_net(net.logits_fn, net.x, net.definition)
  return {
    **{key: value for key, value in claim._asdict().items() if key not in elsewhere},
    "channel_axis": axis,
    "jax": jax.__version__,  # a verdict belongs to one version
    "net": {"name": net.name, **arrays},
  }


def _preliminary(net: target.EvalTarget, claim: verdict.Claim) -> list[trust.Check]:
  """The checks that need no attack; what fails is said before any time is spent."""
  with products(claim.precision):
    checks = trust.preliminary(
      *(net.logits_fn, net.x, net.y, claim.u(net.y)),
      seed=claim.seed,
      batch_size=min(claim.batch_size, TRUST_BATCH),
      examples=TRUST_EXAMPLES,
    )
  for check in checks:
    if check.failed:
      words = f"Before the attacks: the check {check.name!r} fails: {check.measured}."
      metrics.print_sentences(words, check.meaning)
  return checks


def _trust(
  net: target.EvalTarget,
  axis: int | None,
  study: Study,
  with_trust: bool,
  clean: list[trust.Check],
) -> list[trust.Check]:
  """All checks, of which those in `clean` are made; computed once, or those of an earlier run."""
  path = study.workdir / "trust.json"
  if not (with_trust or path.exists()):
    return []
  stored = verdict.load(study.workdir / VERDICT)
  claim = stored.claim
  u = check_ball(claim.u(net.y), "The trust report")

  def compute() -> list[dict[str, Any]]:
    with products(claim.precision):
      checks = trust.report(
        *(net.logits_fn, net.x, net.y, u),
        seed=claim.seed,
        batch_size=min(claim.batch_size, TRUST_BATCH),
        channel_axis=axis,
        examples=TRUST_EXAMPLES,
        verdict=None if claim.target else stored.verdict,
        clean=clean,
        progress=lambda part: study.progress(0.25 / len(trust.PARTS), f"trust report: {part}"),
      )
    return [check._asdict() for check in checks]

  made_from = sha256_of(claim.net_sha256, claim.data_sha256)
  checks = study.once("trust report", path, made_from, compute)
  return [trust.Check(**values) for values in checks]


def _prove(method: str, net: target.EvalTarget, study: Study) -> proofs.Proofs | None:
  """The proofs by that method, if there is one; by the first of several processes."""
  if not method:
    return None
  stored = verdict.load(study.workdir / VERDICT)
  return processes.on_first("proofs", lambda: proofs.prove(method, net, stored, study))


def _accuracy_after_rounding(net: target.EvalTarget, stored: verdict.StoredVerdict) -> float:
  """The accuracy if the adversarial images were stored in 8 bits: an overestimate."""
  images, broken = rounded(stored.verdict.images), stored.broken_ids
  targets = stored.verdict.targets
  size, precision = stored.claim.batch_size, stored.claim.precision
  prediction = predictions(net.logits_fn, images, size, precision=precision)
  labels = stored.labels[broken]
  undone = prediction == labels if targets is None else prediction != targets[broken]
  return stored.robust_accuracy + float(np.sum(undone)) / len(stored.labels)


def _summary(
  net: target.EvalTarget,
  axis: int | None,
  stored: verdict.StoredVerdict,
  checks: list[trust.Check],
  proved: proofs.Proofs | None,
  seconds: float,
) -> dict[str, Any]:
  """The content of summary.json."""
  found, ration = stored.verdict, stored.verdict.ration
  return {
    "net": net.name,
    "claim": stored.claim._asdict(),
    "total": len(found.broken_by),
    "classes": _num_classes(net),
    "draws": getattr(net.logits_fn, "num_draws", 0),  # of a ro.Randomized
    "clean_accuracy": found.clean_accuracy,
    "robust_accuracy": stored.robust_accuracy,
    "targeted": _targeted(found),
    "ssim": mean_ssim(found.images, net.x[stored.broken_ids], axis),
    "accuracy_after_rounding": _accuracy_after_rounding(net, stored),
    "attacks": verdict.accuracies(found),
    "skipped": ration and {"images": ration.count_left(found.broken_by), "bound": ration.bound},
    "certified": proved and {"method": proved.method, "images": proved.rate.correct},
    "trust": [check._asdict() for check in checks],
    "seconds_since_last_start": round(seconds, 1),
  }


def _targeted(found: autoattack.Verdict) -> dict[str, int] | None:
  """How many images were attacked, and how many of them became the target."""
  if found.targets is None:
    return None
  return {"correct": int(np.sum(found.broken_by > 0)), "total": found.num_attacked}
