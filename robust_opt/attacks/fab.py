"""The fast adaptive boundary attack (FAB): a minimal-norm attack, also as an attack within a set.

  u = ro.L2(0.5, box=(0.0, 1.0))
  delta, fooled = fab(u, target_rank=0)(keys, logits_fn, x, y)  # keys [B], x [B, *S], y [B]
  everywhere = ro.L2(math.inf, box=(0.0, 1.0))
  delta, fooled = fab_minimal(everywhere)(keys, logits_fn, x, y)  # the smallest delta that fools

FAB moves along the linearized decision boundary while it is pulled back toward the clean example;
there is no step size to choose. An untargeted step costs one gradient per wrong class, a targeted
one a single gradient. In an ensemble, run one targeted attack per rank: the rank may be traced, so
that all ranks share one compilation.

Source: Croce and Hein 2020 (arXiv 1907.02044); the targeted form is from AutoAttack (arXiv
2003.01690).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.arrays import expand_like, where_examples
from robust_opt.attacks import hyperplanes
from robust_opt.attacks.hyperplanes import Smallest
from robust_opt.attacks.precision import widened
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import (
  AttackResult,
  CountedAttack,
  CountedResult,
  LogitsAttack,
  Passes,
  passes,
  uncounted,
)
from robust_opt.errors import InputError
from robust_opt.keys import per_example
from robust_opt.precision import measured
from robust_opt.sets import Ball, Radius
from robust_opt.types import Array, LogitsFn

# Points of the final search overshoot the boundary by this fraction of their length, so that they
# stay misclassified when the logits are rounded differently (in a batch of another size, say).
_PAST_BOUNDARY = 5e-4


class Settings(NamedTuple):
  """The settings of FAB.

  Attributes:
    num_steps: of each run, >= 1; a step has two forward passes and the gradients.
    target_rank: None for the closest boundary over all wrong classes, one gradient each; r for the
      boundary with the wrong class of rank r (0 for the largest logit of the clean example), one
      gradient. It may be traced; beyond the last rank it is then clipped. Any wrong prediction
      counts, not only the target.
    num_restarts: runs, >= 1; the first starts from the clean example, the others at random in the
      ball of half the smaller of the radius and the best norm so far.
    random_start: whether the first run, too, starts at random.
    alpha_max: the largest weight of the clean example, in [0, 1].
    eta: extrapolation past the hyperplane, >= 1.
    beta: the factor by which a misclassified perturbation is shrunk, in (0, 1).
    num_search_steps: of the final search, one forward pass each; 0 for none.
  """

  num_steps: int = 100
  target_rank: int | Array | None = None
  num_restarts: int = 1
  random_start: bool = False
  alpha_max: float = 0.1
  eta: float = 1.05
  beta: float = 0.9
  num_search_steps: int = 3


def fab(u: Ball, **settings: Any) -> LogitsAttack:
  """FAB as an attack within a ball: the smallest misclassified perturbation, projected onto it.

  delta is 0 where x + delta is classified correctly after the projection. The search ends once it
  has a misclassified perturbation within the radius for every example of the batch.

  Args:
    u: LInf, L2 or L1 with a finite box, in which x must lie. The radius, [] or [B], may be traced.
    **settings: the fields of `Settings`.

  Raises:
    InputError: another set, or a setting out of range; from the attack: a target_rank that the
      logits do not have.
  """
  return uncounted(counting_fab(u, **settings))


def counting_fab(u: Ball, **settings: Any) -> CountedAttack:
  """`fab` that also counts the passes."""
  check_support("fab", u)
  options = _checked(u, settings)

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> CountedResult:
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    smallest, num_steps = _smallest(u, options, keys, logits_fn, x, y, enough=u.radius)
    delta = jnp.clip(u.project(smallest.delta, x), *hyperplanes.bounds_of(u, x))
    fooled = hyperplanes.misclassified(logits_fn, x + delta, y)
    delta = jnp.where(expand_like(fooled, x), delta, 0.0)
    result = rounded(AttackResult(jax.lax.stop_gradient(delta), fooled))
    return CountedResult(*result, _passes(options, logits_fn, x, num_steps))

  return attack


def fab_minimal(u: Ball, **settings: Any) -> LogitsAttack:
  """FAB as a minimal-norm attack: the smallest misclassified perturbation that it finds in u.

    s        = shortest step from x + delta onto the closest linearized boundary, within the box
    s_clean  = shortest step from x onto the same hyperplane, within the box
    alpha    = min(|s|_p / (|s|_p + |s_clean|_p), alpha_max)
    delta'   = (1 - alpha) (delta + eta s) + alpha eta s_clean, clipped to the box
    delta   := beta delta' where x + delta' is misclassified, else delta'

  Source: Croce and Hein 2020 (arXiv 1907.02044), algorithm 1, with their constants. Differences:
  the projections find their multiplier without sorting, with the same result; the final search, a
  few secant steps on the segment from the clean example to the best point, stops 0.05 % past the
  boundary; restarts start anywhere in their ball, not only on its surface.

  Args:
    u: LInf, L2 or L1 with a finite box, in which x must lie. A radius of math.inf allows
      perturbations of any size; random starts need a finite one.
    **settings: the fields of `Settings`.

  Raises:
    InputError: as for `fab`, and for random starts in a ball of infinite radius.
  """
  check_support("fab_minimal", u)
  options = _checked(u, settings)

  @measured
  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> AttackResult:
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    smallest, _ = _smallest(u, options, keys, logits_fn, x, y)
    return rounded(hyperplanes.within(u, smallest))

  return attack


def _passes(options: Settings, logits_fn: LogitsFn, x: Array, num_steps: Array) -> Passes:
  """A step has a forward pass and the gradients; before and after the steps, logits alone."""
  num_classes = jax.eval_shape(logits_fn, x).shape[-1]
  gradients = num_classes - 1 if options.target_rank is None else 1
  return passes(num_steps + options.num_search_steps + 5, gradients * num_steps)


def _checked(u: Ball, settings: dict[str, Any]) -> Settings:
  options = Settings(**settings)
  hyperplanes.check_counts(num_steps=options.num_steps, num_restarts=options.num_restarts)
  random = options.num_restarts > 1 or options.random_start
  if random and not isinstance(u.radius, jax.core.Tracer) and not np.all(np.isfinite(u.radius)):
    raise InputError(f"Random starts of FAB need a finite radius, but it was {u.radius}.")
  if not (0 <= options.alpha_max <= 1 and options.eta >= 1 and 0 < options.beta < 1):
    raise InputError(
      "FAB needs alpha_max in [0, 1], eta >= 1 and beta in (0, 1), but they were "
      f"{options.alpha_max}, {options.eta} and {options.beta}."
    )
  return options


def _smallest(
  u: Ball,
  options: Settings,
  keys: Array,
  logits_fn: LogitsFn,
  x: Array,
  y: Array,
  enough: Radius = -jnp.inf,
) -> tuple[Smallest, Array]:
  """The smallest misclassified perturbations of any size, and the number of steps, [] int32.

  delta is 0 and the norm inf where there is none. The search ends once all norms are <= enough.
  """
  keys = per_example(keys, x.shape[0])
  norms = jax.vmap(u.norm)
  clean = jax.lax.stop_gradient(logits_fn(x))
  rivals = _rivals(clean, y, options.target_rank)

  def unfinished(carry: tuple[Array, Array, Smallest]) -> Array:
    return (carry[0] < options.num_steps) & jnp.any(carry[2].norm > enough)

  def step(carry: tuple[Array, Array, Smallest]) -> tuple[Array, Array, Smallest]:
    number, delta, smallest = carry
    moved = _boundary_step(u, options, logits_fn, x, y, rivals, delta)
    fooled = hyperplanes.misclassified(logits_fn, x + moved, y)
    smallest = hyperplanes.smaller(smallest, moved, norms(moved), fooled)
    return number + 1, where_examples(fooled, options.beta * moved, moved), smallest

  def run(smallest: Smallest, restart: Array) -> tuple[Smallest, Array]:
    start = _start(u, options, keys, x, smallest, restart)
    taken, _, smallest = jax.lax.while_loop(unfinished, step, (jnp.int32(0), start, smallest))
    return smallest, taken

  smallest = hyperplanes.none_yet(x, ~losses.correct(clean, y))
  smallest, taken = jax.lax.scan(run, smallest, jnp.arange(options.num_restarts))
  searched = _search(logits_fn, x, y, smallest.delta, clean, options.num_search_steps)
  # Evaluated again: a net in bfloat16 may give other logits outside of the compiled loops.
  holds = hyperplanes.misclassified(logits_fn, x + searched, y)
  fooled = holds | hyperplanes.misclassified(logits_fn, x + smallest.delta, y)
  delta = where_examples(holds, searched, smallest.delta)
  delta = jnp.where(expand_like(fooled, x), delta, 0.0)
  return Smallest(delta, jnp.where(fooled, norms(delta), jnp.inf)), jnp.sum(taken)


def _boundary_step(
  u: Ball,
  options: Settings,
  logits_fn: LogitsFn,
  x: Array,
  y: Array,
  rivals: Array,
  delta: Array,
) -> Array:
  """delta' of `fab_minimal`, [B, *S]."""
  lower, upper = hyperplanes.bounds_of(u, x)
  norms = jax.vmap(u.norm)
  w, gap = hyperplanes.closest_hyperplane(u, logits_fn, x + delta, y, rivals)
  gap_clean = gap + jnp.sum(w * delta, axis=range(1, x.ndim))
  s, s_clean = jnp.split(
    hyperplanes.to_hyperplanes(  # one loop for both
      u,
      jnp.concatenate([w, w]),
      jnp.concatenate([gap, gap_clean]),
      (jnp.concatenate([lower - delta, lower]), jnp.concatenate([upper - delta, upper])),
    ),
    2,
  )
  length, length_clean = norms(s), norms(s_clean)
  both = length + length_clean
  alpha = jnp.minimum(length / jnp.where(both > 0, both, 1.0), options.alpha_max)
  alpha = expand_like(alpha, x)
  moved = (1 - alpha) * (delta + options.eta * s) + alpha * options.eta * s_clean
  return jnp.clip(moved, lower, upper)


