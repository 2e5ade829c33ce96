r"""Measures how robust a trained network is, by AutoAttack and by checks on the measurement itself.

  python -m robust_opt.evaluate --workdir=runs/mnist_linf --norm=linf --radius=0.055

evaluates a run of robust_opt.main on its test set, or on other images of the same shape and classes
that --data names. Any function x [B, ...] -> logits [B, C] on any
data, such as an .npz file with x (pixels in [0, 1]) and y (labels), or a folder of class folders:

  python -m robust_opt.evaluate --model=my_module:logits_fn --data=test.npz --norm=linf \
      --radius=8/255 --output=runs/mine

Any set with a projection, by PGD with restarts (by default the set of the run's training):

  python -m robust_opt.evaluate --workdir=runs/mnist_linf --version=pgd \
      --set='{"name": "GroupL21", "radius": 0.5, "groups": {"name": "patches", "side": 4}}'

The standard version, but its costly attacks only where they may still break enough images, with a
bound of what the rest may miss:

  python -m robust_opt.evaluate --workdir=runs/mnist_linf --version=adaptive --share=0.01

Several threats at once, the worst of them for every image:

  python -m robust_opt.evaluate --workdir=runs/mnist_linf --threats=linf:0.1,l2:1.5,l1:8

Only a region may change, in all images or in each its own:

  python -m robust_opt.evaluate --workdir=runs/mnist_linf --norm=l2 --radius=2 --mask=region.npy

A radius of its own for each class, as where some mistakes cost more than others:

  python -m robust_opt.evaluate --workdir=runs/mnist_linf --norm=linf \
      --class_radii=0.1,0.1,0.2,0.1,0.1,0.1,0.1,0.1,0.2,0.1

Toward a class of choice, "least_likely" or "random": only its prediction counts as a success:

  python -m robust_opt.evaluate --workdir=runs/mnist_linf --target=least_likely

Rotations of up to 30 degrees with shifts of up to 3 pixels, on a grid, alone or with other threats:

  python -m robust_opt.evaluate --workdir=runs/cifar --version=grid \
      --set='{"name": "Transforms", "max_rotation": 30, "max_translation": 3}'
  python -m robust_opt.evaluate --workdir=runs/cifar --threats=linf:8/255,spatial:30:3

A network that returns only labels, as one-hot rows, without gradients or logits:

  python -m robust_opt.evaluate --model=my_module:one_hot --data=test.npz --norm=l2 --radius=0.5 \
      --version=labels --output=runs/mine

A patch of 5 x 5 pixels anywhere in the image, with any content; ten pixels of any color:

  python -m robust_opt.evaluate --workdir=runs/cifar --version=patch \
      --set='{"name": "Patch", "side": 5}'
  python -m robust_opt.evaluate --workdir=runs/cifar --version=sparse \
      --set='{"name": "L0", "k": 10, "box": [0, 1], "channel_axis": -1}'

Common corruptions (noise, blur, ...) in place of attacks, generated or read from a folder such as
CIFAR-10-C, or the perturbation sequences of CIFAR-10-P:

  python -m robust_opt.evaluate --workdir=runs/cifar --corruptions=generate

A network of RobustBench's model zoo, with the files of a submission beside the verdict (with
another network, --robustbench=cifar10/Linf/NAME names these files):

  python -m robust_opt.evaluate --robustbench=Wong2020Fast --weights=Wong2020Fast.pt \
      --data=cifar10 --norm=linf --radius=8/255 --output=runs/wong

On several hosts start it once per host; each attacks its share of the examples:

  python -m robust_opt.evaluate --workdir=/shared/runs/mnist_linf --norm=linf --radius=0.055 \
      --coordinator=HOST0:1234 --num_processes=4 --process_id=0

Writes verdict.npz, which `python -m robust_opt.verify` checks, and a summary to --output. Prints
the trust report, the accuracy after each attack, and the headline: robust accuracy, its 95 %
interval, the threat model. If it is killed, the same command resumes after the last finished batch.
Exit code 1: a check of the trust report failed; do not rely on the accuracy before the reason is
understood.
"""

import json
import signal
from pathlib import Path
from typing import Any

from absl import app, flags

