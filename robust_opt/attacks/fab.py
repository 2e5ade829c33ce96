"""The fast adaptive boundary attack (FAB): a minimal-norm attack, and whether it fits a radius.

  attack = fab("linf", 8 / 255, target_rank=0)          # FAB-T, towards the largest wrong logit
  delta, fooled = attack(keys, logits_fn, x, y)         # keys [B], x [B, *S], y [B]
  delta, found = fab_minimal("l2")(keys, logits_fn, x, y)  # the smallest perturbation, any size

It goes along the linearised decision boundary while it is drawn back to the clean example, with no
step size to choose. Untargeted, a step costs a gradient for every wrong class; towards one target
it costs one, which is the form for ensembles: one attack per rank, and the rank may be traced, so
that all ranks share one compiled program.

Source: Croce and Hein 2020 (arXiv 1907.02044); the targeted form is of their AutoAttack (arXiv
2003.01690).
"""

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.attacks import hyperplanes
from robust_opt.attacks.hyperplanes import Smallest, over
from robust_opt.attacks.precision import widened
from robust_opt.attacks.types import Found, LogitsAttack, Minimal, MinimalAttack
from robust_opt.errors import InputError
from robust_opt.keys import per_example
from robust_opt.sets import Box, Radius
from robust_opt.sets.base import box_bounds
from robust_opt.types import Array, LogitsFn

# A point of the final search lies this share of its length past the boundary, so that it is still
# misclassified when its logits are rounded otherwise (in a batch of another size, say).
_PAST_BOUNDARY = 5e-4


def fab(
  norm: str,
  radius: Radius,
  box: Box = (0.0, 1.0),
  num_steps: int = 100,
  target_rank: int | Array | None = None,
  num_restarts: int = 1,
  random_start: bool = False,
  alpha_max: float = 0.1,
  eta: float = 1.05,
  beta: float = 0.9,
  num_search_steps: int = 3,
) -> LogitsAttack:
  """FAB as an attack within a radius: the smallest misclassified perturbation, if it fits.

  What `fab_minimal` finds is projected onto the ball of the radius (within it that changes
  nothing), and is kept where it is misclassified there; delta is 0 elsewhere.

  Args:
    norm: "linf", "l2" or "l1".
    radius: [] or [B], >= 0, in the units of x (pixels in [0, 1]); it may be traced. It bounds where
      restarts begin, too.
    box: as in `fab_minimal`, as are the rest.
    num_steps: as in `fab_minimal`.
    target_rank: as in `fab_minimal`.
    num_restarts: as in `fab_minimal`.
    random_start: as in `fab_minimal`.
    alpha_max: as in `fab_minimal`.
    eta: as in `fab_minimal`.
    beta: as in `fab_minimal`.
    num_search_steps: as in `fab_minimal`.

  Raises:
    InputError: as in `fab_minimal`, and for a negative radius.
  """
  find = fab_minimal(
    norm,
    box,
    num_steps,
    target_rank,
    num_restarts,
    random_start,
    start_radius=radius,
    alpha_max=alpha_max,
    eta=eta,
    beta=beta,
    num_search_steps=num_search_steps,
  )
  ball = hyperplanes.SETS[norm](radius, box)

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Found:
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    delta = ball.project(find(keys, logits_fn, x, y).delta, x)
    delta = jnp.clip(delta, *box_bounds(box, x))
    fooled = hyperplanes.misclassified(logits_fn, x + delta, y)
    return rounded(Found(jax.lax.stop_gradient(jnp.where(over(fooled, x), delta, 0.0)), fooled))

  return attack


