"""Maximizers and attacks: what they are, and how they are run.

A maximizer is a pair of pure functions, `init` and `step`; `ascend` scans it into an attack.
Everything here works on a value_fn, x [B, *S] -> [B], independently of models and data.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import keys
from robust_opt.arrays import where_examples
from robust_opt.checks import check_callable, check_count, described, takes
from robust_opt.errors import InputError
from robust_opt.sets.base import UncertaintySet
from robust_opt.types import Array, PyTree, Scored, Stochastic, ValueFn


class AscentState(NamedTuple):
  """The state of an ascent: delta [B, *S], and the maximizer's own memory."""

  delta: Array
  memory: PyTree = ()


class AscentInfo(NamedTuple):
  """The report of one ascent step.

  Attributes:
    value: value_fn at the point where the step started.
    zero_gradient: [B] bool, examples whose input gradient was exactly zero there. They do not move,
      and counting them as robust overstates the accuracy, so report them.
    score: at the same point, for comparing points: the value, or the `score` of a value_fn that
      returns Scored.
  """

  value: Array
  zero_gradient: Array
  score: Array


class InnerMaximizer(NamedTuple):
  """Ascends value_fn within a set, with one input gradient per step.

  Attributes:
    init: (key or None, x [B, *S]) -> AscentState.
    step: (value_fn, state, x [B, *S]) -> (AscentState, AscentInfo).
  """

  init: Callable[[Array | None, Array], AscentState]
  step: Callable[[ValueFn, AscentState, Array], tuple[AscentState, AscentInfo]]


AnyValueFn = ValueFn | Stochastic
# (value_fn, key or None, x [B, *S]) -> (delta [B, *S], AscentInfo stacked over the steps)
Attack = Callable[[AnyValueFn, Array | None, Array], tuple[Array, AscentInfo]]


class ScheduledAttack(NamedTuple):
  """An attack that depends on the training step, such as a curriculum.

    ScheduledAttack(lambda step: ro.steepest(ro.LInf(0.3 * jnp.minimum(step / 1000, 1.0))))

  Attributes:
    at: (step [], int32, traced) -> the attack to use in that update.
  """

  at: Callable[[Array], Attack]


Candidates = tuple[Array, Array]  # (delta [B, *S], score [B])
Carry = tuple[AscentState, Candidates]


def ascend(maximizer: InnerMaximizer, num_steps: int, keep_best: bool = False) -> Attack:
  """Runs a maximizer for num_steps as one lax.scan; 0 steps return its starting point.

  The attack returns delta [B, *S], through which no gradient flows, and the AscentInfo of every
  step, stacked: value [num_steps, B].

  Args:
    maximizer: an InnerMaximizer, otherwise an InputError.
    num_steps: number of steps, each with one input gradient.
    keep_best: whether delta is, per example, the point of the highest score among the clean example
      and all iterates (two more forward passes) rather than the last iterate. Use it to evaluate;
      training conventionally takes the last iterate. NaN scores rank highest, so that the attack
      counts as successful. If value_fn says which score is `enough`, the ascent ends once every
      example has it; the AscentInfo of the other steps is then -inf (`steps_taken`).
  """
  if not isinstance(maximizer, InnerMaximizer):
    raise InputError(
      f"maximizer must be an InnerMaximizer, as from ro.pgd(uncertainty_set, step), but was "
      f"{described(maximizer)}."
    )
  check_count("num_steps", num_steps)

  def last(value_fn: AnyValueFn, key: Array | None, x: Array) -> tuple[Array, AscentInfo]:
    _check_call(value_fn, x)
    state, info = run_steps(maximizer, num_steps, value_fn, key, x)
    return jax.lax.stop_gradient(state.delta), info

  def best(value_fn: AnyValueFn, key: Array | None, x: Array) -> tuple[Array, AscentInfo]:
    _check_call(value_fn, x)

    def body(carry: Carry, step: Array) -> tuple[Carry, AscentInfo]:
      state, best = carry
      moved, info = maximizer.step(at_step(value_fn, step), state, x)
      return (moved, better(best, (state.delta, info.score))), info

    clean = _scores(value_fn, x)
    start = (maximizer.init(key, x), (jnp.zeros_like(x), clean.score))
    enough = clean.enough
    if enough is None:
      (state, best), info = jax.lax.scan(body, start, jnp.arange(num_steps))
    else:
      (state, best), info = _scan_until(
        lambda carry: jnp.all(_exceeds(carry[1], enough)), body, start, num_steps
      )
    delta, _ = better(best, (state.delta, score_of(value_fn, x + state.delta)))
    return jax.lax.stop_gradient(delta), info

  return best if keep_best else last


def run_steps(
  maximizer: InnerMaximizer, num_steps: int, value_fn: AnyValueFn, key: Array | None, x: Array
) -> tuple[AscentState, AscentInfo]:
  """The state after num_steps, and the AscentInfo of every step, stacked."""

  def body(state: AscentState, step: Array) -> tuple[AscentState, AscentInfo]:
    return maximizer.step(at_step(value_fn, step), state, x)

  return jax.lax.scan(body, maximizer.init(key, x), jnp.arange(num_steps))


