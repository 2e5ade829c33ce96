"""The tables, claims and figures of Goodfellow et al. 2015, from what was measured.

shown = tables_of(measured, "mnist", preset)     # {"numbers": Table, "claims": Table, ...}
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import statistics, tables
from robust_opt.papers.goodfellow2015 import measure
from robust_opt.papers.goodfellow2015.nets import ALL, RADII, AttackedNet, gradient
from robust_opt.plots import explanations as explanation_figures
from robust_opt.plots import linear as linear_figures
from robust_opt.studies import claims
from robust_opt.studies.claims import Claim
from robust_opt.theory import explanations
from robust_opt.types import Array

NUM_CLASSES = 10  # of every data set here
# Above this clean error a control has not learned, and says nothing about what it controls for.
MOSTLY_WRONG = 0.5

Seeds = Sequence[dict[str, Any]]
OfSeed = Callable[[dict[str, Any]], float | None]  # what was measured of a seed -> a share


class Share(NamedTuple):
  """A share that is measured of each seed.

  Attributes:
    of: measurements of a seed -> the share, or None.
    among: measurements of a seed -> the number of images that it is a mean over.
    nets: the kinds of networks that it is measured on.
  """

  of: OfSeed
  among: Callable[[dict[str, Any]], float]
  nets: tuple[str, ...]


def _examples(seed: dict[str, Any]) -> float:
  return seed["examples"]


def _rate(kind: str, images: str, what: str) -> Share:
  """The error of a kind of network, or its confidence, on clean or adversarial images."""

  def of(seed: dict[str, Any]) -> float | None:
    return seed["judged"][kind][images][what] if kind in seed["judged"] else None

  def among(seed: dict[str, Any]) -> float:
    wrong = seed["judged"][kind][images]["error"]
    return seed["examples"] * {"error": 1, "mistakes": wrong, "correct": 1 - wrong}[what]

  return Share(of, among, (kind,))


def _clean_error(kind: str) -> Share:
  """Clean error."""
  return _rate(kind, "clean", "error")


def _adversarial_error(kind: str) -> Share:
  """Error on FGSM examples against the network itself."""
  return _rate(kind, "adversarial", "error")


def _confidence(kind: str) -> Share:
  """Confidence in mistakes on FGSM examples."""
  return _rate(kind, "adversarial", "mistakes")


def _transfer_error(source: str, target: str) -> Share:
  """Error of the target on FGSM examples against the source."""

  def error(seed: dict[str, Any]) -> float:
    names = seed["transfer"]["names"]
    return 1 - seed["transfer"]["accuracy"][names.index(source)][names.index(target)]

  return Share(error, _examples, (source, target))


def _agreement(source: str, other: str, among: str) -> Share:
  """How often `other` predicts the class of `source` among its mistakes, or those of both."""
  pair = f"{source} {other}"
  return Share(
    lambda seed: seed["agreement"][pair][among],
    lambda seed: seed["agreement"][pair][f"num_{among}"],
    (source, other),
  )


def _rubbish_rate(kind: str, what: str) -> Share:
  """The share of inputs of no class that get one."""
  return Share(lambda seed: seed["rubbish"][kind][what], _examples, (kind,))


def _learned(seed: dict[str, Any], nets: Sequence[str]) -> bool:
  errors = np.array([seed["judged"][net]["clean"]["error"] for net in nets])
  return bool(statistics.has_learned(1 - errors, NUM_CLASSES).all())


def _percent(share: Share, runs: Seeds) -> tables.Percent | None:
  """Over the seeds that have this share; None if none has."""
  values = [(seed, value) for seed in runs if (value := share.of(seed)) is not None]
  if not values:
    return None
  examples = max(1, min(round(share.among(seed)) for seed, _ in values))
  learned = [_learned(seed, share.nets) for seed, _ in values]
  # Means of float32 may exceed 1 by rounding.
  return tables.Percent.of([min(1.0, value) for _, value in values], examples, learned)


# (what, published in %, measured); None: the paper has no number.
ROWS: list[tuple[str, float | None, Share]] = [
  ("softmax regression: adversarial error", 99.9, _adversarial_error("softmax")),
  ("... its confidence there", 79.3, _confidence("softmax")),
  ("maxout: clean error", 0.94, _clean_error("maxout")),
  ("... adversarial error", 89.4, _adversarial_error("maxout")),
  ("... its confidence there", 97.6, _confidence("maxout")),
  ("maxout trained adversarially: clean error", 0.84, _clean_error("maxout_adversarial")),
  ("... adversarial error", 17.9, _adversarial_error("maxout_adversarial")),
  ("... its confidence there", 81.4, _confidence("maxout_adversarial")),
  ("examples of the plain net, on the one trained adversarially", 19.6,
   _transfer_error("maxout", "maxout_adversarial")),
  ("the other way round", 40.9, _transfer_error("maxout_adversarial", "maxout")),
  ("trained on random signs: adversarial error", 86.2, _adversarial_error("maxout_signs")),
  ("... its confidence there", 97.3, _confidence("maxout_signs")),
  ("trained on uniform noise: adversarial error", 90.4, _adversarial_error("maxout_uniform")),
  ("... its confidence there", 97.8, _confidence("maxout_uniform")),
  ("maxout of 1600 units: clean error", 1.14, _clean_error("maxout_large")),
  ("... trained adversarially", 0.78, _clean_error("maxout_large_adversarial")),
  ("... adversarial error", None, _adversarial_error("maxout_large_adversarial")),
  ("shallow RBF: adversarial error", 55.4, _adversarial_error("rbf")),
  ("... its confidence there", 1.2, _confidence("rbf")),
  ("... its confidence where right on clean images", 60.6, _rate("rbf", "clean", "correct")),
  ("... clean error", None, _clean_error("rbf")),
  ("RBF with a hidden layer: clean error", None, _clean_error("deep_rbf")),
  ("... adversarial error", None, _adversarial_error("deep_rbf")),
  ("maxout with sigmoids on top: adversarial error", None, _adversarial_error("sigmoid")),
  ("where maxout errs, softmax predicts its class", 54.6,
   _agreement("maxout", "softmax", "mistakes")),
  ("... RBF does", 16.0, _agreement("maxout", "rbf", "mistakes")),
  ("... where both err: softmax", 84.6, _agreement("maxout", "softmax", "both")),
  ("... where both err: RBF", 54.3, _agreement("maxout", "rbf", "both")),
  ("where both err, RBF predicts softmax's class", 53.6, _agreement("softmax", "rbf", "both")),
  ("N(0, I) taken for a class: maxout", 98.35, _rubbish_rate("maxout", "normal")),
  ("... maxout with sigmoids", 68.0, _rubbish_rate("sigmoid", "normal")),
  ("... softmax regression", 59.8, _rubbish_rate("softmax", "normal")),
  ("... RBF", 0.0, _rubbish_rate("rbf", "normal")),
  ("perceptron: adversarial error", None, _adversarial_error("mlp")),
  ("... trained with the input perturbed", None, _adversarial_error("mlp_adversarial")),
  ("... trained with hidden layers perturbed", None, _adversarial_error("mlp_hidden")),
]  # fmt: skip


CIFAR_ROWS: list[tuple[str, float | None, Share]] = [
  ("convolutional maxout: adversarial error", 87.15, _adversarial_error("conv_maxout")),
  ("... its confidence there", 96.6, _confidence("conv_maxout")),
  ("... clean error", None, _clean_error("conv_maxout")),
]
ENSEMBLE_ROWS: list[tuple[str, str, float | None]] = [
  ("ensemble: clean error", "clean", None),
  ("ensemble of maxout nets, attacked as one", "ensemble", 91.1),
  ("... attacked through one member", "member", 87.9),
]


def tables_of(
  measured: dict[str, Any], dataset: str, preset: dict[str, Any]
) -> dict[str, tables.Table]:
  """The paper's numbers beside ours, and its claims."""
  shown = {"numbers": _numbers_table(measured, dataset, preset)}
  if dataset != "cifar10":
    shown["claims"] = _claims_table(measured)
    shown["rubbish"] = _rubbish_table(measured["seeds"])
  return shown


