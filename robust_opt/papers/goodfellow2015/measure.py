"""What Goodfellow et al. 2015 measure of the networks of one seed; JSON values.

  rates = error_rates(nets, x, y, radius)          # kind -> errors and confidences
  transfer = transfer_accuracy(nets, x, y, radius) # {"names": [...], "accuracy": [[...]]}

Errors and rates are shares in [0, 1]; a share of nothing is None.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.attacks import szegedy
from robust_opt.papers.goodfellow2015.nets import AttackedNet, ensemble, fgsm, gradient, logits
from robust_opt.sets import L2, projections
from robust_opt.theory import explanations
from robust_opt.theory.linear import decay
from robust_opt.types import Array

DIMENSIONS = (10, 30, 100, 300, 1000, 3000, 10_000)
STRENGTHS = (0.0, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
ANGLES = np.radians(np.linspace(0.0, 60.0, 25))
EPSILONS = np.linspace(-10.0, 10.0, 401)
_MAXOUT = ("maxout", "maxout_first_half", "maxout_second_half", "maxout_adversarial")
TRANSFER = ("softmax", "rbf", "mlp", *_MAXOUT)


def error_rates(
  nets: dict[str, AttackedNet], x: Array, y: Array, radius: float
) -> dict[str, dict[str, Any]]:
  """Clean and FGSM error of every network, and its confidence in wrong and in right answers."""

  def rates(net: AttackedNet, images: Array) -> dict[str, float | None]:
    p = losses.probabilities(logits(net, images), net.top)
    return _numbers(explanations.confidence_on_mistakes(p, y))

  return {
    name: {"clean": rates(net, x), "adversarial": rates(net, fgsm(net, x, y, radius))}
    for name, net in nets.items()
  }


def transfer_accuracy(
  nets: dict[str, AttackedNet], x: Array, y: Array, radius: float
) -> dict[str, Any]:
  """Accuracy of every network (column) on FGSM examples made against every network (row)."""
  names = [name for name in TRANSFER if name in nets]
  examples = [fgsm(nets[name], x, y, radius) for name in names]
  accuracy = explanations.transfer_matrix([nets[name].logits_fn for name in names], examples, y)
  return {"names": names, "accuracy": np.asarray(accuracy).tolist()}


def agreement(nets: dict[str, AttackedNet], x: Array, y: Array, radius: float) -> dict[str, Any]:
  """Whether others make the maxout network's mistakes on the examples made against it."""
  x_adv = fgsm(nets["maxout"], x, y, radius)
  names = ("maxout", "softmax", "rbf")
  predicted = {name: jnp.argmax(logits(nets[name], x_adv), axis=-1) for name in names}
  return {
    f"{a} {b}": _numbers(explanations.agreement_on_mistakes(predicted[a], predicted[b], y))
    for a, b in itertools.combinations(names, 2)
  }


def similarity(nets: dict[str, AttackedNet], x: Array) -> dict[str, float]:
  """Mean over classes of the cosine between a network's effective weights and softmax's."""
  weights_of = jax.jit(explanations.effective_weights)
  softmax = weights_of(nets["softmax"].logits_fn, x)
  out = {}
  for name in ("maxout", "mlp", "maxout_adversarial"):
    cosines = explanations.cosine_similarity(softmax, weights_of(nets[name].logits_fn, x))
    out[name] = float(jnp.mean(cosines))
  return out


def rubbish(nets: dict[str, AttackedNet], x: Array, key: Array) -> dict[str, dict[str, float]]:
  """Share of inputs of no class that get a class with a probability above a half."""
  keys, pixels = jax.random.split(key, 3), x.reshape(len(x), -1)
  shuffled = jax.random.permutation(keys[2], pixels, axis=1, independent=True)
  inputs = {
    "normal": jax.random.normal(keys[0], x.shape),
    "uniform": jax.random.uniform(keys[1], x.shape),
    "shuffled": shuffled.reshape(x.shape),
  }
  return {
    name: {
      what: float(explanations.rubbish_rate(losses.probabilities(logits(net, images), net.top)))
      for what, images in inputs.items()
    }
    for name, net in nets.items()
  }


def rotation_sweep(nets: dict[str, AttackedNet], x: Array, y: Array) -> dict[str, list[float]]:
  """Error under rotations towards the gradient, by the largest angle allowed, of ANGLES."""
  angles, smallest_angle = jnp.asarray(ANGLES, x.dtype), jax.jit(explanations.smallest_angle)
  out = {}
  for name in ("softmax", "maxout", "maxout_adversarial"):
    net = nets[name]
    smallest = smallest_angle(net.logits_fn, x, y, gradient(net, x, y), angles)
    out[name] = [float(jnp.mean(smallest <= angle)) for angle in angles]
  return out