def _scan_until(
  done: Callable[[PyTree], Array],
  body: Callable[[PyTree, Array], tuple[PyTree, AscentInfo]],
  start: PyTree,
  num_steps: int,
) -> tuple[PyTree, AscentInfo]:
  """lax.scan of body over the steps, but only until done(carry) []."""
  empty = _not_taken(lambda: body(start, jnp.int32(0))[1], num_steps)

  def step(loop: tuple[Array, PyTree, AscentInfo]) -> tuple[Array, PyTree, AscentInfo]:
    number, carry, infos = loop
    carry, info = body(carry, number)
    return number + 1, carry, jax.tree.map(lambda rows, row: rows.at[number].set(row), infos, info)

  def unfinished(loop: tuple[Array, PyTree, AscentInfo]) -> Array:
    return (loop[0] < num_steps) & ~done(loop[1])

  _, carry, infos = jax.lax.while_loop(unfinished, step, (jnp.int32(0), start, empty))
  return carry, infos


def _not_taken(run: Callable[[], Any], *leading: int) -> Any:
  """What stands for the results of steps that were not taken: -inf, and False."""
  return jax.tree.map(
    lambda leaf: jnp.full(
      (*leading, *leaf.shape),
      -jnp.inf if jnp.issubdtype(leaf.dtype, jnp.floating) else 0,
      leaf.dtype,
    ),
    jax.eval_shape(run),
  )


def steps_taken(info: AscentInfo) -> Array:
  """The number of steps of an attack, [] int32, from its stacked AscentInfo."""
  return jnp.sum(jnp.any(info.score != -jnp.inf, axis=1), dtype=jnp.int32)


def at_step(value_fn: AnyValueFn, step: Array | int) -> ValueFn:
  """The value_fn of one step of an ascent."""
  return value_fn.at(step) if isinstance(value_fn, Stochastic) else value_fn


def after_steps(value_fn: AnyValueFn, num_steps: int) -> AnyValueFn:
  """The value_fn for an ascent that continues another one after num_steps."""
  if not isinstance(value_fn, Stochastic):
    return value_fn
  return Stochastic(lambda step: value_fn.at(step + num_steps))


def only_if(condition: Array, attack: Attack) -> Attack:
  """The attack if `condition`, a traced bool [], holds; otherwise delta = 0 at no cost."""
  check_attack(attack)

  def maybe(value_fn: AnyValueFn, key: Array | None, x: Array) -> tuple[Array, AscentInfo]:
    run = functools.partial(attack, value_fn, key, x)
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(run))
    return jax.lax.cond(condition, run, lambda: nothing)

  return maybe


def restarts(attack: Attack, num_restarts: int) -> Attack:
  """Runs an attack several times with different keys and keeps the best result PER EXAMPLE.

  The attack has a random start and needs a key. The best point has the highest score, and the clean
  example is a candidate; each restart costs one more forward pass. AscentInfo is concatenated over
  restarts, value [num_restarts * num_steps, B].
  """
  check_attack(attack)
  check_count("num_restarts", num_restarts)

  def restarted(value_fn: AnyValueFn, key: Array | None, x: Array) -> tuple[Array, AscentInfo]:
    key = keys.typed(keys.required(key, "A restart"))
    split = jax.random.split
    if key.ndim:  # [B] -> [num_restarts, B]
      split = jax.vmap(split, in_axes=(0, None), out_axes=1)
    each = split(key, num_restarts)

    clean = _scores(value_fn, x)

    def body(best: Candidates, key: Array) -> tuple[Candidates, AscentInfo]:
      if clean.enough is None:
        delta, info = attack(value_fn, key, x)
      else:
        delta, info = _for_the_rest(attack, value_fn, _exceeds(best, clean.enough), key, x)
      return better(best, (delta, score_of(value_fn, x + delta))), info

    (delta, _), info = jax.lax.scan(body, (jnp.zeros_like(x), clean.score), each)
    return delta, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), info)

  return restarted


def check_attack(attack: object, scheduled: bool = False) -> None:
  """InputError with a hint unless `attack` is an attack, or a ScheduledAttack if `scheduled`."""
  if scheduled and isinstance(attack, ScheduledAttack):
    check_callable("at of a ScheduledAttack", attack.at, "step -> attack")
    if takes(attack.at, 0):
      return
    hint = "its `at` must be a function of the step, as in ro.ScheduledAttack(lambda step: attack)"
  elif callable(attack) and not isinstance(attack, type) and takes(attack, None, None, None):
    return
  elif isinstance(attack, UncertaintySet):
    hint = "pass ro.steepest(uncertainty_set), as in ro.steepest(ro.LInf(0.1))"
  elif isinstance(attack, type) and issubclass(attack, UncertaintySet):
    hint = f"pass ro.steepest(ro.{attack.__name__}(radius))"
  elif isinstance(attack, InnerMaximizer):
    hint = "pass ro.ascend(maximizer, num_steps)"
  elif isinstance(attack, ScheduledAttack):
    hint = "only ro.make_train_step takes one; pass its at(step)"
  else:
    hint = "pass the result of ro.steepest, ro.ascend or ro.restarts"
  raise InputError(f"attack must be an attack, but was {described(attack)}: {hint}.")


