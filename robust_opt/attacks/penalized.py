"""Minimal-norm attacks that minimize a norm plus a penalty for being classified correctly.

  everywhere = ro.L2(math.inf, box=(0.0, 1.0))            # any size, within the box
  delta, fooled = carlini_wagner(everywhere)(keys, logits_fn, x, y)  # keys [B], x [B, *S], y [B]
  delta, fooled = pdpgd(ro.L1(math.inf, box=(0.0, 1.0)))(keys, logits_fn, x, y)

Results, precision and edge cases are those of minimal.py.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_opt import losses
from robust_opt.arrays import expand_like
from robust_opt.attacks.hyperplanes import (
  Smallest,
  bounds_of,
  check_counts,
  first_smallest,
  gradient,
  misclassified,
  smaller,
  within,
)
from robust_opt.attacks.precision import widened
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import AttackResult, MinimalAttack
from robust_opt.errors import InputError
from robust_opt.precision import measured
from robust_opt.sets import L1, L2, Ball, LInf
from robust_opt.types import Array, LogitsFn

# The ball whose projection gives the proximal map of a norm (Moreau): that of the dual norm.
_DUAL_BALLS: dict[type[Ball], type[Ball]] = {LInf: L1, L2: L2, L1: LInf}
_INSIDE = 1 - 1e-6  # of the box, as a fraction, where the change of variables is finite
_EMA, _FLOOR = 0.9, 1e-6  # of the weight of the norm in `pdpgd`


def carlini_wagner(
  u: L2,
  num_steps: int = 100,
  num_constants: int = 9,
  first_constant: float = 1e-3,
  learning_rate: float = 0.01,
) -> MinimalAttack:
  """The attack of Carlini and Wagner: Adam on distance and margin, a bisection of their weight.

    minimize over w   |delta(w)|_2^2 + c max(-margin(x + delta(w)), 0)
    x + delta(w)    = the middle of the box + half of its width * tanh(w)

  for num_constants values of c: ten times larger until one succeeds, then bisection between the
  largest that failed and the smallest that succeeded. The result is the smallest perturbation that
  fooled the net at any step. Source: Carlini and Wagner 2017 (arXiv 1608.04644), section V, with
  their f_6 and no confidence.

  Args:
    u: L2 with a finite box, in which x must lie; its radius may be math.inf.
    num_steps: of Adam for each c, >= 1, one gradient each.
    num_constants: the number of values of c, >= 1.
    first_constant: the first c > 0.
    learning_rate: of Adam, in w.

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("carlini_wagner", u)
  check_counts(num_steps=num_steps, num_constants=num_constants)
  if not 0 < first_constant < math.inf:
    raise InputError(f"first_constant must be positive and finite, but was {first_constant}.")
  norms, adam = jax.vmap(u.norm), optax.adam(learning_rate)

  @measured
  def attack(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, start: Array | None = None
  ) -> AttackResult:
    del keys
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    lower, upper = bounds_of(u, x)
    middle, half = (lower + upper) / 2, (upper - lower) / 2

    def delta_of(w: Array) -> Array:
      return jnp.clip(middle + half * jnp.tanh(w), lower, upper)

    def minimize(constant: Array, smallest: Smallest) -> tuple[Array, Smallest]:
      def penalized(w: Array) -> tuple[Array, Array]:
        logits = logits_fn(x + delta_of(w))
        too_low = jnp.maximum(-losses.margin(logits, y), 0.0)
        squares = jnp.sum(delta_of(w) ** 2, axis=range(1, x.ndim))
        return jnp.sum(squares + constant * too_low), ~losses.correct(logits, y)

      def step(
        carry: tuple[Array, optax.OptState, Array, Smallest], _: None
      ) -> tuple[tuple[Array, optax.OptState, Array, Smallest], None]:
        w, state, hit, smallest = carry
        g, fooled = jax.lax.stop_gradient(jax.grad(penalized, has_aux=True)(w))
        delta = delta_of(w)
        smallest = smaller(smallest, delta, norms(delta), fooled)
        change, state = adam.update(g, state)
        return (w + change, state, hit | fooled, smallest), None

      w = jnp.arctanh(jnp.clip(-middle / half, -_INSIDE, _INSIDE))  # where delta is 0
      carry = (w, adam.init(w), jnp.zeros(x.shape[:1], bool), smallest)
      (_, _, hit, smallest), _ = jax.lax.scan(step, carry, length=num_steps)
      return hit, smallest

    def try_constant(
      carry: tuple[Array, Array, Array, Smallest], _: None
    ) -> tuple[tuple[Array, Array, Array, Smallest], None]:
      constant, failed, succeeded, smallest = carry
      hit, smallest = minimize(constant, smallest)
      failed = jnp.where(hit, failed, constant)
      succeeded = jnp.where(hit, constant, succeeded)
      between = (failed + succeeded) / 2
      constant = jnp.where(succeeded < jnp.inf, between, 10.0 * constant)
      return (constant, failed, succeeded, smallest), None

    ones = jnp.ones(x.shape[:1], x.dtype)
    first = first_smallest(u, logits_fn, x, y, start)
    carry = (first_constant * ones, 0.0 * ones, jnp.inf * ones, first)
    (*_, smallest), _ = jax.lax.scan(try_constant, carry, length=num_constants)
    return rounded(within(u, smallest))

  return attack