def _start(
  u: Ball, options: Settings, keys: Array, x: Array, smallest: Smallest, restart: Array
) -> Array:
  """Where a run starts, [B, *S]."""
  if options.num_restarts == 1 and not options.random_start:
    return jnp.zeros_like(x)
  radius = jnp.minimum(jnp.asarray(u.radius, x.dtype), smallest.norm) / 2
  run_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, restart)
  drawn = dataclasses.replace(u, radius=radius).sample(run_keys, x)
  drawn = jax.lax.stop_gradient(jnp.clip(drawn, *hyperplanes.bounds_of(u, x)))
  return drawn if options.random_start else jnp.where(restart == 0, 0.0, drawn)


def _rivals(clean: Array, y: Array, target_rank: int | Array | None) -> Array:
  """The classes whose boundaries are considered: [C - 1, B], or [1, B] for a target."""
  if target_rank is None:
    return hyperplanes.rivals_by_rank(clean, y)
  return hyperplanes.rival_of_rank(clean, y, target_rank)[None]


def _search(
  logits_fn: LogitsFn, x: Array, y: Array, delta: Array, clean: Array, num_steps: int
) -> Array:
  """Shortens delta [B, *S] by secant steps to where the segment from x crosses the boundary.

  The final search of the paper: the secant is of z_s - z_y, s the class predicted at x + delta.
  Accepted points are misclassified; delta = 0 stays 0.
  """

  def logits_at(share: Array) -> Array:
    return jax.lax.stop_gradient(logits_fn(x + expand_like(share, x) * delta))

  def step(
    carry: tuple[Array, Array, Array, Array], _: None
  ) -> tuple[tuple[Array, Array, Array, Array], None]:
    inner, below, outer, above = carry
    rise = above - below
    crossing = inner - below / jnp.where(rise > 0, rise, jnp.nan) * (outer - inner)
    # Where the secant is not finite, halve the segment.
    share = jnp.where(jnp.isfinite(crossing), crossing, (inner + outer) / 2)
    share = jnp.clip(share * (1 + _PAST_BOUNDARY), inner, outer)
    logits = logits_at(share)
    value, fooled = losses.targeted_margin(logits, y, predicted), ~losses.correct(logits, y)
    nearer, further = (inner, below, share, value), (share, value, outer, above)
    return jax.tree.map(lambda a, b: jnp.where(fooled, a, b), nearer, further), None

  every = jnp.ones(x.shape[:1], x.dtype)
  logits = logits_at(every)
  predicted = hyperplanes.rivals_by_rank(logits, y)[0]
  below, above = (losses.targeted_margin(z, y, predicted) for z in (clean, logits))
  (_, _, share, _), _ = jax.lax.scan(step, (0 * every, below, every, above), length=num_steps)
  return expand_like(share, x) * delta
