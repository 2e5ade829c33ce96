"""The tables, claims and figures of Goodfellow et al. 2015, from what was measured.

shown = tables_of(measured, "mnist", preset)     # {"numbers": Table, "claims": Table, ...}

What was measured of a seed is named by dotted keys, as "judged.maxout.clean.error".
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import statistics, tables
from robust_opt.experiments.config import flattened
from robust_opt.papers.goodfellow2015 import measure
from robust_opt.papers.goodfellow2015.nets import ALL, RADII, AttackedNet, gradient
from robust_opt.plots import explanations as explanation_figures
from robust_opt.plots import linear as linear_figures
from robust_opt.studies import accuracy, claims
from robust_opt.studies.claims import Claim
from robust_opt.theory import explanations
from robust_opt.types import Array

# Above this clean error a control has not learned, and says nothing about what it controls for.
MOSTLY_WRONG = 0.5
CONTROLS = ("maxout_signs", "maxout_uniform", "mlp_hidden")

Seeds = Sequence[dict[str, Any]]  # the shares of every seed

# (what, published in %, key); None: the paper has no number.
ROWS: list[tuple[str, float | None, str]] = [
  ("softmax regression: adversarial error", 99.9, "judged.softmax.adversarial.error"),
  ("... its confidence there", 79.3, "judged.softmax.adversarial.mistakes"),
  ("maxout: clean error", 0.94, "judged.maxout.clean.error"),
  ("... adversarial error", 89.4, "judged.maxout.adversarial.error"),
  ("... its confidence there", 97.6, "judged.maxout.adversarial.mistakes"),
  ("maxout trained adversarially: clean error", 0.84, "judged.maxout_adversarial.clean.error"),
  ("... adversarial error", 17.9, "judged.maxout_adversarial.adversarial.error"),
  ("... its confidence there", 81.4, "judged.maxout_adversarial.adversarial.mistakes"),
  ("examples of the plain net, on the one trained adversarially", 19.6,
   "transfer.maxout.maxout_adversarial"),
  ("the other way round", 40.9, "transfer.maxout_adversarial.maxout"),
  ("trained on random signs: adversarial error", 86.2, "judged.maxout_signs.adversarial.error"),
  ("... its confidence there", 97.3, "judged.maxout_signs.adversarial.mistakes"),
  ("trained on uniform noise: adversarial error", 90.4, "judged.maxout_uniform.adversarial.error"),
  ("... its confidence there", 97.8, "judged.maxout_uniform.adversarial.mistakes"),
  ("maxout of 1600 units: clean error", 1.14, "judged.maxout_large.clean.error"),
  ("... trained adversarially", 0.78, "judged.maxout_large_adversarial.clean.error"),
  ("... adversarial error", None, "judged.maxout_large_adversarial.adversarial.error"),
  ("shallow RBF: adversarial error", 55.4, "judged.rbf.adversarial.error"),
  ("... its confidence there", 1.2, "judged.rbf.adversarial.mistakes"),
  ("... its confidence where right on clean images", 60.6, "judged.rbf.clean.correct"),
  ("... clean error", None, "judged.rbf.clean.error"),
  ("RBF with a hidden layer: clean error", None, "judged.deep_rbf.clean.error"),
  ("... adversarial error", None, "judged.deep_rbf.adversarial.error"),
  ("maxout with sigmoids on top: adversarial error", None, "judged.sigmoid.adversarial.error"),
  ("where maxout errs, softmax predicts its class", 54.6, "agreement.maxout softmax.mistakes"),
  ("... RBF does", 16.0, "agreement.maxout rbf.mistakes"),
  ("... where both err: softmax", 84.6, "agreement.maxout softmax.both"),
  ("... where both err: RBF", 54.3, "agreement.maxout rbf.both"),
  ("where both err, RBF predicts softmax's class", 53.6, "agreement.softmax rbf.both"),
  ("N(0, I) taken for a class: maxout", 98.35, "rubbish.maxout.normal"),
  ("... maxout with sigmoids", 68.0, "rubbish.sigmoid.normal"),
  ("... softmax regression", 59.8, "rubbish.softmax.normal"),
  ("... RBF", 0.0, "rubbish.rbf.normal"),
  ("perceptron: adversarial error", None, "judged.mlp.adversarial.error"),
  ("... trained with the input perturbed", None, "judged.mlp_adversarial.adversarial.error"),
  ("... trained with hidden layers perturbed", None, "judged.mlp_hidden.adversarial.error"),
]  # fmt: skip
CIFAR_ROWS: list[tuple[str, float | None, str]] = [
  ("convolutional maxout: adversarial error", 87.15, "judged.conv_maxout.adversarial.error"),
  ("... its confidence there", 96.6, "judged.conv_maxout.adversarial.mistakes"),
  ("... clean error", None, "judged.conv_maxout.clean.error"),
]
ENSEMBLE_ROWS: list[tuple[str, float | None, str]] = [
  ("ensemble: clean error", None, "clean"),
  ("ensemble of maxout nets, attacked as one", 91.1, "ensemble"),
  ("... attacked through one member", 87.9, "member"),
]

# (claim, key of what is larger, key of what is smaller, or a limit).
CLAIMS: list[tuple[str, str, str | float]] = [
  ("Adversarial training lowers the clean error",
   "judged.maxout.clean.error", "judged.maxout_adversarial.clean.error"),
  ("It lowers the adversarial error",
   "judged.maxout.adversarial.error", "judged.maxout_adversarial.adversarial.error"),
  ("More than random signs do", "judged.maxout_signs.adversarial.error",
   "judged.maxout_adversarial.adversarial.error"),
  ("More than uniform noise does", "judged.maxout_uniform.adversarial.error",
   "judged.maxout_adversarial.adversarial.error"),
  ("More than perturbing hidden layers does (perceptron)", "judged.mlp_hidden.adversarial.error",
   "judged.mlp_adversarial.adversarial.error"),
  ("RBF nets are less confident in their mistakes than softmax regression",
   "judged.softmax.adversarial.mistakes", "judged.rbf.adversarial.mistakes"),
  ("Examples transfer between halves of the data: error above 50 %",
   "transfer.maxout_first_half.maxout_second_half", 0.5),
  ("They transfer to another architecture, the perceptron: error above 50 %",
   "transfer.maxout.mlp", 0.5),
  ("Where both err, softmax makes maxout's mistakes more often than RBF does",
   "agreement.maxout softmax.both", "agreement.maxout rbf.both"),
  ("Learnt weights resemble those of the linear classifier: mean cosine above 0.1",
   "similarity.maxout", 0.1),
  ("Logits are piecewise linear along the perturbation: R^2 of two lines above 0.9",
   "swept.maxout.knee", 0.9),
  ("The wrong class is stable: wrong at 9 of 10 radii from eps to 10",
   "swept.maxout.wrong_beyond_radius", 0.9),
  ("A turn towards the gradient alone fools maxout: error above 50 % within 60 degrees",
   "turned.maxout", 0.5),
  ("L-BFGS examples of maxout fool other architectures (perceptron): error above 2 %",
   "minimal.maxout.error.mlp", 0.02),
]  # fmt: skip


def tables_of(
  measured: dict[str, Any], dataset: str, preset: dict[str, Any]
) -> dict[str, tables.Table]:
  """The paper's numbers beside ours, and its claims."""
  runs = [_shares(seed) for seed in measured["seeds"]]
  shown = {"numbers": _numbers_table(measured, runs, dataset, preset)}
  if dataset != "cifar10":
    shown |= {"claims": _claims_table(measured, runs), "rubbish": _rubbish_table(runs)}
  return shown


