"""Sparse-RS: a random search over few entries or pixels that needs no gradient, only logits.

  u = ro.sets.L0(10, box=(0.0, 1.0), channel_axis=-1)      # ten pixels of [H, W, C]
  delta, fooled = sparse_rs(u, num_queries=5000)(keys, logits_fn, x, y)  # keys [B], x [B, *S]

Every query replaces some of the k changed pixels by others, whose channels each go to a random end
of their range, and is kept if the margin grows. Source: Croce, Andriushchenko, Singh, Flammarion
and Hein 2022 (arXiv 2006.12834), algorithm 1 for l_0-bounded perturbations.

|  input                            |  result                                    |
|  misclassified clean example      |  delta 0, fooled                           |
|  logits that never change         |  delta 0, not fooled                       |
|  k of all pixels or more          |  all of them, with new ends in every query |
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import losses
from robust_opt.arrays import where_examples
from robust_opt.attacks.hyperplanes import bounds_of, check_counts
from robust_opt.attacks.precision import widened
from robust_opt.attacks.support import check_support
from robust_opt.attacks.types import (
  AttackResult,
  CountedAttack,
  CountedResult,
  LogitsAttack,
  passes,
  uncounted,
)
from robust_opt.errors import InputError
from robust_opt.keys import per_example
from robust_opt.sets import L0
from robust_opt.types import Array, LogitsFn

# Of 10,000 queries, those after which the share of replaced pixels falls, to alpha over these.
_AFTER = np.array([0, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
_DIVISORS = np.array([1, 2, 4, 5, 6, 8, 10, 12, 15, 20])


class _State(NamedTuple):
  """The search after t queries: changed pixels [B, P] bool, delta [B, P, C], margin, fooled [B]."""

  t: Array
  changed: Array
  delta: Array
  margin: Array
  fooled: Array


def sparse_rs(u: L0, num_queries: int = 5000, alpha: float = 0.8) -> LogitsAttack:
  """`counting_sparse_rs` without the counts."""
  return uncounted(counting_sparse_rs(u, num_queries, alpha))


def counting_sparse_rs(u: L0, num_queries: int = 5000, alpha: float = 0.8) -> CountedAttack:
  """Sparse-RS: (keys [B], logits_fn, x [B, *S], y [B]) -> CountedResult.

  Where no query succeeded delta is 0. Every query runs the whole batch, until all are fooled. The
  random numbers of query t of example i come from fold_in(keys[i], t) alone.

  Args:
    u: L0 with a finite box, in which x must lie; k, [] or [B], may be traced. It counts pixels if
      it has a channel_axis.
    num_queries: the maximum number of perturbed images of each example, >= 1.
    alpha: the share of the k pixels that the first queries replace, in (0, 1].

  Raises:
    InputError: another set, or a number out of range.
  """
  check_support("sparse_rs", u)
  check_counts(num_queries=num_queries)
  if not 0 < alpha <= 1:
    raise InputError(f"alpha must be in (0, 1], but was {alpha}.")
  after = jnp.asarray(_AFTER * num_queries / 10_000)
  shares = jnp.asarray(alpha / _DIVISORS)

  def attack(keys: Array, logits_fn: LogitsFn, x: Array, y: Array) -> CountedResult:
    keys = per_example(keys, x.shape[0])
    logits_fn, x, rounded = widened(logits_fn, jax.lax.stop_gradient(x))
    lower, upper = (_to_pixels(bound, u.channel_axis) for bound in bounds_of(u, x))
    counts = jnp.minimum(jnp.broadcast_to(jnp.asarray(u.k), x.shape[:1]), lower.shape[1])

    def evaluate(delta: Array) -> tuple[Array, Array]:
      moved = x + _from_pixels(delta, u.channel_axis, x.shape)
      logits = jax.lax.stop_gradient(logits_fn(moved))
      return losses.margin(logits, y), ~losses.correct(logits, y)

    def query(state: _State) -> _State:
      share = shares[jnp.sum(state.t > after)]
      of_step = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.t)
      replaced = jnp.maximum(1, jnp.ceil(share * counts)).astype(jnp.int32)
      replaced = jnp.where(state.t == 0, counts, jnp.minimum(replaced, counts))
      changed, delta = jax.vmap(_move)(
        of_step, state.changed, state.delta, counts, replaced, lower, upper
      )
      margin, fooled = evaluate(delta)
      accept = ~state.fooled & (fooled | (margin >= state.margin) | (state.t == 0))
      return _State(
        state.t + 1,
        where_examples(accept, changed, state.changed),
        where_examples(accept, delta, state.delta),
        jnp.where(accept, margin, state.margin),
        state.fooled | fooled,
      )

    nothing = jnp.zeros_like(lower)
    margin, fooled = evaluate(nothing)
    start = _State(jnp.int32(0), jnp.zeros(lower.shape[:2], bool), nothing, margin, fooled)
    end = jax.lax.while_loop(
      lambda state: (state.t < num_queries) & ~jnp.all(state.fooled), query, start
    )
    delta = where_examples(end.fooled, end.delta, nothing)
    result = rounded(AttackResult(_from_pixels(delta, u.channel_axis, x.shape), end.fooled))
    return CountedResult(*result, passes(end.t + 1, 0))

  return attack


def _move(
  key: Array,
  changed: Array,
  delta: Array,
  count: Array,
  replaced: Array,
  lower: Array,
  upper: Array,
) -> tuple[Array, Array]:
  """Replaces so many of the changed pixels [P] by others with new values; ONE example.

  Where there are too few others, changed pixels get new values.
  """
  drop_key, add_key, end_key = jax.random.split(key, 3)
  kept = _random_of(drop_key, changed, count - replaced)
  # Pixels that were not changed come first.
  others = jnp.where(kept, 2.0, jnp.where(changed, 1.0, 0.0))
  order = jnp.argsort(others + jax.random.uniform(add_key, changed.shape, lower.dtype))
  ranks = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
  added = ~kept & (ranks < count - jnp.sum(kept))
  ends = jnp.where(jax.random.bernoulli(end_key, 0.5, delta.shape), lower, upper)
  moved = jnp.where(added[:, None], ends, jnp.where(kept[:, None], delta, 0.0))
  return kept | added, moved


def _random_of(key: Array, members: Array, count: Array) -> Array:
  """`count` of the members [P], at random."""
  order = jnp.argsort(jnp.where(members, jax.random.uniform(key, members.shape), jnp.inf))
  ranks = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
  return members & (ranks < count)


def _to_pixels(values: Array, channel_axis: int | None) -> Array:
  """[B, *S] -> [B, P, C], C = 1 where entries count."""
  if channel_axis is None:
    return values.reshape(len(values), -1, 1)
  last = jnp.moveaxis(values, _with_batch(channel_axis), -1)
  return last.reshape(len(values), -1, last.shape[-1])


def _from_pixels(pixels: Array, channel_axis: int | None, shape: tuple[int, ...]) -> Array:
  """[B, P, C] -> [B, *S]."""
  if channel_axis is None:
    return pixels.reshape(shape)
  axis = _with_batch(channel_axis)
  others = [n for i, n in enumerate(shape) if i != axis % len(shape)]
  return jnp.moveaxis(pixels.reshape(*others, shape[axis]), -1, axis)


def _with_batch(channel_axis: int) -> int:
  """The axis of a batch for that of an example."""
  return channel_axis if channel_axis < 0 else channel_axis + 1
