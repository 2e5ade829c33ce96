"""Randomized smoothing: turns any classifier into one that is provably robust in l_2.

  keys = jax.random.split(key, x.shape[0])
  prediction, radius = certify_smoothed(keys, logits_fn, x, sigma=0.25)
  certified_accuracy = np.mean((prediction == y) & (radius > 0.5))

The certificate holds for ANOTHER classifier, not for logits_fn but for the smoothed

  g(x) = the class that argmax logits_fn(x + sigma * noise) takes most often, noise ~ N(0, I),

with probability at least 1 - alpha over the drawn noise, for each example separately. A net that
was not trained with noise of that sigma rarely gets a large radius. Source: Cohen, Rosenfeld and
Kolter 2019 (arXiv 1902.02918), theorem 1 and algorithm CERTIFY (section 3.2.2).
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # which imports scipy.special when it is first used

from robust_opt import losses
from robust_opt.certificates.exact import check_precision
from robust_opt.errors import InputError
from robust_opt.evaluation import network
from robust_opt.keys import per_example
from robust_opt.precision import check_floating
from robust_opt.types import Array, LogitsFn

ABSTAIN = -1


class SmoothedCertificate(NamedTuple):
  """Certificates for the smoothed classifier, which predicts the same class within the radius."""

  prediction: Array  # [B] int32, or -1 where it abstains
  radius: Array  # [B] float32, in l_2 and the units of x; 0 where it abstains


def certify_smoothed(
  keys: Array,
  logits_fn: LogitsFn,
  x: Array,
  sigma: float,
  n0: int = 100,
  n: int = 10_000,
  alpha: float = 0.001,
  at_once: int = 64,
) -> SmoothedCertificate:
  """CERTIFY of Cohen et al. 2019 for every example of a batch.

    class:   the most frequent class of n0 noisy copies
    p:       the Clopper-Pearson lower bound, at level alpha, of its probability, from n more copies
    radius:  sigma * Phi^-1(p) if p > 1/2; otherwise abstain

  The radius is at most sigma * Phi^-1(alpha^(1/n)), 3.20 sigma by default. Copies whose logits are
  not finite count for no class. This function cannot be traced; class_counts can.

  Args:
    keys: [B], or one key; with keys [B], a result depends only on the example and its key.
    logits_fn: x [B, *S] -> logits [B, C], of any floating type; compiled once per shape,
      and again if weights that it closes over have changed; those of a module are arguments.
    x: [B, *S], pixels in [0, 1], float32 or float64; the noisy copies leave the box.
    sigma: standard deviation of the noise, in the units of x, > 0.
    n0: noisy copies for the guess of the class.
    n: noisy copies for the bound of its probability.
    alpha: the probability that a certificate is wrong, for each example; in (0, 1).
    at_once: noisy copies of the batch per call of logits_fn; does not change the result.

  Raises:
    InputError: sigma, alpha or a number of copies out of range, an n so small that every
      certificate would abstain, images that are not float32 or float64, or logits that are not
      floating point or have one class.
  """
  if not sigma > 0:
    raise InputError(f"sigma must be > 0, but was {sigma}.")
  if not 0 < alpha < 1:
    raise InputError(f"alpha must lie in (0, 1), but was {alpha}.")
  for name, number in (("n0", n0), ("n", n), ("at_once", at_once)):
    if number < 1:
      raise InputError(f"{name} must be at least 1, but was {number}.")
  least = math.floor(-math.log2(alpha)) + 1
  if n < least:
    raise InputError(
      f"n must be at least {least} for alpha={alpha}, but was {n}: even if all copies agree, fewer "
      "do not prove that their class has more than half of the probability."
    )
  # Independent noise: the bound must not reuse the copies of the guess.
  both = jax.vmap(jax.random.split)(per_example(keys, x.shape[0]))
  guess_keys, bound_keys = jnp.moveaxis(both, 1, 0)
  net = network.as_argument(logits_fn, x)
  guess = np.argmax(_class_counts(guess_keys, net, x, sigma, n0, at_once), axis=-1)
  counts = np.asarray(_class_counts(bound_keys, net, x, sigma, n, at_once))
  p = lower_confidence_bound(np.take_along_axis(counts, guess[:, None], -1)[:, 0], n, alpha)
  abstains = p <= 0.5
  radius = np.where(abstains, 0.0, sigma * scipy.special.ndtri(np.where(abstains, 0.5, p)))
  prediction = np.where(abstains, ABSTAIN, guess)
  return SmoothedCertificate(jnp.asarray(prediction, jnp.int32), jnp.asarray(radius, jnp.float32))


def class_counts(
  keys: Array, logits_fn: LogitsFn, x: Array, sigma: float, num_copies: int, at_once: int = 64
) -> Array:
  """The number of noisy copies of each example in each class, [B, C] int32.

  The noise of copy t of example i is drawn from fold_in(keys[i], t).
  """
  keys = per_example(keys, x.shape[0])
  chex.assert_shape(keys, (x.shape[0],))
  check_precision(x)
  logits = jax.eval_shape(logits_fn, x)
  check_floating(logits, "The net's logits")
  losses.check_classes(logits)
  num_classes = logits.shape[-1]

  @functools.partial(jax.vmap, in_axes=(None, 0))
  def noise(copy: Array, key: Array) -> Array:
    return jax.random.normal(jax.random.fold_in(key, copy), x.shape[1:], x.dtype)

  def count(counts: Array, first: Array) -> tuple[Array, None]:
    copies = first + jnp.arange(at_once)
    noisy = x + jnp.asarray(sigma, x.dtype) * jax.vmap(noise, in_axes=(0, None))(copies, keys)
    logits = logits_fn(noisy.reshape(-1, *x.shape[1:])).reshape(at_once, -1, num_classes)
    valid = jnp.all(jnp.isfinite(logits), axis=-1) & (copies < num_copies)[:, None]
    votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), num_classes, dtype=jnp.int32)
    return counts + jnp.sum(votes * valid[..., None], axis=0), None

  start = jnp.zeros((x.shape[0], num_classes), jnp.int32)
  counts, _ = jax.lax.scan(count, start, jnp.arange(0, num_copies, at_once))
  return counts


_class_counts = jax.jit(class_counts, static_argnames=("num_copies", "at_once"))


def lower_confidence_bound(successes: np.ndarray, trials: int, alpha: float) -> np.ndarray:
  """The p with P(Binomial(trials, p) >= successes) = alpha; 0 without successes.

  Source: Clopper and Pearson (1934), one-sided, by the quantile of a beta distribution.
  """
  successes = np.asarray(successes)
  some = np.maximum(successes, 1)
  return np.where(successes > 0, scipy.special.betaincinv(some, trials - some + 1, alpha), 0.0)
