"""Patch attack: gradient ascent on the pixels of a square, at the best of several places.

  delta, fooled, _ = counting_patch(sets.Patch(5))(keys, logits_fn, x, y)    # x [B, H, W, C]

The first square is that of the steepest ascent of the margin at the clean image; the others are at
random places, and come only if no square so far fools the net. In each one PGD on the margin, from
random pixels, may set them to anything in the box.
"""

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.arrays import where_examples
from robust_opt.attacks import white_box
from robust_opt.attacks.hyperplanes import check_counts
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import CountedAttack, CountedResult, Passes
from robust_opt.keys import per_example
from robust_opt.maximizers import ascend, pgd
from robust_opt.sets import LInf, Masked, Patch
from robust_opt.types import Array, LogitsFn


def counting_patch(
  u: Patch, num_places: int = 20, num_steps: int = 50, relative_step: float = 0.1
) -> CountedAttack:
  """The attack (keys [B], logits_fn, x [B, *S], y [B]) -> CountedResult.

  Args:
    u: the set of patches.
    num_places: the number of squares, >= 1.
    num_steps: of PGD in each square, >= 1.
    relative_step: the length of its steps, in l_inf, as a fraction of the width of the box.

  Raises:
    InputError: another set, or a number < 1.
  """
  check_support("patch", u)
  check_counts(num_places=num_places, num_steps=num_steps)
  width = u.box[1] - u.box[0]

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> CountedResult:
    keys = per_example(keys, len(x))
    grad = jax.grad(lambda x: jnp.sum(losses.margin(logits_fn(x), y)))(x)
    first = u.steepest_region(grad, x)

    def try_place(carry: tuple[Array, CountedResult]) -> tuple[Array, CountedResult]:
      place, best = carry
      of_place = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, place)
      square = jnp.where(place == 0, first, u.region(u.corners(of_place, x), x))
      within, step = Masked(LInf(width, u.box), square), LInf(relative_step * width)
      ascent = ascend(pgd(within, step), num_steps, keep_best=True)
      found = white_box.counting_ascent(ascent, losses.margin)(of_place, logits_fn, x, y)
      delta = where_examples(best.fooled, best.delta, found.delta)
      cost = Passes(*(a + b for a, b in zip(best.passes, found.passes, strict=True)))
      return place + 1, CountedResult(delta, best.fooled | found.fooled, cost)

    def unfinished(carry: tuple[Array, CountedResult]) -> Array:
      place, best = carry
      return (place < num_places) & ~jnp.all(best.fooled)

    one = Passes(jnp.int32(0), jnp.int32(1))
    start = CountedResult(jnp.zeros_like(x), jnp.zeros(len(x), bool), one)
    _, best = jax.lax.while_loop(unfinished, try_place, (jnp.int32(0), start))
    return best._replace(delta=where_examples(best.fooled, best.delta, jnp.zeros_like(x)))

  return attack