def _shares(seed: dict[str, Any]) -> dict[str, Any]:
  """What was measured of a seed, by dotted keys; transfer as errors, rotation by 60 degrees."""
  shares = flattened(seed)
  names = shares.pop("transfer.names", [])
  pairs = itertools.product(names, names)
  rates = np.ravel(shares.pop("transfer.accuracy", [])).tolist()
  shares |= {f"transfer.{a}.{b}": 1 - rate for (a, b), rate in zip(pairs, rates, strict=True)}
  return {key: v[-1] if isinstance(v, list) else v for key, v in shares.items()}


def _images(seed: dict[str, Any], key: str) -> float:
  """The number of images that a share is a mean over."""
  group, _, what = key.rpartition(".")
  if group.startswith("agreement"):
    return seed[f"{group}.num_{what}"]
  if what in ("mistakes", "correct"):
    wrong = seed[f"{group}.error"]
    return seed["examples"] * (wrong if what == "mistakes" else 1 - wrong)
  return seed["examples"]


def _learned(seed: dict[str, Any], key: str) -> bool:
  """Whether all networks that the key names have."""
  nets = [word for word in re.split("[. ]", key) if word in ALL]
  right = [1 - seed[f"judged.{net}.clean.error"] for net in nets]
  return bool(statistics.has_learned(right, accuracy.NUM_CLASSES).all())


def _percent(key: str, runs: Seeds) -> tables.Percent | None:
  """Over the seeds that have this share; None if none has."""
  seeds = [seed for seed in runs if seed.get(key) is not None]
  if not seeds:
    return None
  examples = max(1, min(round(_images(seed, key)) for seed in seeds))
  # Means of float32 may exceed 1 by rounding.
  shares = [min(1.0, seed[key]) for seed in seeds]
  return tables.Percent.of(shares, examples, [_learned(seed, key) for seed in seeds])