def check_examples(what: str, x: object, hint: str = "") -> None:
  """Raises an InputError, starting with `what`, unless x is one array of floats [B, *S]."""
  if not isinstance(x, jax.Array | np.ndarray):
    hint = hint or "pass the array that is perturbed as an argument of its own"
    raise InputError(
      f"{what} must be one floating point array [B, *S], but are {described(x)}; {hint}."
    )
  if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 1:
    hint = "; convert them first, x.astype(jnp.float32) / 255" if x.dtype == jnp.uint8 else ""
    raise InputError(
      f"{what} must be a floating point array [B, *S], pixels in [0, 1], but are {x.dtype} of the "
      f"shape {x.shape}{hint}."
    )


def _check_call(value_fn: object, x: object) -> None:
  """InputError unless the arguments of an attack are a function and examples."""
  if not isinstance(value_fn, Stochastic):
    check_callable("value_fn", value_fn, "x [B, *S] -> losses [B]", None)
  check_examples("The examples (x of the attack)", x)


def value_and_input_gradient(value_fn: ValueFn, x: Array) -> tuple[AscentInfo, Array]:
  """AscentInfo at the point x, and the input gradient there, [B, *S]."""

  def total(x: Array) -> tuple[Array, Scored]:  # examples do not interact
    out = scored(value_fn(x), x)
    return jnp.sum(out.value), out

  (_, out), grad = jax.value_and_grad(total, has_aux=True)(x)
  zero = jnp.all(grad == 0, axis=range(1, grad.ndim))
  return AscentInfo(out.value, zero, out.score), grad


def score_of(value_fn: AnyValueFn, x: Array) -> Array:
  """The score of each example, [B]; an InputError if there is one number for the whole batch."""
  return _scores(value_fn, x).score


def _scores(value_fn: AnyValueFn, x: Array) -> Scored:
  out = scored(at_step(value_fn, 0)(x), x)
  per_example(out.score, x)
  return out


def per_example(values: Array, x: Array) -> Array:
  """The values [B]; an InputError if there is one number for the whole batch."""
  if values.shape != x.shape[:1]:
    raise InputError(
      f"To keep the best point of every example the loss must return one value for each of the "
      f"{x.shape[0]} examples, but it has the shape {values.shape}."
    )
  return values


def better(best: Candidates, new: Candidates) -> Candidates:
  """Per example, the point of the higher score: `best` in a tie; NaN ranks highest."""
  higher = (new[1] > best[1]) | (jnp.isnan(new[1]) & ~jnp.isnan(best[1]))
  return where_examples(higher, new[0], best[0]), jnp.where(higher, new[1], best[1])


def _exceeds(best: Candidates, enough: Array) -> Array:
  """Which examples have a score above `enough`, or NaN, [B] bool."""
  return ~(best[1] <= enough)


def _for_the_rest(
  attack: Attack, value_fn: AnyValueFn, done: Array, key: Array, x: Array
) -> tuple[Array, AscentInfo]:
  """Another run of an attack, which does not wait for the examples that are done, [B] bool."""

  def at(step: Array | int) -> ValueFn:
    def of_the_rest(x: Array) -> Scored:
      out = scored(at_step(value_fn, step)(x), x)
      assert out.enough is not None
      return out._replace(enough=jnp.where(done, -jnp.inf, out.enough))

    return of_the_rest

  def run() -> tuple[Array, AscentInfo]:
    return attack(Stochastic(at) if isinstance(value_fn, Stochastic) else at(0), key, x)

  def skip() -> tuple[Array, AscentInfo]:
    return jnp.zeros_like(x), _not_taken(run)[1]

  return jax.lax.cond(jnp.all(done), skip, run)


def scored(out: Array | Scored, x: Array) -> Scored:
  """The output of a value_fn at x, whose value is the score if it has none of its own.

  Raises:
    InputError: the value is not one float per example, [B], or their sum, [].
  """
  result = out if isinstance(out, Scored) else Scored(out, out)
  value, count = result.value, x.shape[0]
  if not isinstance(value, jax.Array | np.ndarray | np.generic | float):
    what = described(value)
  elif jnp.shape(value) not in ((), (count,)) or not jnp.issubdtype(
    jnp.result_type(value), jnp.floating
  ):
    what = f"{jnp.result_type(value)} of the shape {jnp.shape(value)}"
  else:
    return result
  hint = "; a loss with auxiliary data needs has_aux=True" if isinstance(value, tuple) else ""
  raise InputError(
    f"The loss must return one value for each of the {count} examples, a float array [{count}], or "
    f"their sum or mean, [], but returned {what}{hint}."
  )