def _numbers_table(measured: dict[str, Any], dataset: str, preset: dict[str, Any]) -> tables.Table:
  runs, rows, listed = measured["seeds"], [], CIFAR_ROWS
  if dataset != "cifar10":
    rows, listed = _logistic_rows(measured["once"]["logistic"]), ROWS
  for what, published, share in listed:
    ours = _percent(share, runs)
    if ours is not None:  # else not trained here
      rows.append(_row(what, published, ours))
  for what, key, published in ENSEMBLE_ROWS if "ensemble" in measured else ():
    rows.append(_row(what, published, _single(measured["ensemble"][key], runs[0]["examples"])))
  once = (
    f"Logistic regression and the ensemble of {preset['members']} were trained once: their "
    "intervals are for the draw of the test examples alone. "
  )
  epochs = tables.counted(preset["epochs"], "epoch")
  large = f" (1600 units: {preset['large_epochs']})" if preset["large_epochs"] else ""
  return tables.Table(
    f"Goodfellow et al. 2015 on {dataset}: published and ours (%)",
    ["what", "published", "ours", "ours by seed", "difference"],
    rows,
    [
      f"Ours: {tables.interval_note(len(runs))} {tables.FAILED_NOTE} "
      f"{'' if dataset == 'cifar10' else once}"
      f"{runs[0]['examples']} test examples, {epochs}{large}; FGSM over l_inf "
      f"{RADII[dataset]:g} by every network's own loss, not clipped to the pixel box. "
      f"Published: {'CIFAR-10' if dataset == 'cifar10' else 'MNIST'}, recalled from the paper."
    ],
  )


