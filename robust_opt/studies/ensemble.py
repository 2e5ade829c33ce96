"""The ensemble of an evaluation, in its folder: every finished batch is kept.

  attack(net, claim, axis, study, share)      # writes verdict.npz and costs.json
  read_costs(study.workdir)["square"].seconds

Each process attacks its share of the examples on its own devices; the first joins the shares.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from robust_opt.errors import InputError, RunError
from robust_opt.evaluation import autoattack, outcome, verdict
from robust_opt.evaluation.targeting import parsed
from robust_opt.experiments import processes, target
from robust_opt.files import read_sealed, write_json, write_sealed
from robust_opt.sets.examples import for_examples
from robust_opt.studies import shares
from robust_opt.studies.study import Study
from robust_opt.training import sharding

COSTS, VERDICT = "costs.json", "verdict.npz"
SHARE = "share.npz"  # of one of several processes
QUIET_SECONDS = 10.0  # between two lines of progress without a terminal


def attack(
  net: target.EvalTarget,
  claim: verdict.Claim,
  axis: int | None,
  study: Study,
  allowed: float | None,
) -> None:
  """Attacks the share of this process; the first writes the verdict of all, and the costs."""
  check_batch_size(claim.batch_size, jax.local_device_count())
  count, index, parts = jax.process_count(), jax.process_index(), study.workdir / "parts"
  ids = [shares.ids_of(process, count, len(net.x)) for process in range(count)]
  if count == 1:
    _save(_share(net, claim, axis, study, ids[0], parts, allowed), net, claim, study)
    return
  folders = [parts / f"process_{process}" for process in range(count)]
  if shares.load(folders[index] / SHARE, ids[index], net.x) is None:
    share = _share(net, claim, axis, study, ids[index], folders[index], allowed)
    shares.save(folders[index] / SHARE, share)
  study.progress(0.0, "waiting for the other processes")
  processes.wait_for_all("shares")

  def join() -> None:
    loaded = [shares.load(folders[i] / SHARE, ids[i], net.x) for i in range(count)]
    found = [share for share in loaded if share is not None]
    if len(found) < count:
      raise RunError(
        f"{folders[loaded.index(None)] / SHARE} is not there: {study.workdir} must be a directory "
        "that all processes share."
      )
    _save(shares.joined(found), net, claim, study)

  processes.on_first("verdict", join)


def _share(
  net: target.EvalTarget,
  claim: verdict.Claim,
  axis: int | None,
  study: Study,
  ids: np.ndarray,
  parts: Path,
  allowed: float | None,
) -> shares.Share:
  """The ensemble on all devices of this process; every finished batch is kept in `parts`."""
  mesh = sharding.local_mesh()
  split = NamedSharding(mesh, PartitionSpec(sharding.AXIS))
  costs: dict[str, outcome.Cost] = {}
  in_words = _reporter(study, "resist" if claim.target else "remain correctly classified")

  def report(progress: outcome.Progress) -> None:
    costs[progress.attack] = costs.get(progress.attack, outcome.Cost()) + progress.cost
    in_words(progress)

  found = autoattack.autoattack(
    *(sharding.replicate(net.logits_fn, mesh), net.x[ids], net.y[ids]),
    for_examples(claim.u(net.y), ids, net.x.ndim),
    version=claim.version,
    target=parsed(claim.target),
    share=allowed,
    seed=claim.seed,
    batch_size=claim.batch_size,
    ids=ids,
    channel_axis=axis,
    precision=claim.precision,
    search_precision=claim.search_precision,
    put=lambda array: jax.device_put(array, split),
    cache=_resume_cache(parts),
    report=report,
  )
  return shares.Share(ids, found, costs)


def _save(share: shares.Share, net: target.EvalTarget, claim: verdict.Claim, study: Study) -> None:
  """The verdict and the costs of a share that is the whole."""
  costs = {name: cost._asdict() for name, cost in share.costs.items()}
  write_json(study.workdir / COSTS, costs)
  verdict.save(study.workdir / VERDICT, share.verdict, claim, net.x, net.y)


def _resume_cache(folder: Path) -> outcome.ResumeCache:
  """One file per batch, complete or absent; a file that cannot be read is computed again."""

  def load(name: str) -> Mapping[str, np.ndarray] | None:
    try:
      with read_sealed(folder / f"{name}.npz", "part") as arrays:
        return arrays
    except InputError:
      return None

  def save(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    write_sealed(folder / f"{name}.npz", arrays)

  return outcome.ResumeCache(load, save)


def _reporter(study: Study, remains: str) -> Callable[[outcome.Progress], None]:
  """Reports what remains, in the words of `remains`, at each new attack and every few seconds."""
  done, last, told = 0.0, "", -QUIET_SECONDS

  def report(progress: outcome.Progress) -> None:
    nonlocal done, last, told
    target = "" if progress.target is None else f", target {progress.target + 1}"
    attack, now = f"{progress.attack}{target}", time.monotonic()
    if attack == last and now - told < QUIET_SECONDS:
      return
    share = 100 * progress.remaining / progress.total
    words = f"{attack}: {share:.2f} % of {progress.total} {remains}"
    study.progress(progress.done - done, words)
    done, last, told = progress.done, attack, now

  return report


def read_costs(folder: Path) -> dict[str, outcome.Cost]:
  """By attack what it cost; {} of an evaluation before costs were kept."""
  try:
    stored = json.loads((folder / COSTS).read_text(encoding="utf-8"))
    return {name: outcome.Cost(**cost) for name, cost in stored.items()}
  except (OSError, ValueError, TypeError):
    return {}


def check_batch_size(batch_size: int, devices: int) -> None:
  """InputError unless the batch and its eighth can be split over the devices."""
  if devices > 1 and batch_size % (8 * devices):
    raise InputError(
      f"--batch_size must be a multiple of 8 x {devices} devices, but was {batch_size}."
    )