def fab_minimal(
  norm: str,
  box: Box = (0.0, 1.0),
  num_steps: int = 100,
  target_rank: int | Array | None = None,
  num_restarts: int = 1,
  random_start: bool = False,
  start_radius: Radius | None = None,
  alpha_max: float = 0.1,
  eta: float = 1.05,
  beta: float = 0.9,
  num_search_steps: int = 3,
) -> MinimalAttack:
  """FAB without a radius: the smallest misclassified perturbation that it finds.

    s        = shortest step from x + delta onto the closest linearised boundary, within the box
    s_clean  = shortest step from x onto the same hyperplane, within the box
    alpha    = min(|s|_p / (|s|_p + |s_clean|_p), alpha_max)
    delta'   = (1 - alpha) (delta + eta s) + alpha eta s_clean, cut by the box
    delta   := beta delta' where x + delta' is misclassified, else delta'

  Source: Croce and Hein 2020 (arXiv 1907.02044), algorithm 1. The constants are theirs. It differs
  in three things. The projections find their multiplier without sorting, with the same result. The
  final search, a few secant steps on the segment from the clean example to the best point, stops
  short of the boundary by 0.05 % of the length. Restarts begin anywhere in their ball, not on its
  surface only.

  Args:
    norm: "linf", "l2" or "l1".
    box: (low, high) that x + delta stays in; x must lie in it. A wide one stands for none.
    num_steps: of each run, each with two forward passes and the gradients.
    target_rank: None for the closest boundary over all wrong classes, a gradient for each; r for
      the boundary with the class of rank r, from 0, among the wrong logits of the clean example,
      one gradient. It may be traced, and one beyond the last rank is then taken as the last. Any
      wrong answer counts, not only the target.
    num_restarts: runs; the first starts from the clean example and the others at random, from the
      ball of half the smaller of start_radius and the best norm so far.
    random_start: whether the first run, too, starts at random.
    start_radius: [] or [B], what random starts need.
    alpha_max: the largest weight of the clean example.
    eta: extrapolation past the hyperplane, >= 1.
    beta: how far to go on from a misclassified point towards the clean one, in (0, 1).
    num_search_steps: of the final search, one forward pass each; 0 for none.

  Raises:
    InputError: for an unknown norm, a box that is no finite interval, a number out of range, a
      random start without a radius; from the attack: a rank that the logits do not have.
  """
  hyperplanes.check(norm, box, num_steps=num_steps, num_restarts=num_restarts)
  if (num_restarts > 1 or random_start) and start_radius is None:
    raise InputError("Random starts of fab_minimal need start_radius, but it was None.")
  if not (0 <= alpha_max <= 1 and eta >= 1 and 0 < beta < 1):
    raise InputError(
      "FAB needs alpha_max in [0, 1], eta >= 1 and beta in (0, 1), but they were "
      f"{alpha_max}, {eta} and {beta}."
    )
  norms = jax.vmap(hyperplanes.NORMS[norm])

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> Minimal:
    keys = per_example(keys, x.shape[0])
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    lower, upper = box_bounds(box, x)
    clean = jax.lax.stop_gradient(logits_fn(x))
    rivals = _rivals(clean, y, target_rank)

    def step(carry: tuple[Array, Smallest], _: None) -> tuple[tuple[Array, Smallest], None]:
      delta, smallest = carry
      w, gap = hyperplanes.closest_hyperplane(norm, logits_fn, x + delta, y, rivals)
      gap_clean = gap + jnp.sum(w * delta, axis=range(1, x.ndim))
      s, s_clean = jnp.split(
        hyperplanes.to_hyperplanes(  # one loop for both
          norm,
          jnp.concatenate([w, w]),
          jnp.concatenate([gap, gap_clean]),
          (jnp.concatenate([lower - delta, lower]), jnp.concatenate([upper - delta, upper])),
        ),
        2,
      )
      length, length_clean = norms(s), norms(s_clean)
      both = length + length_clean
      alpha = jnp.minimum(length / jnp.where(both > 0, both, 1.0), alpha_max)
      alpha = over(alpha, x)
      moved = (1 - alpha) * (delta + eta * s) + alpha * eta * s_clean
      moved = jnp.clip(moved, lower, upper)
      fooled = hyperplanes.misclassified(logits_fn, x + moved, y)
      smallest = hyperplanes.smaller(smallest, moved, norms(moved), fooled)
      return (jnp.where(over(fooled, x), beta * moved, moved), smallest), None

    def start(keys: Array, smallest: Smallest, restart: Array) -> Array:
      if start_radius is None or (num_restarts == 1 and not random_start):
        return jnp.zeros_like(x)
      reach = jnp.minimum(jnp.asarray(start_radius, x.dtype), smallest.norm) / 2
      run_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, restart)
      drawn = jnp.clip(hyperplanes.SETS[norm](reach, box).sample(run_keys, x), lower, upper)
      drawn = jax.lax.stop_gradient(drawn)
      return drawn if random_start else jnp.where(restart == 0, 0.0, drawn)

    def run(smallest: Smallest, restart: Array) -> tuple[Smallest, None]:
      carry = (start(keys, smallest, restart), smallest)
      (_, smallest), _ = jax.lax.scan(step, carry, length=num_steps)
      return smallest, None

    smallest = hyperplanes.none_found(x, ~losses.correct(clean, y))
    smallest, _ = jax.lax.scan(run, smallest, jnp.arange(num_restarts))
    searched = _search(logits_fn, x, y, smallest.delta, clean, num_search_steps)
    # Judged again: a net in bfloat16 may answer otherwise outside of the compiled loops.
    holds = hyperplanes.misclassified(logits_fn, x + searched, y)
    found = holds | hyperplanes.misclassified(logits_fn, x + smallest.delta, y)
    delta = jnp.where(over(holds, x), searched, smallest.delta)
    return rounded(Minimal(jnp.where(over(found, x), delta, 0.0), found))

  return attack