def epsilon_sweep(net: AttackedNet, x: Array, y: Array, radius: float) -> dict[str, Any]:
  """How linear the logits are along x + eps sign(gradient), and where the class is wrong."""
  direction = jnp.sign(gradient(net, x, y))
  epsilons = jnp.asarray(EPSILONS, x.dtype)
  z = jax.jit(explanations.epsilon_sweep)(net.logits_fn, x, direction, epsilons)
  wrong = ~jax.vmap(losses.correct, (0, None))(z, y)
  beyond = epsilons >= radius
  near = np.abs(EPSILONS) <= 1.0
  fits = explanations.linearity(epsilons, z)
  within = explanations.linearity(epsilons[near], z[near])
  runs = explanations.intervals(wrong)
  step = float(EPSILONS[1] - EPSILONS[0])
  return {
    "knee": _number(jnp.nanmean(fits.knee)),
    "line": _number(jnp.nanmean(fits.line)),
    "knee_within_1": _number(jnp.nanmean(within.knee)),
    "runs": float(jnp.mean(runs.runs)),
    "longest": float(jnp.mean(runs.longest)) * step,
    "wrong_beyond_radius": float(jnp.mean(wrong[beyond])),
    "wrong_everywhere_beyond": float(jnp.mean(jnp.all(wrong[beyond], axis=0))),
  }


def plane_slices(
  net: AttackedNet, x: Array, y: Array, extent: float, key: Array
) -> tuple[np.ndarray, float | None]:
  """Classes on planes spanned by the sign of the gradient and by random signs, [B, R, R].

  Also the mean number of connected regions of a wrong class on a plane; None if there is none.
  """
  u = jnp.sign(gradient(net, x, y))
  v = jax.random.rademacher(key, x.shape, x.dtype)
  plane = jax.jit(explanations.plane, static_argnums=5)
  classes = np.asarray(plane(net.logits_fn, x, u, v, extent, 41))
  regions = [
    int(explanations.components(picture == k))
    for picture, label in zip(classes, np.asarray(y))
    for k in np.unique(picture)
    if k not in (-1, label)
  ]
  return classes, float(np.mean(regions)) if regions else None


def minimal(nets: dict[str, AttackedNet], x: Array, y: Array, num_steps: int) -> dict[str, Any]:
  """Szegedy's L-BFGS examples of two networks, and the error of all networks on them."""
  out: dict[str, Any] = {}
  keys = jax.random.split(jax.random.key(0), len(x))
  for source in ("maxout", "mlp"):
    attack = jax.jit(szegedy.szegedy(L2(math.inf, box=(0.0, 1.0)), num_steps=num_steps))
    result = attack(keys, nets[source].logits_fn, x, y)
    norm = jax.vmap(projections.l2_norm)(result.delta)
    usable = np.asarray(result.fooled & (norm > 0))  # 0: misclassified when clean
    images, labels = (x + result.delta)[usable], y[usable]
    out[source] = {
      "found": int(usable.sum()),
      "norm": _number(jnp.mean(norm[usable])),
      "error": {name: _error(nets[name], images, labels) for name in TRANSFER if name in nets},
    }
  return out


def _error(net: AttackedNet, x: Array, y: Array) -> float | None:
  """Share of the examples that are misclassified."""
  return float(1 - jnp.mean(losses.correct(logits(net, x), y))) if len(y) else None


def ensemble_errors(
  members: list[AttackedNet], x: Array, y: Array, radius: float
) -> dict[str, float | None]:
  """Error of an ensemble: clean, attacked as one, and on examples against its first member."""
  whole, x_member = ensemble(members), fgsm(members[0], x, y, radius)
  return {
    "clean": _error(whole, x, y),
    "ensemble": _error(whole, fgsm(whole, x, y, radius), y),
    "member": _error(whole, x_member, y),
    "member alone": _error(members[0], x_member, y),
  }


def activation_growth(key: Array, radius: float) -> dict[str, list[float]]:
  """The change of a linear activation against its number of inputs."""
  growth = explanations.activation_growth(key, DIMENSIONS, radius, trials=200)
  return {name: np.asarray(value).tolist() for name, value in growth._asdict().items()}


def logistic(
  train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], radius: float
) -> dict[str, Any]:
  """Logistic regression of 3 against 7: adversary and weight decay, at every strength."""
  (x, y), (test_x, test_y) = _three_or_seven(*train), _three_or_seven(*test)
  out: dict[str, Any] = {"train": len(y), "test": len(test_y), "strengths": list(STRENGTHS)}
  for kind in decay.KINDS:
    path = decay.logistic_path(x, y, jnp.array(STRENGTHS), kind)
    values = {
      "train_clean": decay.errors(path, x, y, 0.0),
      "clean": decay.errors(path, test_x, test_y, 0.0),
      "adversarial": decay.errors(path, test_x, test_y, radius),
      "norm": jnp.sum(jnp.abs(path.w), axis=1),
      "pull": path.pull,
    }
    out[kind] = {name: np.asarray(value).tolist() for name, value in values.items()}
    if kind == "adversary":
      out["weights"] = np.asarray(path.w[0]).tolist()
  return out


def _three_or_seven(images: np.ndarray, labels: np.ndarray) -> tuple[Array, Array]:
  either = (labels == 3) | (labels == 7)
  x = jnp.asarray(images[either]).reshape(int(either.sum()), -1)
  return x, jnp.where(jnp.asarray(labels[either]) == 7, 1.0, -1.0)


def _numbers(values: Any) -> dict[str, float | None]:
  """A NamedTuple of scalars as JSON numbers."""
  return {name: _number(value) for name, value in values._asdict().items()}


def _number(value: Any) -> float | None:
  """A JSON number, or None of what is not finite."""
  number = float(value)
  return number if math.isfinite(number) else None
