"""The tables and figures of Goodfellow et al. 2015 from what was measured; nothing is trained here.

shown = tables_of(found, "mnist", numbers)     # {"numbers": ..., "claims": ..., ...}
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import statistics, tables
from robust_opt.papers.goodfellow2015 import parts as parts
from robust_opt.papers.goodfellow2015.nets import ALL, RADII, Net, gradient
from robust_opt.plots import explanations as explanation_figures
from robust_opt.plots import linear as linear_figures
from robust_opt.statistics import PairedTest
from robust_opt.theory import explanations
from robust_opt.types import Array

NUM_CLASSES = 10  # of every data set here
# Above this clean error a net has not learnt, and what is measured of it says nothing.
MOSTLY_WRONG = 0.5

Seeds = Sequence[dict[str, Any]]
OfSeed = Callable[[dict[str, Any]], float | None]  # what was measured of a seed -> a share


class Share(NamedTuple):
  """A share that is measured of each seed.

  Attributes:
    of: of a seed; None where there is none.
    among: how many images it is a mean over.
    nets: the kinds of nets it is measured on.
  """

  of: OfSeed
  among: Callable[[dict[str, Any]], float]
  nets: tuple[str, ...]


def _examples(seed: dict[str, Any]) -> float:
  return seed["examples"]


def _judged(kind: str, images: str, what: str) -> Share:
  """The error of a kind of net, or its confidence, on clean or adversarial images."""

  def of(seed: dict[str, Any]) -> float | None:
    return seed["judged"][kind][images][what] if kind in seed["judged"] else None

  def among(seed: dict[str, Any]) -> float:
    wrong = seed["judged"][kind][images]["error"]
    return seed["examples"] * {"error": 1, "mistakes": wrong, "correct": 1 - wrong}[what]

  return Share(of, among, (kind,))


def _wrong(kind: str) -> Share:
  """Clean error."""
  return _judged(kind, "clean", "error")


def _fooled(kind: str) -> Share:
  """Error on the net's own FGSM examples."""
  return _judged(kind, "adversarial", "error")


def _sure(kind: str) -> Share:
  """Confidence in the mistakes that FGSM makes it make."""
  return _judged(kind, "adversarial", "mistakes")


def _transfer(source: str, target: str) -> Share:
  """Error of the target on what was made against the source."""

  def error(seed: dict[str, Any]) -> float:
    names = seed["transfer"]["names"]
    return 1 - seed["transfer"]["accuracy"][names.index(source)][names.index(target)]

  return Share(error, _examples, (source, target))


def _agrees(pair: str, among: str) -> Share:
  return Share(
    lambda seed: seed["agreement"][pair][among],
    lambda seed: seed["agreement"][pair][f"num_{among}"],
    tuple(pair.split()),
  )


def _taken(kind: str, what: str) -> Share:
  return Share(lambda seed: seed["rubbish"][kind][what], _examples, (kind,))


def _learned(seed: dict[str, Any], nets: Sequence[str]) -> bool:
  errors = np.array([seed["judged"][net]["clean"]["error"] for net in nets])
  return bool(statistics.has_learned(1 - errors, NUM_CLASSES).all())


def _percent(share: Share, runs: Seeds) -> tables.Percent | None:
  """Over the seeds that have it; None if no seed has."""
  measured = [(seed, value) for seed in runs if (value := share.of(seed)) is not None]
  if not measured:
    return None
  examples = max(1, min(round(share.among(seed)) for seed, _ in measured))
  learned = [_learned(seed, share.nets) for seed, _ in measured]
  # Means of float32 may exceed 1 by rounding.
  return tables.Percent.of([min(1.0, value) for _, value in measured], examples, learned)