def _rivals(clean: Array, y: Array, target_rank: int | Array | None) -> Array:
  """The classes whose boundaries count: [C - 1, B], or [1, B] for a target."""
  if target_rank is None:
    return hyperplanes.rivals_by_rank(clean, y)
  return hyperplanes.rival_of_rank(clean, y, target_rank)[None]


def _search(
  logits_fn: LogitsFn, x: Array, y: Array, delta: Array, clean: Array, num_steps: int
) -> Array:
  """Shortens delta [B, *S] by secant steps to where the segment from x crosses the boundary.

  The final search of the paper: the secant is that of z_s - z_y, s the class that x + delta is
  mistaken for. Every point that is taken is misclassified; delta = 0 stays.
  """

  def logits_at(share: Array) -> Array:
    return jax.lax.stop_gradient(logits_fn(x + over(share, x) * delta))

  def step(
    carry: tuple[Array, Array, Array, Array], _: None
  ) -> tuple[tuple[Array, Array, Array, Array], None]:
    inner, below, outer, above = carry
    rise = above - below
    crossing = inner - below / jnp.where(rise > 0, rise, jnp.nan) * (outer - inner)
    # Where the two values say nothing (they are not finite, say) halve the segment.
    share = jnp.where(jnp.isfinite(crossing), crossing, (inner + outer) / 2)
    share = jnp.clip(share * (1 + _PAST_BOUNDARY), inner, outer)
    logits = logits_at(share)
    value, fooled = losses.targeted_margin(logits, y, mistaken_for), ~losses.correct(logits, y)
    nearer, further = (inner, below, share, value), (share, value, outer, above)
    return jax.tree.map(lambda a, b: jnp.where(fooled, a, b), nearer, further), None

  every = jnp.ones(x.shape[:1], x.dtype)
  logits = logits_at(every)
  mistaken_for = hyperplanes.rivals_by_rank(logits, y)[0]
  below, above = (losses.targeted_margin(z, y, mistaken_for) for z in (clean, logits))
  (_, _, share, _), _ = jax.lax.scan(step, (0 * every, below, every, above), length=num_steps)
  return over(share, x) * delta