def _row(what: str, published: float | None, ours: tables.Percent) -> dict[str, Any]:
  difference = math.nan if published is None else 100 * ours.mean - published
  return {
    "what": what,
    "published": "" if published is None else f"{published:g}",
    "ours": ours,
    "ours by seed": ours.by_seed(),
    "difference": "" if math.isnan(difference) else f"{difference:+.1f}",
  }


def _single(value: float, examples: int) -> tables.Percent:
  """Of what is measured once, without seeds."""
  return tables.Percent.of([value], examples)


def _logistic_rows(logistic: dict[str, Any]) -> list[dict[str, Any]]:
  plain, examples = logistic["adversary"], logistic["test"]
  return [
    _row(
      "logistic regression, 3 against 7: clean error", 1.6, _single(plain["clean"][0], examples)
    ),
    _row("... adversarial error", 99.0, _single(plain["adversarial"][0], examples)),
  ]


def _claims_table(measured: dict[str, Any]) -> tables.Table:
  listed = [
    *_claims_over_seeds(measured["seeds"]),
    *_claims_of_decay(measured["once"]["logistic"]),
    _claim_of_growth(measured["once"]["growth"]),
    *([_claim_of_ensemble(measured["ensemble"])] if "ensemble" in measured else []),
    Claim(
      "An MP-DBM has a high adversarial error too",
      "not tried: a generative model whose inference is not this library's subject",
      {"ours": "", claims.P: None},
    ),
  ]
  return claims.table(
    "What the paper claims",
    listed,
    ["claim", "ours", claims.P, claims.ANSWER],
    f"{claims.note(len(measured['seeds']))} Claims without a p are of what is measured once.",
  )