# (what, published in %, of one seed); None: the paper has no number.
ROWS: list[tuple[str, float | None, Share]] = [
  ("softmax regression: adversarial error", 99.9, _fooled("softmax")),
  ("... its confidence there", 79.3, _sure("softmax")),
  ("maxout: clean error", 0.94, _wrong("maxout")),
  ("... adversarial error", 89.4, _fooled("maxout")),
  ("... its confidence there", 97.6, _sure("maxout")),
  ("maxout trained adversarially: clean error", 0.84, _wrong("maxout_adversarial")),
  ("... adversarial error", 17.9, _fooled("maxout_adversarial")),
  ("... its confidence there", 81.4, _sure("maxout_adversarial")),
  ("examples of the plain net, on the one trained adversarially", 19.6,
   _transfer("maxout", "maxout_adversarial")),
  ("the other way round", 40.9, _transfer("maxout_adversarial", "maxout")),
  ("trained on random signs: adversarial error", 86.2, _fooled("maxout_signs")),
  ("... its confidence there", 97.3, _sure("maxout_signs")),
  ("trained on uniform noise: adversarial error", 90.4, _fooled("maxout_uniform")),
  ("... its confidence there", 97.8, _sure("maxout_uniform")),
  ("maxout of 1600 units: clean error", 1.14, _wrong("maxout_large")),
  ("... trained adversarially", 0.78, _wrong("maxout_large_adversarial")),
  ("... adversarial error", None, _fooled("maxout_large_adversarial")),
  ("shallow RBF: adversarial error", 55.4, _fooled("rbf")),
  ("... its confidence there", 1.2, _sure("rbf")),
  ("... its confidence where right on clean images", 60.6, _judged("rbf", "clean", "correct")),
  ("... clean error", None, _wrong("rbf")),
  ("RBF with a hidden layer: clean error", None, _wrong("deep_rbf")),
  ("... adversarial error", None, _fooled("deep_rbf")),
  ("maxout with sigmoids on top: adversarial error", None, _fooled("sigmoid")),
  ("where maxout errs, softmax predicts its class", 54.6, _agrees("maxout softmax", "mistakes")),
  ("... RBF does", 16.0, _agrees("maxout rbf", "mistakes")),
  ("... where both err: softmax", 84.6, _agrees("maxout softmax", "both")),
  ("... where both err: RBF", 54.3, _agrees("maxout rbf", "both")),
  ("where both err, RBF predicts softmax's class", 53.6, _agrees("softmax rbf", "both")),
  ("N(0, I) taken for a class: maxout", 98.35, _taken("maxout", "normal")),
  ("... maxout with sigmoids", 68.0, _taken("sigmoid", "normal")),
  ("... softmax regression", 59.8, _taken("softmax", "normal")),
  ("... RBF", 0.0, _taken("rbf", "normal")),
  ("perceptron: adversarial error", None, _fooled("mlp")),
  ("... trained with the input perturbed", None, _fooled("mlp_adversarial")),
  ("... trained with hidden layers perturbed", None, _fooled("mlp_hidden")),
]  # fmt: skip


def tables_of(
  found: dict[str, Any], dataset: str, numbers: dict[str, Any]
) -> dict[str, tables.Table]:
  """The paper's numbers beside ours, and its claims."""
  shown = {"numbers": _numbers(found, dataset, numbers)}
  if dataset != "cifar10":
    shown["claims"] = _claims(found)
    shown["rubbish"] = _rubbish(found["seeds"])
  return shown