def pdpgd(
  u: Ball,
  num_steps: int = 500,
  learning_rate: tuple[float, float] = (0.1, 1e-3),
  dual_rate: tuple[float, float] = (0.1, 1e-2),
  first_weight: float = 0.01,
  num_proximal: int = 5,
) -> MinimalAttack:
  """Primal-dual proximal gradient descent: a norm, and the price of being classified correctly.

    minimize over delta, maximize over w >= 0   w |delta|_p + softplus(-margin(x + delta))

    delta_k = prox_{alpha_k w |.|_p}(Adam step of length alpha_k on the softplus), within the box
    log w  += beta_k after a success, -= beta_k after a failure

  alpha_k and beta_k decrease exponentially; w in the first line is a moving average. The proximal
  map is that of the metric of Adam, num_proximal steps of proximal gradient. Source: Matyasko and
  Chau 2021 (arXiv 2106.01538), with the Adam of their code.

  Args:
    u: LInf, L2 or L1 with a finite box, in which x must lie; its radius may be math.inf.
    num_steps: >= 1, one gradient each.
    learning_rate: (first, last) alpha, in the units of x.
    dual_rate: (first, last) beta.
    first_weight: w at the start, > 0.
    num_proximal: steps of the proximal map, >= 1.

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("pdpgd", u)
  check_counts(num_steps=num_steps, num_proximal=num_proximal)
  if not 0 < first_weight < math.inf:
    raise InputError(f"first_weight must be positive and finite, but was {first_weight}.")
  norms, moments = jax.vmap(u.norm), optax.scale_by_adam()

  def penalty(logits: Array, y: Array) -> Array:
    return jax.nn.softplus(-losses.margin(logits, y))

  @measured
  def attack(
    keys: Array, logits_fn: LogitsFn, x: Array, y: Array, start: Array | None = None
  ) -> AttackResult:
    del keys
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    bounds = bounds_of(u, x)

    def step(carry: _PrimalDual, k: Array) -> tuple[_PrimalDual, None]:
      delta, adam, log_w, weight, smallest = carry
      g, _, fooled = gradient(penalty, logits_fn, x + delta, y)
      smallest = smaller(smallest, delta, norms(delta), fooled)
      alpha, beta = (_exponential(ends, k / num_steps) for ends in (learning_rate, dual_rate))
      change, adam = moments.update(g, adam)
      descended = jnp.clip(delta - alpha * change, *bounds)
      # The metric of Adam, of which the largest entry has the step alpha over it.
      metric = jnp.sqrt(adam.nu / (1 - 0.999**adam.count)) + 1e-8
      delta = jnp.clip(_proximal(u, descended, alpha * weight, metric, num_proximal), *bounds)
      log_w = jnp.maximum(log_w + jnp.where(fooled, beta, -beta), math.log(_FLOOR))
      log_w = jnp.minimum(log_w, -math.log(_FLOOR))
      weight = _EMA * weight + (1 - _EMA) * jnp.exp(log_w)
      return _PrimalDual(delta, adam, log_w, weight, smallest), None

    smallest = first_smallest(u, logits_fn, x, y, start)
    log_w = jnp.full(x.shape[:1], math.log(first_weight), x.dtype)
    delta = smallest.delta
    carry = _PrimalDual(delta, moments.init(delta), log_w, jnp.exp(log_w), smallest)
    carry, _ = jax.lax.scan(step, carry, jnp.arange(num_steps, dtype=x.dtype))
    fooled = misclassified(logits_fn, x + carry.delta, y)
    return rounded(within(u, smaller(carry.smallest, carry.delta, norms(carry.delta), fooled)))

  return attack


class _PrimalDual(NamedTuple):
  """The state of `pdpgd`: delta [B, *S], log w and the average of w, [B]."""

  delta: Array
  adam: optax.ScaleByAdamState
  log_w: Array
  weight: Array
  smallest: Smallest


def _proximal(u: Ball, v: Array, weight: Array, metric: Array, num_steps: int) -> Array:
  """argmin over z of weight / max(metric) |z|_p + |z - v|^2 / 2 in the metric over its largest.

  v and metric are [B, *S], weight [B].
  """
  largest = jnp.max(metric, axis=range(1, v.ndim))
  relative = metric / expand_like(largest, v)
  dual = _DUAL_BALLS[type(u)](weight / largest)

  def step(_: int, z: Array) -> Array:
    moved = z - relative * (z - v)
    return moved - dual.project(moved, v)

  return jax.lax.fori_loop(0, num_steps, step, v)


def _exponential(ends: tuple[float, float], progress: Array) -> Array:
  """From the first end to the last geometrically, progress in [0, 1]."""
  first, last = ends
  return first * (last / first) ** progress