def _numbers_table(
  measured: dict[str, Any], runs: Seeds, dataset: str, preset: dict[str, Any]
) -> tables.Table:
  cifar, examples = dataset == "cifar10", runs[0]["examples"]
  rows = [
    _row(what, published, ours)
    for what, published, key in (CIFAR_ROWS if cifar else ROWS)
    if (ours := _percent(key, runs)) is not None  # else not trained here
  ]
  if not cifar:
    logistic = measured["once"]["logistic"]
    clean, adversarial = (
      tables.Percent.of([logistic["adversary"][kind][0]], logistic["test"])
      for kind in ("clean", "adversarial")
    )
    rows = [
      _row("logistic regression, 3 against 7: clean error", 1.6, clean),
      _row("... adversarial error", 99.0, adversarial),
      *rows,
    ]
  for what, published, key in ENSEMBLE_ROWS if "ensemble" in measured else ():
    rows.append(_row(what, published, tables.Percent.of([measured["ensemble"][key]], examples)))
  once = (
    f"Logistic regression and the ensemble of {preset['members']} were trained once: their "
    "intervals are for the draw of the test examples alone. "
  )
  epochs = tables.counted(preset["epochs"], "epoch")
  large = f" (1600 units: {preset['large_epochs']})" if preset["large_epochs"] else ""
  note = (
    f"Ours: {tables.interval_note(len(runs))} {tables.FAILED_NOTE} {'' if cifar else once}"
    f"{examples} test examples, {epochs}{large}; FGSM over l_inf {RADII[dataset]:g} by every "
    "network's own loss, not clipped to the pixel box. "
    f"Published: {'CIFAR-10' if cifar else 'MNIST'}, recalled from the paper."
  )
  title = f"Goodfellow et al. 2015 on {dataset}: published and ours (%)"
  return tables.Table(title, list(rows[0]), rows, [note])


def _row(what: str, published: float | None, ours: tables.Percent) -> dict[str, Any]:
  difference = math.nan if published is None else 100 * ours.mean - published
  return {
    "what": what,
    "published": "" if published is None else f"{published:g}",
    "ours": ours,
    "ours by seed": ours.by_seed(),
    "difference": "" if math.isnan(difference) else f"{difference:+.1f}",
  }


def _claims_table(measured: dict[str, Any], runs: Seeds) -> tables.Table:
  listed = [_claim(runs, *claim) for claim in CLAIMS]
  listed += [
    Claim(claim, holds, {"ours": ours}) for claim, holds, ours in _claims_of_once(measured)
  ]
  untried = "not tried: a generative model whose inference is not this library's subject"
  cells = {"ours": "", claims.P: None}
  listed.append(Claim("An MP-DBM has a high adversarial error too", untried, cells))
  note = f"{claims.note(len(runs))} Claims without a p are of what is measured once."
  columns = ["claim", "ours", claims.P, claims.ANSWER]
  return claims.table("What the paper claims", listed, columns, note)


def _claim(runs: Seeds, claim: str, larger: str, smaller: str | float) -> Claim:
  """Decided by the seeds, unless a share is missing or the control has not learned."""
  limit, control = isinstance(smaller, float), larger.split(".")[1]
  left: list[Any] = [seed.get(larger) for seed in runs]
  right: list[Any] = [smaller if isinstance(smaller, float) else seed.get(smaller) for seed in runs]
  if None in left + right:
    reason = "no example was found" if limit else "a net made no mistake"
    return Claim(claim, f"not measured: {reason}", {"ours": ""})
  if control in CONTROLS:
    wrong = np.mean([seed[f"judged.{control}.clean.error"] for seed in runs])
    if wrong > MOSTLY_WRONG:
      reason = f"not judged: the control has not learnt ({100 * wrong:.0f} % clean error)"
      return Claim(claim, reason, {"ours": ""})
  test = statistics.paired_t(left, right)
  difference = f"{100 * test.difference:+z.2f} points"
  return Claim(claim, test, {"ours": f"{np.mean(left):.3g}" if limit else difference})