def _numbers(found: dict[str, Any], dataset: str, numbers: dict[str, Any]) -> tables.Table:
  runs, rows = found["seeds"], []
  if dataset == "cifar10":
    listed = [
      ("convolutional maxout: adversarial error", 87.15, _fooled("conv_maxout")),
      ("... its confidence there", 96.6, _sure("conv_maxout")),
      ("... clean error", None, _wrong("conv_maxout")),
    ]  # fmt: skip
  else:
    rows += _of_logistic(found["once"]["logistic"])
    listed = ROWS
  for what, published, share in listed:
    ours = _percent(share, runs)
    if ours is not None:  # else not trained here
      rows.append(_row(what, published, ours))
  if "ensemble" in found:
    for what, key, published in (
      ("ensemble: clean error", "clean", None),
      ("ensemble of maxout nets, attacked as one", "ensemble", 91.1),
      ("... attacked through one member", "member", 87.9),
    ):
      rows.append(_row(what, published, _once(found["ensemble"][key], runs[0]["examples"])))
  once = (
    f"Logistic regression and the ensemble of {numbers['members']} were trained once: their "
    "intervals are for the draw of the test examples alone. "
  )
  epochs = tables.counted(numbers["epochs"], "epoch")
  large = f" (1600 units: {numbers['large_epochs']})" if numbers["large_epochs"] else ""
  return tables.Table(
    f"Goodfellow et al. 2015 on {dataset}: published and ours (%)",
    ["what", "published", "ours", "ours by seed", "difference"],
    rows,
    [
      f"Ours: {tables.interval_note(len(runs))} {tables.FAILED_NOTE} "
      f"{'' if dataset == 'cifar10' else once}"
      f"{runs[0]['examples']} test examples, {epochs}{large}; FGSM over l_inf "
      f"{RADII[dataset]:g} by every net's own loss, not cut to the pixel box. "
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


def _once(value: float, examples: int) -> tables.Percent:
  """Of what has no seed."""
  return tables.Percent.of([value], examples)


def _of_logistic(logistic: dict[str, Any]) -> list[dict[str, Any]]:
  plain, examples = logistic["adversary"], logistic["test"]
  return [
    _row("logistic regression, 3 against 7: clean error", 1.6, _once(plain["clean"][0], examples)),
    _row("... adversarial error", 99.0, _once(plain["adversarial"][0], examples)),
  ]


def _claims(found: dict[str, Any]) -> tables.Table:
  runs = found["seeds"]

  def values(of_seed: OfSeed) -> list[float]:
    return [math.nan if (v := of_seed(seed)) is None else v for seed in runs]

  def against(a: Share, b: Share, control: str = "") -> tuple[str, PairedTest | str]:
    left, right = values(a.of), values(b.of)
    if np.isnan(left + right).any():
      return "", "not measured: a net made no mistake"
    wrong = float(np.mean(values(_wrong(control).of))) if control else 0.0
    if wrong > MOSTLY_WRONG:
      return "", f"not judged: the control has not learnt ({100 * wrong:.0f} % clean error)"
    test = statistics.paired_t(left, right)
    return f"{100 * test.difference:+z.2f} points", test

  def beyond(of_seed: OfSeed, limit: float) -> tuple[str, PairedTest | str]:
    found = values(of_seed)
    if np.isnan(found).any():
      return "", "not measured: no example was found"
    test = statistics.paired_t(found, [limit] * len(runs))
    return f"{test.difference + limit:.3g}", test

  rows = [
    ("Adversarial training lowers the clean error", *against(
      _wrong("maxout"), _wrong("maxout_adversarial"))),
    ("It lowers the adversarial error", *against(
      _fooled("maxout"), _fooled("maxout_adversarial"))),
    ("More than random signs do", *against(
      _fooled("maxout_signs"), _fooled("maxout_adversarial"), "maxout_signs")),
    ("More than uniform noise does", *against(
      _fooled("maxout_uniform"), _fooled("maxout_adversarial"), "maxout_uniform")),
    ("More than perturbing hidden layers does (perceptron)", *against(
      _fooled("mlp_hidden"), _fooled("mlp_adversarial"), "mlp_hidden")),
    ("RBF nets are less confident in their mistakes than softmax regression", *against(
      _sure("softmax"), _sure("rbf"))),
    ("Examples transfer between halves of the data: error above 50 %", *beyond(
      _transfer("maxout_first_half", "maxout_second_half").of, 0.5)),
    ("They transfer to another architecture, the perceptron: error above 50 %", *beyond(
      _transfer("maxout", "mlp").of, 0.5)),
    ("Where both err, softmax makes maxout's mistakes more often than RBF does", *against(
      _agrees("maxout softmax", "both"), _agrees("maxout rbf", "both"))),
    ("Learnt weights resemble those of the linear classifier: mean cosine above 0.1", *beyond(
      lambda seed: seed["similarity"]["maxout"], 0.1)),
    ("Logits are piecewise linear along the perturbation: R^2 of two lines above 0.9", *beyond(
      lambda seed: seed["swept"]["maxout"]["knee"], 0.9)),
    ("The wrong class is stable: wrong at 9 of 10 radii from eps to 10", *beyond(
      lambda seed: seed["swept"]["maxout"]["wrong_beyond_radius"], 0.9)),
    ("A turn towards the gradient alone fools maxout: error above 50 % within 60 degrees", *beyond(
      lambda seed: seed["turned"]["maxout"][-1], 0.5)),
    ("L-BFGS examples of maxout fool other architectures (perceptron): error above 2 %", *beyond(
      lambda seed: seed["minimal"]["maxout"]["error"]["mlp"], 0.02)),
  ]  # fmt: skip
  listed = [
    {
      "claim": claim,
      "ours": ours,
      "p (Holm)": tables.p_value(verdict.p),
      "holds here": verdict.answer,
    }
    for (claim, ours, _), verdict in zip(rows, statistics.verdicts([test for *_, test in rows]))
  ]
  listed += _claims_of_decay(found["once"]["logistic"]) + _claims_of_growth(found["once"]["growth"])
  if "ensemble" in found:
    whole, alone = found["ensemble"]["ensemble"], found["ensemble"]["member alone"]
    listed.append(
      {
        "claim": "An ensemble resists little: attacked as one, its error is that of a member, at "
        "least less 10 points",
        "ours": f"{100 * whole:.1f} % against {100 * alone:.1f} %",
        "holds here": "yes" if whole > alone - 0.1 else "no",
      }
    )
  listed.append(
    {
      "claim": "An MP-DBM has a high adversarial error too",
      "ours": "",
      "holds here": "not tried: a generative model whose inference is not this library's subject",
    }
  )
  return tables.Table(
    "What the paper claims",
    ["claim", "ours", "p (Holm)", "holds here"],
    listed,
    [f"{tables.claims_note(len(runs))} Claims without a p are of what is measured once."],
  )


def _claims_of_decay(logistic: dict[str, Any]) -> list[dict[str, Any]]:
  """Up to which strength either leaves a classifier that is right on 95 % of the training set."""
  strengths = np.asarray(logistic["strengths"])
  last = {
    kind: float(strengths[np.asarray(logistic[kind]["train_clean"]) < 0.05].max(initial=0.0))
    for kind in ("adversary", "decay")
  }
  at = int(np.argmin(np.abs(strengths - 0.25)))
  share = logistic["adversary"]["pull"][at] / strengths[at]
  return [
    {
      "claim": "l_1 weight decay of the adversary's strength is too strong (logistic regression): "
      "the largest strength with a training error below 5 %, adversary against decay",
      "ours": f"{last['adversary']:g} against {last['decay']:g}",
      "holds here": "yes" if last["adversary"] > last["decay"] else "no",
    },
    {
      "claim": "The adversary switches off once margins are won: its pull at 0.25, of decay's",
      "ours": f"{100 * share:.1f} %",
      "holds here": "yes" if share < 0.5 else "no",
    },
  ]


def _claims_of_growth(growth: dict[str, list[float]]) -> list[dict[str, Any]]:
  """Exponents of the two curves, by least squares on the logarithms."""
  n = np.log(parts.DIMENSIONS)
  worst, noise = (float(np.polyfit(n, np.log(growth[k]), 1)[0]) for k in ("worst", "noise"))
  holds = abs(worst - 1) < 0.05 and abs(noise - 0.5) < 0.05
  return [
    {
      "claim": "The change of an activation grows as n^1, under noise as n^(1/2): exponents",
      "ours": f"{worst:.2f} and {noise:.2f}",
      "holds here": "yes" if holds else "no",
    }
  ]


def _rubbish(runs: Seeds) -> tables.Table:
  names = [name for name in runs[0]["rubbish"] if name in ALL]
  columns = {"normal": "N(0, I)", "uniform": "uniform noise", "shuffled": "shuffled pixels"}
  rows = [
    {
      "net": ALL[name].words,
      **{title: _percent(_taken(name, what), runs) for what, title in columns.items()},
    }
    for name in names
  ]
  return tables.Table(
    "Rubbish that is taken for a class, with a probability above a half (%)",
    ["net", *columns.values()],
    rows,
    [tables.interval_note(len(runs))],
  )


def figures_of(found: dict[str, Any], results: Path) -> None:
  """Those of numbers alone."""
  growth, runs = found["once"]["growth"], found["seeds"]
  explanation_figures.growth_with_dimension(
    parts.DIMENSIONS,
    np.asarray(growth["worst"]),
    np.asarray(growth["noise"]),
    results / "growth.png",
  )
  names = list(runs[0]["turned"])
  explanation_figures.error_against_angle(
    parts.ANGLES,
    {ALL[name].words: np.mean([seed["turned"][name] for seed in runs], axis=0) for name in names},
    results / "rotation.png",
  )
  labels = [name.replace("_", " ") for name in runs[0]["transfer"]["names"]]
  accuracy = np.mean([seed["transfer"]["accuracy"] for seed in runs], axis=0)
  explanation_figures.transfer_heat_map(accuracy, labels, labels, results / "transfer.png")
  logistic = found["once"]["logistic"]
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


def figures_of_nets(nets: dict[str, Net], x: Array, y: Array, radius: float, results: Path) -> None:
  """The sweep of eps and the slices, of the maxout net and one example of each of six classes."""
  labels = np.asarray(y)
  chosen = np.array([np.flatnonzero(labels == k)[0] for k in np.unique(labels)[:6]])
  net, some = nets["maxout"], x[chosen]
  direction = jnp.sign(gradient(net, some, y[chosen]))
  z = explanations.epsilon_sweep(net.logits_fn, some, direction, jnp.asarray(parts.EPSILONS))
  explanation_figures.logits_against_epsilon(
    parts.EPSILONS, np.asarray(z), labels[chosen], results / "epsilon_sweep.png"
  )
  classes, _ = parts.sliced(net, some[:4], y[chosen][:4], 4 * radius, jax.random.key(0))
  explanation_figures.class_slices(
    classes,
    labels[chosen][:4],
    4 * radius,
    int(z.shape[-1]),
    results / "slices.png",
    directions=("sign of the gradient", "random signs"),
  )


def figure_of_logistic(
  weights: np.ndarray,
  x: Array,
  y: Array,
  logistic: dict[str, Any],
  radius: float,
  results: Path,
) -> None:
  """Weights, perturbation, 3s and 7s without and with it, as in the paper's figure 2."""
  images, labels = np.asarray(x)[..., 0], np.asarray(y)
  shown = images[(labels == 3) | (labels == 7)][:16]
  sevens = labels[(labels == 3) | (labels == 7)][:16] == 7
  # Against a 7, whose score is positive, the perturbation goes down the weights.
  towards = np.where(sevens, -1.0, 1.0)[:, None, None] * radius * np.sign(weights)
  plain = logistic["adversary"]
  explanation_figures.weights_and_examples(
    weights,
    -radius * np.sign(weights),
    shown,
    shown + towards,
    results / "logistic.png",
    errors=(plain["clean"][0], plain["adversarial"][0]),
  )
