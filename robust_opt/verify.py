"""Checks every claim of an evaluation against the net.

  python -m robust_opt.verify runs/mnist_linf/evaluations/linf_0.05504_standard/verdict.npz

Verifies that the file covers the whole data set, that every adversarial image is finite, within the
box and the set, and misclassified, and that the stated accuracy follows from the examples. Net and
data are those of the evaluation, or of --workdir, or of --model and --data. Exit code 0: all claims
are true; 1: the false claims are printed.
"""

from pathlib import Path
from typing import Any

from absl import app

from robust_opt import commands
from robust_opt.errors import InputError, RunError
from robust_opt.evaluation import verdict, verification
from robust_opt.evaluation.headline import ensemble_over, skipped, target_in_words
from robust_opt.evaluation.inputs import check_examples
from robust_opt.experiments import target
from robust_opt.tables import Rate


def run(path: Path, source: dict[str, Any]) -> None:
  """Verifies a verdict.npz, or the one in the folder of an evaluation.

  Empty values of the source, for target.load, are those of the file.

  Raises:
    InputError: the file, the net or the data cannot be read.
    RunError: a claim in it is false.
  """
  path = path / "verdict.npz" if path.is_dir() else path
  stored = verdict.load(path)
  claim = stored.claim
  recorded = dict(claim.source)
  examples = int(recorded.pop("examples", 0))
  changed = {key: value for key, value in source.items() if value}
  if changed.keys() & {"workdir", "model"}:
    # A run that has moved was evaluated on the same data.
    kept = recorded.get("data", "") if "workdir" in changed and recorded.get("workdir") else ""
    nets = ("workdir", "model", "architecture", "robustbench", "weights", "mean", "std")
    recorded |= dict.fromkeys(nets, "") | {"data": kept}
  net = target.load(recorded | changed, examples)
  only_predicts = {"gradients": False, "allow_probabilities": True}
  x, y = check_examples(
    net.logits_fn, net.x, net.y, claim.u(net.y), claim.batch_size, **only_predicts
  )
  problems = verification.verify(stored, net.logits_fn, x, y, net.net_sha256)
  if problems:
    raise RunError(f"{path} is not true. {' '.join(problems)}")
  if claim.target:
    outcome, toward = stored.verdict, target_in_words(claim.target)
    rate = Rate(len(stored.broken_ids), outcome.num_attacked)
    print(
      f"{path} is true: {rate.percent} of {rate.total:,} attacked examples (95 % interval "
      f"{rate.range}) are classified as the target, {toward}, under "
      f"{ensemble_over(claim.version, claim.set)}, and their adversarial images are feasible."
    )
    return
  ration = stored.verdict.ration
  rate = Rate(round(stored.robust_accuracy * len(y)), len(y))
  print(
    f"{path} is true: {rate.percent} of {rate.total:,} examples (95 % interval {rate.range}) "
    f"remain correctly classified under {ensemble_over(claim.version, claim.set)}, and "
    f"{len(stored.broken_ids)} adversarial images are feasible and misclassified."
    f"{skipped(ration and ration.bound, rate)}"
  )


def main(argv: list[str]) -> None:
  """Verifies the file that is the only argument."""
  if len(argv) != 2:
    raise InputError(f"Give one verdict.npz, but there were {len(argv) - 1} arguments.")
  run(Path(argv[1]), commands.source())


if __name__ == "__main__":
  commands.define_source_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
