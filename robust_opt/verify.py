"""Checks every claim of an evaluation, by asking the net again.

  python -m robust_opt.verify runs/mnist_linf/evaluations/linf_0.05504_standard/verdict.npz

Recomputes that the file covers the whole data set, that every adversarial image is finite, within
[0, 1] and within the radius, that the net misclassifies it, and that the stated accuracy is what
the examples give. Net and data are found where the evaluation found them, or where --workdir, or
--model and --data, say. Exit code 0: all of it is true; 1: what is not is printed.
"""

from pathlib import Path
from typing import Any

from absl import app

from robust_opt import commands
from robust_opt.errors import InputError, RunError
from robust_opt.evaluation import autoattack, verdict
from robust_opt.experiments import target


def run(path: Path, given: dict[str, Any]) -> None:
  """Prints that the file is true.

  Args:
    path: of verdict.npz.
    given: where net and data are, as subject.load takes it; what is empty is as the file says.

  Raises:
    InputError: the file, the net or the data cannot be read.
    RunError: a claim in it is untrue.
  """
  stored = verdict.load(path)
  claim = stored.claim
  source = dict(claim.source)
  examples = int(source.pop("examples", 0))
  changed = {key: value for key, value in given.items() if value}
  if changed.keys() & {"workdir", "model"}:
    source |= {"workdir": "", "model": "", "data": ""}
  found = target.load(source | changed, examples)
  x, y = autoattack.checked(
    found.logits_fn, found.x, found.y, claim.norm, claim.radius, claim.batch_size
  )
  problems = verdict.verify(stored, found.logits_fn, x, y, found.net_sha256)
  if problems:
    raise RunError(f"{path} is not true. {' '.join(problems)}")
  total = len(stored.verdict.broken_by)
  print(
    f"{path} is true: {100 * stored.robust_accuracy:.2f} % of {total} examples stand under "
    f"{claim.norm}, radius {claim.radius:.6g}, and {len(stored.broken_ids)} adversarial images are "
    f"feasible and misclassified."
  )


def main(argv: list[str]) -> None:
  """One file, and flags."""
  if len(argv) != 2:
    raise InputError(f"Name one verdict.npz, but given were {len(argv) - 1} arguments.")
  run(Path(argv[1]), commands.source())


if __name__ == "__main__":
  commands.define_source_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
