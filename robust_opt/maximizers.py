"""Inner maximisers: how the adversary climbs within its uncertainty set.

  attack = ro.steepest(ro.l2(0.5))                       # Algorithm 1's one step
  attack = ro.ascend(ro.pgd(ro.linf(0.3), step=ro.linf(0.01)), num_steps=40)
  delta, info = attack(value_fn, key, x)                 # x + delta raises value_fn
  robust_loss = ro.robustify(loss, attack)               # same arguments as loss

A maximiser is a pair of pure functions, `init` and `step`; `ascend` scans it into an attack. What
is carried (AscentState) is kept apart from what is reported (AscentInfo), which the scan stacks
into curves. Nothing here knows models or data: value_fn [B, *S] -> [B] is all there is.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.types import Array, PyTree, ValueFn
from robust_opt.uncertainty import UncertaintySet


class AscentState(NamedTuple):
  """What an ascent carries: delta [B, *S], and whatever the maximiser remembers."""

  delta: Array
  memory: PyTree = ()


class AscentInfo(NamedTuple):
  """What one ascent step reports.

  Attributes:
    value: what value_fn returned at the point that the step started from.
    zero_gradient: [B] bool, examples whose input gradient was exactly zero there. They stay where
      they are, and an accuracy that counts them as robust overstates itself: report them.
  """

  value: Array
  zero_gradient: Array


class InnerMaximizer(NamedTuple):
  """Climbs value_fn within a set; one input gradient a step.

  Attributes:
    init: (key or None, x [B, *S]) -> AscentState.
    step: (value_fn, state, x [B, *S]) -> (AscentState, AscentInfo).
  """

  init: Callable[[Array | None, Array], AscentState]
  step: Callable[[ValueFn, AscentState, Array], tuple[AscentState, AscentInfo]]


# (value_fn, key or None, x [B, *S]) -> (delta [B, *S], AscentInfo stacked over the steps)
Attack = Callable[[ValueFn, Array | None, Array], tuple[Array, AscentInfo]]


def frank_wolfe(uncertainty: UncertaintySet) -> InnerMaximizer:
  """The conditional gradient method from the clean example; it never leaves the set.

    s_t = argmax over s in U(x) of <grad value_fn(x + delta_t), s>
    delta_{t+1} = delta_t + 2 / (t + 2) (s_t - delta_t),   delta_0 = 0

  Its first iteration goes all the way to s_0: that is the ascent step of Algorithm 1 (Shaham et
  al. 2015), exact when value_fn is linear. Source: Frank and Wolfe (1956); Jaggi (2013), alg. 1.
  """

  def init(key: Array | None, x: Array) -> AscentState:
    del key
    return AscentState(jnp.zeros_like(x), memory=jnp.zeros((), x.dtype))

  def step(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    delta, t = state
    info, grad = _value_and_input_gradient(value_fn, x + delta)
    towards = uncertainty.steepest_ascent(grad, x)
    return AscentState(delta + 2.0 / (t + 2.0) * (towards - delta), t + 1.0), info

  return InnerMaximizer(init, step)


def pgd(
  uncertainty: UncertaintySet, step: UncertaintySet, random_start: bool = True
) -> InnerMaximizer:
  """Projected steepest ascent (Madry et al. 2018, for any norm).

    delta_{t+1} = project onto U(x) of delta_t + steepest ascent in step(x + delta_t)

  A step is itself a steepest ascent, over a smaller set around the current point. Over l2 and l1
  take steps of `l2` without a box: that is projected gradient ascent, which climbs to the maximum
  of a concave function, since the projection knows of the box. An l1 step without a box is lost on
  a pixel that is saturated; l2 and l1 steps with one stop short of the maximum, since the
  projection then takes from saturated pixels what no step gives back.

  Args:
    uncertainty: the set to stay in.
    step: the set of one step: `linf(0.01)` moves every pixel by 0.01.
    random_start: whether to start from a sample of the set (needs a key) rather than from 0.
  """

  def init(key: Array | None, x: Array) -> AscentState:
    if not random_start:
      return AscentState(jnp.zeros_like(x))
    if key is None:
      raise InputError(
        "A random start needs a key, but it was None; pass one to the attack, "
        "or attack_key= to a robustified loss."
      )
    return AscentState(uncertainty.sample(key, x))

  def ascend_once(
    value_fn: ValueFn, state: AscentState, x: Array
  ) -> tuple[AscentState, AscentInfo]:
    info, grad = _value_and_input_gradient(value_fn, x + state.delta)
    moved = state.delta + step.steepest_ascent(grad, x + state.delta)
    return AscentState(uncertainty.project(moved, x)), info

  return InnerMaximizer(init, ascend_once)


def ascend(maximizer: InnerMaximizer, num_steps: int) -> Attack:
  """Runs a maximiser for num_steps as one lax.scan; 0 steps return its starting point.

  The attack returns the last delta [B, *S], through which no gradient flows, and the AscentInfo of
  every step, stacked: value [num_steps, B].
  """

  def attack(value_fn: ValueFn, key: Array | None, x: Array) -> tuple[Array, AscentInfo]:
    def body(state: AscentState, _: None) -> tuple[AscentState, AscentInfo]:
      return maximizer.step(value_fn, state, x)

    state, info = jax.lax.scan(body, maximizer.init(key, x), length=num_steps)
    return jax.lax.stop_gradient(state.delta), info

  return attack


def steepest(uncertainty: UncertaintySet) -> Attack:
  """The ascent of Algorithm 1: one step from the clean example to the edge of the set.

  With `linf` it is the fast gradient sign method (Goodfellow et al. 2015).
  """
  return ascend(frank_wolfe(uncertainty), num_steps=1)


def robustify(
  loss: Callable[..., Any], attack: Attack, argnum: int = 1, has_aux: bool = False
) -> Callable[..., Any]:
  """Turns a loss over a batch into the loss at its worst case over the uncertainty set.

    robust_loss(params, x, y) = loss(params, x + delta, y),  delta = attack's argmax over U(x)

  The result takes the same arguments (and an optional `attack_key=` for attacks that start at
  random), so that a training loop changes in one line. It composes with jit, grad, vmap, pmap and
  shard_map. By Danskin's theorem the gradient in the parameters is the loss's own at the
  maximiser: nothing flows through delta, and the ascent computes no gradient in the parameters.

  Args:
    loss: returns the loss of every example [B] or any sum or mean of it (a steepest ascent does not
      depend on the scale). The examples are its argument number `argnum`, [B, *S].
    attack: from `steepest` or `ascend`.
    argnum: which positional argument holds the examples.
    has_aux: whether loss returns (loss, auxiliary data), as in jax.grad.
  """

  @functools.wraps(loss)
  def robust_loss(*args: Any, attack_key: Array | None = None, **kwargs: Any) -> Any:
    place = range(len(args))[argnum]  # which may be negative, as in jax.grad
    before, x, after = args[:place], args[place], args[place + 1 :]
    frozen = jax.tree.map(_freeze, (before, x, after, kwargs))

    def value_fn(x: Array) -> Array:
      out = loss(*frozen[0], x, *frozen[2], **frozen[3])
      return out[0] if has_aux else out

    delta, _ = attack(value_fn, attack_key, frozen[1])
    return loss(*before, x + delta, *after, **kwargs)

  return robust_loss


def _value_and_input_gradient(value_fn: ValueFn, x: Array) -> tuple[AscentInfo, Array]:
  """The gradient of a sum is every example's own gradient: their losses do not mix."""

  def total(x: Array) -> tuple[Array, Array]:
    value = value_fn(x)
    return jnp.sum(value), value

  (_, value), grad = jax.value_and_grad(total, has_aux=True)(x)
  zero = jnp.all(grad == 0, axis=range(1, grad.ndim))
  return AscentInfo(value, zero), grad


def _freeze(leaf: Any) -> Any:
  return jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf
