"""Proofs alongside the attacks of an evaluation: its lower bound on the robust accuracy.

check_supported("crown", net.logits_fn, x, u)          # before any work
proofs = prove("crown", net, stored, study)            # once, kept in certificates.json
proofs.rate, proofs.check                              # certified <= robust, image by image
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from robust_opt.certificates import bounds, tracing
from robust_opt.evaluation.trust import Check
from robust_opt.evaluation.verdict import StoredVerdict
from robust_opt.experiments import target
from robust_opt.sets import UncertaintySet, check_ball
from robust_opt.sets.examples import for_examples
from robust_opt.studies.study import Study, sha256_of
from robust_opt.tables import Rate
from robust_opt.types import LogitsFn

FILE = "certificates.json"
MEANING = (
  "A proof and an attack contradict each other, so one of them is wrong; or the network was "
  "attacked in fewer bits than float32, of which the proof is."
)


class Proofs(NamedTuple):
  """What `ro.certify` proves of the images of an evaluation.

  Attributes:
    method: of the bounds.
    rate: of the certified among all images.
    check: whether no certified image was broken.
  """

  method: str
  rate: Rate
  check: Check


def check_supported(method: str, logits_fn: LogitsFn, x: np.ndarray, u: UncertaintySet) -> None:
  """InputError unless the network can be certified over the set."""
  check_ball(u, f"--certify={method}")
  tracing.trace(logits_fn, x.shape[1:], x.dtype)


def prove(method: str, net: target.EvalTarget, stored: StoredVerdict, study: Study) -> Proofs:
  """The proofs of all images that are classified correctly; computed once."""
  claim, outcome = stored.claim, stored.verdict
  u = claim.u(stored.labels)

  def compute() -> list[int]:
    right = np.flatnonzero(outcome.prediction == stored.labels)
    if not right.size:
      return []
    study.progress(0.0, f"certificates: {method}")
    of_right = check_ball(for_examples(u, right, net.x.ndim), "--certify")
    found = bounds.certify(net.logits_fn, net.x[right], stored.labels[right], of_right, method)
    return list(map(int, right[found.certified]))

  path: Path = study.workdir / FILE
  made_from = sha256_of(claim.net_sha256, claim.data_sha256, method)
  ids = np.asarray(study.once("certificates", path, made_from, compute), int)
  total, robust = len(outcome.broken_by), int(np.sum(outcome.broken_by < 0))
  broken = int(np.sum(outcome.broken_by[ids] > 0))
  measured = (
    f"{len(ids)} of {total} images are certified by {method}, {robust} are robust under attack; "
    f"{broken} of the certified were broken"
  )
  check = Check("certificates", broken == 0, measured, MEANING)
  return Proofs(method, Rate(len(ids), total), check)