def _claims_of_once(measured: dict[str, Any]) -> Iterator[tuple[str, bool, str]]:
  """Of what is measured once, without a test: the claim, whether it holds, and our numbers."""
  logistic, growth = measured["once"]["logistic"], measured["once"]["growth"]
  strengths = np.asarray(logistic["strengths"])
  # Up to which strength either leaves a classifier that is right on 95 % of the training set.
  adversary, decay = (
    float(strengths[np.asarray(logistic[kind]["train_clean"]) < 0.05].max(initial=0.0))
    for kind in ("adversary", "decay")
  )
  yield (
    "l_1 weight decay of the adversary's strength is too strong (logistic regression): "
    "the largest strength with a training error below 5 %, adversary against decay",
    adversary > decay,
    f"{adversary:g} against {decay:g}",
  )
  at = int(np.argmin(np.abs(strengths - 0.25)))
  share = logistic["adversary"]["pull"][at] / strengths[at]
  claim = "The adversary switches off once margins are won: its pull at 0.25, of decay's"
  yield claim, bool(share < 0.5), f"{100 * share:.1f} %"
  # Exponents of the two curves, by least squares on the logarithms.
  n = np.log(measure.DIMENSIONS)
  worst, noise = (float(np.polyfit(n, np.log(growth[k]), 1)[0]) for k in ("worst", "noise"))
  claim = "The change of an activation grows as n^1, under noise as n^(1/2): exponents"
  holds = abs(worst - 1) < 0.05 and abs(noise - 0.5) < 0.05
  yield claim, holds, f"{worst:.2f} and {noise:.2f}"
  if "ensemble" in measured:
    whole, alone = (measured["ensemble"][key] for key in ("ensemble", "member alone"))
    yield (
      "An ensemble resists little: attacked as one, its error is that of a member, at "
      "least less 10 points",
      whole > alone - 0.1,
      f"{100 * whole:.1f} % against {100 * alone:.1f} %",
    )


def _rubbish_table(runs: Seeds) -> tables.Table:
  columns = {"normal": "N(0, I)", "uniform": "uniform noise", "shuffled": "shuffled pixels"}
  rows = [
    {"net": kind.words}
    | {title: _percent(f"rubbish.{name}.{what}", runs) for what, title in columns.items()}
    for name, kind in ALL.items()
    if f"rubbish.{name}.normal" in runs[0]
  ]
  title = "Rubbish that is taken for a class, with a probability above a half (%)"
  return tables.Table(title, list(rows[0]), rows, [tables.interval_note(len(runs))])


def figures_of_numbers(measured: dict[str, Any], results: Path) -> None:
  """Growth with the dimension, rotation, transfer, and adversary beside weight decay."""
  growth, logistic = measured["once"]["growth"], measured["once"]["logistic"]
  runs = measured["seeds"]
  explanation_figures.growth_with_dimension(
    measure.DIMENSIONS, growth["worst"], growth["noise"], results / "growth.png"
  )
  errors = {
    ALL[name].words: np.mean([seed["turned"][name] for seed in runs], axis=0)
    for name in runs[0]["turned"]
  }
  explanation_figures.error_against_angle(measure.ANGLES, errors, results / "rotation.png")
  labels = [name.replace("_", " ") for name in runs[0]["transfer"]["names"]]
  rates = np.mean([seed["transfer"]["accuracy"] for seed in runs], axis=0)
  explanation_figures.transfer_heat_map(rates, labels, labels, results / "transfer.png")
  kinds = {"adversary": logistic["adversary"], "weight decay": logistic["decay"]}
  linear_figures.adversary_and_decay(
    np.asarray(logistic["strengths"]),
    {title: (np.asarray(kind["clean"]), np.asarray(kind["adversarial"]))
     for title, kind in kinds.items()},
    {title: np.asarray(kind["pull"]) for title, kind in kinds.items()},
    results / "decay.png",
  )  # fmt: skip


def figures_of_nets(
  nets: dict[str, AttackedNet], x: Array, y: Array, radius: float, results: Path
) -> None:
  """Logits against eps, and slices, of the maxout network for one example of each of 6 classes."""
  labels = np.asarray(y)
  ids = np.array([np.flatnonzero(labels == k)[0] for k in np.unique(labels)[:6]])
  net, some, labels = nets["maxout"], x[ids], labels[ids]
  direction = jnp.sign(gradient(net, some, y[ids]))
  z = explanations.epsilon_sweep(net.logits_fn, some, direction, jnp.asarray(measure.EPSILONS))
  explanation_figures.logits_against_epsilon(
    measure.EPSILONS, np.asarray(z), labels, results / "epsilon_sweep.png"
  )
  classes, _ = measure.plane_slices(net, some[:4], y[ids][:4], 4 * radius, jax.random.key(0))
  directions = ("sign of the gradient", "random signs")
  explanation_figures.class_slices(
    classes, labels[:4], 4 * radius, z.shape[-1], results / "slices.png", directions=directions
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
  against_7 = -radius * np.sign(weights)
  perturbed = shown + np.where(sevens, 1.0, -1.0)[:, None, None] * against_7
  errors = logistic["adversary"]["clean"][0], logistic["adversary"]["adversarial"][0]
  explanation_figures.weights_and_examples(
    weights, against_7, shown, perturbed, results / "logistic.png", errors
  )