from robust_opt import commands, layout
from robust_opt.certificates.propagation import METHODS
from robust_opt.data.perturbations import is_stored
from robust_opt.errors import InputError, RunError
from robust_opt.evaluation.phases import VERSIONS
from robust_opt.evaluation.verdict import ball_config
from robust_opt.experiments import robustbench
from robust_opt.layout import ChannelAxis
from robust_opt.precision import PRODUCTS
from robust_opt.sets import BALLS
from robust_opt.sets.radii import number
from robust_opt.studies import corruptions, evaluation, perturbations
from robust_opt.studies.evaluation_options import Options


def main(argv: list[str]) -> None:
  """Runs with the options of the flags."""
  values = flags.FLAGS
  commands.refuse_positional(argv)
  if values.corruptions:
    _corruptions(values)
    return
  if values.corruption_baseline:
    raise InputError("--corruption_baseline has no effect without --corruptions.")
  commands.connect(shared=bool(values.workdir or values.output), flag="--workdir or --output")
  # jax.distributed takes SIGTERM for notices of preemption. Every batch is saved: it may end us.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  source, submission = submitted(commands.source(), values.norm or "")
  passed = evaluation.run(
    Options(
      source=source,
      set=set_of(values.set, values.threats),
      mask=values.mask,
      norm=values.norm or "",
      radius=values.radius,
      class_radii=class_radii(values.class_radii),
      version=values.version,
      share=values.share,
      examples=values.examples,
      seed=values.seed,
      batch_size=values.batch_size,
      channel_axis=channel_axis(values.channel_axis),
      output=Path(values.output) if values.output else None,
      trust=values.trust,
      certify=values.certify or "",
      precision=values.precision,
      search_precision=values.search_precision,
      target=values.target,
      submission=submission,
    )
  )
  if not passed:
    raise RunError("A check of the trust report failed: see the table above.")


SHIFT = 3.0  # pixels of spatial:DEGREES, a tenth of the side of MNIST and CIFAR-10


def set_of(text: str, threats: list[str]) -> dict[str, Any] | None:
  """The config of --set, or that of the union of --threats; None without either."""
  if text and threats:
    raise InputError("Give either --set or --threats, not both.")
  if threats:
    return {"name": "Union", "sets": [_threat(threat) for threat in threats]}
  return set_config(text) if text else None


def _threat(threat: str) -> dict[str, Any]:
  """The set of a threat: linf:8/255, in [0, 1]; spatial:30:3, degrees and pixels; patch:5."""
  name, _, rest = threat.partition(":")
  try:
    if name == "spatial":
      degrees, _, shift = rest.partition(":")
      limits = {"max_rotation": number(degrees), "max_translation": number(shift or SHIFT)}
      return {"name": "Transforms", **limits}
    if name == "patch":
      return {"name": "Patch", "side": int(number(rest))}
    return ball_config(name, number(rest))
  except InputError as error:
    words = "must be norms and radii, or others, such as linf:8/255,spatial:30:3,patch:5"
    raise InputError(f"--threats {words}, but has {threat!r} ({error})") from None


# The flags of attacks.
_OF_ATTACKS = (
  *("norm", "radius", "class_radii", "set", "threats", "mask", "version", "share", "target"),
  *("search_precision", "trust", "certify", "coordinator", "num_processes", "process_id"),
)


def _corruptions(values: flags.FlagValues) -> None:
  """Evaluates on common corruptions."""
  for name in _OF_ATTACKS:
    if values[name].present:
      raise InputError(f"--{name} has no effect with --corruptions: nothing is attacked.")
  sequences = is_stored(Path(values.corruptions).expanduser())
  (perturbations if sequences else corruptions).run(
    corruptions.Options(
      source=submitted(commands.source(), "")[0],
      images=values.corruptions,
      baseline=Path(values.corruption_baseline) if values.corruption_baseline else None,
      examples=values.examples,
      seed=values.seed,
      batch_size=values.batch_size,
      channel_axis=channel_axis(values.channel_axis),
      output=Path(values.output) if values.output else None,
      precision=values.precision,
    )
  )


