"""Randomised smoothing: a classifier that is provably robust in l_2, made of any other.

  keys = jax.random.split(key, x.shape[0])
  prediction, radius = certify_smoothed(keys, logits_fn, x, sigma=0.25)
  certified_accuracy = np.mean((prediction == y) & (radius > 0.5))

The certificate is of ANOTHER classifier: not of logits_fn, but of the smoothed one,

  g(x) = the class that argmax logits_fn(x + sigma * noise) gives most often, noise ~ N(0, I).

It says nothing about the plain net, and attacks on the plain net say nothing about it. It holds
with probability at least 1 - alpha over the noise that was drawn, for each example by itself, not
for all examples of a data set together. Source: Cohen, Rosenfeld and Kolter 2019 (arXiv
1902.02918), theorem 1 and algorithm CERTIFY (section 3.2.2).

A net that was not trained with noise of that sigma rarely has a large radius.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from robust_opt import losses
from robust_opt.certify.exact import check_precision
from robust_opt.errors import InputError
from robust_opt.evaluation import network
from robust_opt.keys import per_example
from robust_opt.precision import check_floating
from robust_opt.types import Array, LogitsFn

ABSTAIN = -1


class SmoothedCertificate(NamedTuple):
  """What was certified of the smoothed classifier.

  Attributes:
    prediction: [B] int32, its class, or -1 where it abstains.
    radius: [B] float32, in l_2 and the units of x: within it the smoothed classifier predicts the
      same. 0 where it abstains. Whether the prediction is right is another question.
  """

  prediction: Array
  radius: Array


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

    class:   the most frequent one of n0 noisy copies
    p:       the Clopper-Pearson lower bound, at level alpha, of its probability, from n copies more
    radius:  sigma * Phi^-1(p) where p > 1/2; else abstain

  With n copies the radius is at most sigma * Phi^-1(alpha^(1/n)): 3.20 sigma by default, were
  every copy of the same class. Copies whose logits are not finite count for no class.

  The bound is computed on the host, so that this function cannot be traced; class_counts can.

  Args:
    keys: [B], or one key; an example's result depends on its key alone, not on its neighbours.
    logits_fn: x [B, *S] -> logits [B, C], of any floating type. It is compiled once for each shape,
      and again if the weights that it closes over have changed; those of a
      `jax.tree_util.Partial` or a module are arguments.
    x: [B, *S], pixels in [0, 1], float32 or float64: in fewer bits the noise is not normal. The
      noisy copies leave the box.
    sigma: standard deviation of the noise, in the units of x, > 0.
    n0: copies to guess the class from.
    n: copies to bound its probability from.
    alpha: the probability, for each example, that its certificate is wrong; in (0, 1).
    at_once: noisy copies of the batch in one call of logits_fn; changes no result.

  Raises:
    InputError: of sigma <= 0, alpha outside (0, 1), a number of copies below 1, an n with which
      every certificate would abstain, images that are not float32 or float64, or logits that are
      not floating point or of one class.
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
  # Two streams of noise: the bound may not see the copies that the class was guessed from.
  both = jax.vmap(jax.random.split)(per_example(keys, x.shape[0]))
  guess_keys, bound_keys = jnp.moveaxis(both, 1, 0)
  net = network.as_argument(logits_fn, x)
  guess = np.argmax(_class_counts(guess_keys, net, x, sigma, n0, at_once), axis=-1)
  counts = np.asarray(_class_counts(bound_keys, net, x, sigma, n, at_once))
  p = lower_confidence_bound(np.take_along_axis(counts, guess[:, None], -1)[:, 0], n, alpha)
  abstains = p <= 0.5
  radius = np.where(abstains, 0.0, sigma * special.ndtri(np.where(abstains, 0.5, p)))
  prediction = np.where(abstains, ABSTAIN, guess)
  return SmoothedCertificate(jnp.asarray(prediction, jnp.int32), jnp.asarray(radius, jnp.float32))


def class_counts(
  keys: Array, logits_fn: LogitsFn, x: Array, sigma: float, num_copies: int, at_once: int = 64
) -> Array:
  """How many of num_copies noisy copies of each example fall into each class, [B, C] int32.

  Copy t of example i has its noise from fold_in(keys[i], t). Arguments as for certify_smoothed.
  """
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise InputError(f"x must be floating point, pixels in [0, 1], but was {x.dtype}.")
  keys = per_example(keys, x.shape[0])
  chex.assert_shape(keys, (x.shape[0],))
  check_precision(x)
  logits = jax.eval_shape(logits_fn, x)
  check_floating(logits, "The net's logits")
  losses.check_classes(logits)
  num_classes = logits.shape[-1]

  def noise(copy: Array) -> Array:
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, copy), x.shape[1:], x.dtype)  # noqa: E731
    return jax.vmap(draw)(keys)

  def count(counts: Array, first: Array) -> tuple[Array, None]:
    copies = first + jnp.arange(at_once)
    noisy = x + jnp.asarray(sigma, x.dtype) * jax.vmap(noise)(copies)
    logits = logits_fn(noisy.reshape(-1, *x.shape[1:])).reshape(at_once, -1, num_classes)
    valid = jnp.all(jnp.isfinite(logits), axis=-1) & (copies < num_copies)[:, None]
    votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), num_classes, dtype=jnp.int32)
    return counts + jnp.sum(votes * valid[..., None], axis=0), None

  start = jnp.zeros((x.shape[0], num_classes), jnp.int32)
  counts, _ = jax.lax.scan(count, start, jnp.arange(0, num_copies, at_once))
  return counts


_class_counts = jax.jit(class_counts, static_argnames=("num_copies", "at_once"))


def lower_confidence_bound(successes: np.ndarray, trials: int, alpha: float) -> np.ndarray:
  """The p with P(Binomial(trials, p) >= successes) = alpha; 0 where there was no success.

  The probability of a success lies above it with probability at least 1 - alpha. Source: Clopper
  and Pearson (1934), one-sided, by the quantile of a beta distribution.
  """
  successes = np.asarray(successes)
  some = np.maximum(successes, 1)
  return np.where(successes > 0, special.betaincinv(some, trials - some + 1, alpha), 0.0)