def _claims_over_seeds(runs: Seeds) -> list[Claim]:
  def values(of_seed: OfSeed) -> list[float]:
    return [math.nan if (v := of_seed(seed)) is None else v for seed in runs]

  def higher(claim: str, a: Share, b: Share, control: str = "") -> Claim:
    left, right = values(a.of), values(b.of)
    if np.isnan(left + right).any():
      return Claim(claim, "not measured: a net made no mistake", {"ours": ""})
    wrong = float(np.mean(values(_clean_error(control).of))) if control else 0.0
    if wrong > MOSTLY_WRONG:
      reason = f"not judged: the control has not learnt ({100 * wrong:.0f} % clean error)"
      return Claim(claim, reason, {"ours": ""})
    test = statistics.paired_t(left, right)
    return Claim(claim, test, {"ours": f"{100 * test.difference:+z.2f} points"})

  def beyond(claim: str, of_seed: OfSeed, limit: float) -> Claim:
    measured = values(of_seed)
    if np.isnan(measured).any():
      return Claim(claim, "not measured: no example was found", {"ours": ""})
    test = statistics.paired_t(measured, [limit] * len(runs))
    return Claim(claim, test, {"ours": f"{test.difference + limit:.3g}"})

  return [
    higher("Adversarial training lowers the clean error",
           _clean_error("maxout"), _clean_error("maxout_adversarial")),
    higher("It lowers the adversarial error",
           _adversarial_error("maxout"), _adversarial_error("maxout_adversarial")),
    higher("More than random signs do", _adversarial_error("maxout_signs"),
           _adversarial_error("maxout_adversarial"), "maxout_signs"),
    higher("More than uniform noise does", _adversarial_error("maxout_uniform"),
           _adversarial_error("maxout_adversarial"), "maxout_uniform"),
    higher("More than perturbing hidden layers does (perceptron)",
           _adversarial_error("mlp_hidden"), _adversarial_error("mlp_adversarial"), "mlp_hidden"),
    higher("RBF nets are less confident in their mistakes than softmax regression",
           _confidence("softmax"), _confidence("rbf")),
    beyond("Examples transfer between halves of the data: error above 50 %",
           _transfer_error("maxout_first_half", "maxout_second_half").of, 0.5),
    beyond("They transfer to another architecture, the perceptron: error above 50 %",
           _transfer_error("maxout", "mlp").of, 0.5),
    higher("Where both err, softmax makes maxout's mistakes more often than RBF does",
           _agreement("maxout", "softmax", "both"), _agreement("maxout", "rbf", "both")),
    beyond("Learnt weights resemble those of the linear classifier: mean cosine above 0.1",
           lambda seed: seed["similarity"]["maxout"], 0.1),
    beyond("Logits are piecewise linear along the perturbation: R^2 of two lines above 0.9",
           lambda seed: seed["swept"]["maxout"]["knee"], 0.9),
    beyond("The wrong class is stable: wrong at 9 of 10 radii from eps to 10",
           lambda seed: seed["swept"]["maxout"]["wrong_beyond_radius"], 0.9),
    beyond("A turn towards the gradient alone fools maxout: error above 50 % within 60 degrees",
           lambda seed: seed["turned"]["maxout"][-1], 0.5),
    beyond("L-BFGS examples of maxout fool other architectures (perceptron): error above 2 %",
           lambda seed: seed["minimal"]["maxout"]["error"]["mlp"], 0.02),
  ]  # fmt: skip


def _claims_of_decay(logistic: dict[str, Any]) -> list[Claim]:
  """Up to which strength either leaves a classifier that is right on 95 % of the training set."""
  strengths = np.asarray(logistic["strengths"])
  adversary, decay = (
    float(strengths[np.asarray(logistic[kind]["train_clean"]) < 0.05].max(initial=0.0))
    for kind in ("adversary", "decay")
  )
  at = int(np.argmin(np.abs(strengths - 0.25)))
  share = logistic["adversary"]["pull"][at] / strengths[at]
  return [
    Claim(
      "l_1 weight decay of the adversary's strength is too strong (logistic regression): "
      "the largest strength with a training error below 5 %, adversary against decay",
      adversary > decay,
      {"ours": f"{adversary:g} against {decay:g}"},
    ),
    Claim(
      "The adversary switches off once margins are won: its pull at 0.25, of decay's",
      bool(share < 0.5),
      {"ours": f"{100 * share:.1f} %"},
    ),
  ]


def _claim_of_growth(growth: dict[str, list[float]]) -> Claim:
  """Exponents of the two curves, by least squares on the logarithms."""
  n = np.log(measure.DIMENSIONS)
  worst, noise = (float(np.polyfit(n, np.log(growth[k]), 1)[0]) for k in ("worst", "noise"))
  return Claim(
    "The change of an activation grows as n^1, under noise as n^(1/2): exponents",
    abs(worst - 1) < 0.05 and abs(noise - 0.5) < 0.05,
    {"ours": f"{worst:.2f} and {noise:.2f}"},
  )


def _claim_of_ensemble(ensemble: dict[str, float]) -> Claim:
  whole, alone = ensemble["ensemble"], ensemble["member alone"]
  return Claim(
    "An ensemble resists little: attacked as one, its error is that of a member, at "
    "least less 10 points",
    whole > alone - 0.1,
    {"ours": f"{100 * whole:.1f} % against {100 * alone:.1f} %"},
  )