def submitted(source: dict[str, Any], norm: str) -> tuple[dict[str, Any], str]:
  """The source with the whole path of --robustbench, and that path, or "".

  Beside another network than one of the zoo the flag only names what is submitted.
  """
  if not source["robustbench"]:
    return source, ""
  path = robustbench.find(source["robustbench"], source["data"], norm).path
  of_zoo = not any(source[key] for key in ("workdir", "model", "architecture"))
  return source | {"robustbench": path if of_zoo else ""}, path


def class_radii(texts: list[str]) -> tuple[float, ...]:
  """The values of --class_radii."""
  try:
    return tuple(map(number, texts))
  except InputError as error:
    raise InputError(f"Each of --class_radii {error}") from None


def set_config(text: str) -> dict[str, Any]:
  """The value of --set: JSON with the name of a set and its arguments."""
  try:
    value = json.loads(text)
  except ValueError as error:
    words = f"--set must be JSON, where 8/255 is a string, but was {text!r} ({error})."
    raise InputError(words) from error
  if not isinstance(value, dict):
    raise InputError(f'--set must be JSON such as {{"name": "LInf", ...}}, but was {text!r}.')
  return value


def channel_axis(text: str) -> ChannelAxis:
  """The value of --channel_axis."""
  named: dict[str, ChannelAxis] = {layout.AUTO: layout.AUTO, "none": None}
  try:
    return named[text] if text in named else int(text)
  except ValueError:
    raise InputError(f"--channel_axis must be auto, none or an integer, but was {text}.") from None


def define_flags() -> None:
  """Defines the flags; not at import."""
  commands.define_source_flags()
  flags.DEFINE_enum("norm", None, list(BALLS), "Of the ball in [0, 1]; default: the run's own.")
  words = "Of the ball, in pixels of [0, 1], such as 0.1 or 8/255; default: the run's own."
  commands.define_number("radius", words)
  words = "In place of --radius, one for each class, as in 0.1,0.2 for two classes."
  flags.DEFINE_list("class_radii", [], words)
  words = "In place of both: any set of robust_opt.sets as JSON, its name and its arguments."
  flags.DEFINE_string("set", "", words)
  words = "In place of these: several, attacked in turn, as in linf:8/255,l2:0.5,spatial:30:3."
  flags.DEFINE_list("threats", [], words)
  words = "A .npy file of bool, [H, W] or as an image or all images: True where pixels may change."
  flags.DEFINE_string("mask", "", words)
  words = "rand: random nets, --draws; labels: nets of labels; grid, sparse, patch, pgd: sets."
  flags.DEFINE_enum("version", "standard", list(VERSIONS), words)
  words = "The largest share of images that attacks skipped by --version=adaptive may break; 0.02."
  commands.define_number("share", words)
  words = "A class, least_likely or random: only its prediction counts as a success."
  flags.DEFINE_string("target", "", words)
  flags.DEFINE_integer("examples", 0, "How many examples, from the start; 0: all.", lower_bound=0)
  words = "Instead of attacks, common corruptions: generate, or a folder as CIFAR-10-C or -P."
  flags.DEFINE_string("corruptions", "", words)
  words = "A JSON file that --corruptions has written, of a network whose errors are 100 %."
  flags.DEFINE_string("corruption_baseline", "", words)
  flags.DEFINE_integer("seed", 0, "Of the attacks, or of noise.", lower_bound=0)
  words = "By default 100 on a CPU, and on accelerators what fits into their memory, up to 4096."
  flags.DEFINE_integer("batch_size", None, words, lower_bound=1)
  words = "Of one example: auto guesses it, none, or a number, 0 for [C, H, W]."
  flags.DEFINE_string("channel_axis", layout.AUTO, words)
  words = "Of float32 products on accelerators; by default float32."
  flags.DEFINE_enum("precision", None, list(PRODUCTS), words)
  words = "Of those in the attacks; images count only if they fool the net in --precision."
  flags.DEFINE_enum("search_precision", None, list(PRODUCTS), words)
  flags.DEFINE_string("output", "", "Folder for the results; by default within --workdir.")
  words = "Proofs beside the attacks, a lower bound: which bounds `ro.certify` takes."
  flags.DEFINE_enum("certify", None, list(METHODS), words)
  flags.DEFINE_boolean("trust", True, "Whether to check the measurement itself.")
  commands.define_process_flags()


if __name__ == "__main__":
  define_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