def _rubbish_table(runs: Seeds) -> tables.Table:
  names = [name for name in runs[0]["rubbish"] if name in ALL]
  columns = {"normal": "N(0, I)", "uniform": "uniform noise", "shuffled": "shuffled pixels"}
  rows = [
    {
      "net": ALL[name].words,
      **{title: _percent(_rubbish_rate(name, what), runs) for what, title in columns.items()},
    }
    for name in names
  ]
  return tables.Table(
    "Rubbish that is taken for a class, with a probability above a half (%)",
    ["net", *columns.values()],
    rows,
    [tables.interval_note(len(runs))],
  )


def figures_of_numbers(measured: dict[str, Any], results: Path) -> None:
  """Growth with the dimension, rotation, transfer, and adversary beside weight decay."""
  growth, runs = measured["once"]["growth"], measured["seeds"]
  explanation_figures.growth_with_dimension(
    measure.DIMENSIONS,
    np.asarray(growth["worst"]),
    np.asarray(growth["noise"]),
    results / "growth.png",
  )
  names = list(runs[0]["turned"])
  explanation_figures.error_against_angle(
    measure.ANGLES,
    {ALL[name].words: np.mean([seed["turned"][name] for seed in runs], axis=0) for name in names},
    results / "rotation.png",
  )
  labels = [name.replace("_", " ") for name in runs[0]["transfer"]["names"]]
  accuracy = np.mean([seed["transfer"]["accuracy"] for seed in runs], axis=0)
  explanation_figures.transfer_heat_map(accuracy, labels, labels, results / "transfer.png")
  logistic = measured["once"]["logistic"]
  titles = {"adversary": "adversary", "decay": "weight decay"}
  linear_figures.adversary_and_decay(
    np.asarray(logistic["strengths"]),
    {
      title: (np.asarray(logistic[kind]["clean"]), np.asarray(logistic[kind]["adversarial"]))
      for kind, title in titles.items()
    },
    {title: np.asarray(logistic[kind]["pull"]) for kind, title in titles.items()},
    results / "decay.png",
  )


def figures_of_nets(
  nets: dict[str, AttackedNet], x: Array, y: Array, radius: float, results: Path
) -> None:
  """Logits against eps, and slices, of the maxout network for one example of each of 6 classes."""
  labels = np.asarray(y)
  ids = np.array([np.flatnonzero(labels == k)[0] for k in np.unique(labels)[:6]])
  net, some = nets["maxout"], x[ids]
  direction = jnp.sign(gradient(net, some, y[ids]))
  z = explanations.epsilon_sweep(net.logits_fn, some, direction, jnp.asarray(measure.EPSILONS))
  explanation_figures.logits_against_epsilon(
    measure.EPSILONS, np.asarray(z), labels[ids], results / "epsilon_sweep.png"
  )
  classes, _ = measure.plane_slices(net, some[:4], y[ids][:4], 4 * radius, jax.random.key(0))
  explanation_figures.class_slices(
    classes,
    labels[ids][:4],
    4 * radius,
    int(z.shape[-1]),
    results / "slices.png",
    directions=("sign of the gradient", "random signs"),
  )


def figure_of_logistic(
  logistic: dict[str, Any], x: Array, y: Array, radius: float, results: Path
) -> None:
  """Weights, perturbation, 3s and 7s without and with it, as in the paper's figure 2."""
  images, labels = np.asarray(x)[..., 0], np.asarray(y)
  either = (labels == 3) | (labels == 7)
  shown, sevens = images[either][:16], labels[either][:16] == 7
  weights = np.asarray(logistic["weights"]).reshape(images.shape[1:])
  # Against a 7, whose score is positive, the perturbation is -sign(weights).
  delta = np.where(sevens, -1.0, 1.0)[:, None, None] * radius * np.sign(weights)
  plain = logistic["adversary"]
  explanation_figures.weights_and_examples(
    weights,
    -radius * np.sign(weights),
    shown,
    shown + delta,
    results / "logistic.png",
    errors=(plain["clean"][0], plain["adversarial"][0]),
  )
