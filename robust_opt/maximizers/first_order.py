"""Maximizers that follow the input gradient: conditional gradient, projected ascent, optax."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from robust_opt import keys
from robust_opt.arrays import where_examples
from robust_opt.checks import check_flag, check_optimizer
from robust_opt.maximizers.base import (
  AnyValueFn,
  AscentInfo,
  AscentState,
  Attack,
  InnerMaximizer,
  ascend,
  value_and_input_gradient,
)
from robust_opt.precision import computed_wide
from robust_opt.sets import L2
from robust_opt.sets.base import UncertaintySet, check_set
from robust_opt.sets.projections import over_largest
from robust_opt.types import Array, ValueFn

# The set of every step, or t [] -> the set of step t = 0, 1, ...
Steps = UncertaintySet | Callable[[Array], UncertaintySet]


def frank_wolfe(u: UncertaintySet) -> InnerMaximizer:
  """The conditional gradient method from the clean example; its iterates stay in the set.

    s_t = argmax over s in U(x) of <grad value_fn(x + delta_t), s>
    delta_{t+1} = delta_t + 2 / (t + 2) (s_t - delta_t),   delta_0 = 0

  The first iterate is s_0, the ascent step of Algorithm 1 (Shaham et al. 2015), which is exact if
  value_fn is linear. Source: Frank and Wolfe (1956); Jaggi (2013), alg. 1.
  """

  check_set("frank_wolfe", u)

  def init(key: Array | None, x: Array) -> AscentState:
    del key
    return AscentState(jnp.zeros_like(x), memory=jnp.zeros((), jnp.int32))

  def step(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    delta, t = state
    info, grad = value_and_input_gradient(value_fn, x + delta)
    toward = u.steepest_ascent(grad, x)
    rate = (2.0 / (t + 2.0)).astype(x.dtype)
    moved = delta + rate * (toward - delta)
    return AscentState(where_examples(info.zero_gradient, delta, moved), t + 1), info

  return InnerMaximizer(init, step)


def pgd(
  u: UncertaintySet, step: Steps, random_start: bool = True, momentum: float = 0.0
) -> InnerMaximizer:
  """Projected steepest ascent (Madry et al. 2018, arXiv 1706.06083, for any norm).

    delta_{t+1} = project onto U(x) of delta_t + steepest ascent in step(x + delta_t)

  A step is itself a steepest ascent over a smaller set around the current point. For L2 and L1
  sets, take steps in an `L2` without a box: this is projected gradient ascent, which reaches the
  maximum of a concave function, since the projection handles the box. An L1 step without a box is
  wasted on a saturated pixel; L2 and L1 steps with a box do not reach the maximum, since the
  projection shrinks saturated pixels irreversibly.

  Args:
    u: the set to project onto.
    step: the set of one step: `LInf(0.01)` moves every pixel by 0.01; or a schedule, from the step
      number to its set: `lambda t: LInf(0.05 * 0.9**t)`.
    random_start: whether to start from a sample of the set (needs a key) rather than from 0.
    momentum: mu of momentum PGD, whose steps ascend along g_{t+1} = mu g_t + grad / |grad|_1
      (Dong et al. 2018, arXiv 1710.06081, equation 6); 0: along the gradient.
  """
  check_set("pgd", u)
  if not callable(step) or isinstance(step, type):  # not a schedule
    check_set("The step of pgd", step)
  check_flag("random_start", random_start)

  def init(key: Array | None, x: Array) -> AscentState:
    memory = (jnp.zeros((), jnp.int32), jnp.zeros_like(x) if momentum else ())
    if not random_start:
      return AscentState(jnp.zeros_like(x), memory)
    return AscentState(u.sample(keys.required(key, "A random start"), x), memory)

  def update(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    delta, (t, velocity) = state
    info, grad = value_and_input_gradient(value_fn, x + delta)
    if momentum:
      grad = velocity = momentum * velocity + _of_unit_l1(grad)
    ball = step if isinstance(step, UncertaintySet) else step(t)
    check_set("The step of pgd", ball)
    moved = u.project(delta + ball.steepest_ascent(grad, x + delta), x)
    return AscentState(where_examples(info.zero_gradient, delta, moved), (t + 1, velocity)), info

  return InnerMaximizer(init, update)


def noisy_step(noise: UncertaintySet, step: UncertaintySet) -> InnerMaximizer:
  """Steps from random noise (needs a key) without a projection: N-FGSM for l_inf.

    delta_0 ~ noise,   delta_{t+1} = delta_t + steepest ascent in step(x + delta_t)

  One step from noise in twice the ball avoids the catastrophic overfitting of FGSM training; delta
  may lie outside the ball. If both sets have a box, x + delta stays in it. Source: de Jorge et al.
  2022 (arXiv 2202.01181).
  """
  check_set("noisy_step", noise)
  check_set("The step of noisy_step", step)

  def init(key: Array | None, x: Array) -> AscentState:
    return AscentState(noise.sample(keys.required(key, "A noisy step"), x))

  def update(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    info, grad = value_and_input_gradient(value_fn, x + state.delta)
    moved = state.delta + step.steepest_ascent(grad, x + state.delta)
    return AscentState(where_examples(info.zero_gradient, state.delta, moved)), info

  return InnerMaximizer(init, update)


def projected(
  u: UncertaintySet, optimizer: optax.GradientTransformation, random_start: bool = False
) -> InnerMaximizer:
  """Any optax optimizer as the ascent, with a projection onto U(x) after every step.

    projected(ro.LInf(0.3), optax.adam(0.01))

  The optimizer minimizes -value_fn in delta for each example separately: its norms and counts are
  those of one example, its learning rate is in pixels. random_start as for `pgd`.
  """
  check_set("projected", u)
  check_optimizer(optimizer)

  def init(key: Array | None, x: Array) -> AscentState:
    delta = pgd(u, u, random_start).init(key, x).delta
    return AscentState(delta, jax.vmap(optimizer.init)(delta))

  def step(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    info, grad = value_and_input_gradient(value_fn, x + state.delta)
    updates, memory = jax.vmap(optimizer.update)(-grad, state.memory, state.delta)
    moved = u.project(state.delta + updates, x)
    return AscentState(where_examples(info.zero_gradient, state.delta, moved), memory), info

  return InnerMaximizer(init, step)


def power_iteration(u: UncertaintySet) -> InnerMaximizer:
  """One step along the dominant direction of the Hessian H, for values that are flat at x.

    d_{t+1} = H d_t / |H d_t|_2,   delta = argmax over delta in U(x) of <H d_t, delta>

  For divergences from the prediction at x, whose gradient at x is zero and whose H is positive
  semidefinite. H d is a forward-over-reverse product, at the cost of about two forward and backward
  passes, not a finite difference. Over an l_2 ball, one step of it is the adversary of virtual
  adversarial training (Miyato et al. 2015, arXiv 1507.00677, section 3). It starts from a random
  direction (needs a key); an example whose H d is zero does not move.
  """
  check_set("power_iteration", u)

  def init(key: Array | None, x: Array) -> AscentState:
    each = keys.per_example(keys.required(key, "Power iteration"), x.shape[0])
    direction = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(each)
    return AscentState(jnp.zeros_like(x), direction)

  def step(value_fn: ValueFn, state: AscentState, x: Array) -> tuple[AscentState, AscentInfo]:
    delta, direction = state

    def gradient(x: Array) -> tuple[Array, AscentInfo]:
      info, grad = value_and_input_gradient(value_fn, x)
      return grad, info

    unit = L2(1.0).steepest_ascent(direction, direction)
    _, curved, info = jax.jvp(gradient, (x,), (unit,), has_aux=True)
    zero = jnp.all(curved == 0, axis=range(1, x.ndim))
    moved = u.steepest_ascent(curved, x)
    state = AscentState(where_examples(zero, delta, moved), where_examples(zero, direction, curved))
    return state, info._replace(zero_gradient=zero)

  return InnerMaximizer(init, step)


def steepest(u: UncertaintySet) -> Attack:
  """The ascent step of Algorithm 1: from the clean example to the boundary of the set.

  With `LInf` it is the fast gradient sign method (Goodfellow et al. 2015).
  """
  check_set("steepest", u)
  return ascend(frank_wolfe(u), num_steps=1)


def noise(u: UncertaintySet, extreme: bool = False) -> Attack:
  """A random point of the set, independent of the loss: a control for adversarial training.

  It is a sample, or, if `extreme`, the steepest ascent along random signs (a corner of an l_inf
  ball). The attack needs a key and has an empty AscentInfo. Source: Goodfellow et al. 2015 (arXiv
  1412.6572), section 6.
  """
  check_set("noise", u)

  def blind(value_fn: AnyValueFn, key: Array | None, x: Array) -> tuple[Array, AscentInfo]:
    del value_fn
    key = keys.required(key, "Noise")
    nothing = jnp.zeros((0, x.shape[0]), x.dtype)
    info = AscentInfo(nothing, nothing.astype(bool), nothing)
    if not extreme:
      return u.sample(key, x), info
    each = keys.per_example(key, x.shape[0])
    signs = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))(each)
    return u.steepest_ascent(signs, x), info

  return blind


@computed_wide
def _of_unit_l1(grad: Array) -> Array:
  """Each example's gradient divided by its l_1 norm; 0 stays 0."""
  axes = tuple(range(1, grad.ndim))
  scaled = over_largest(grad, axes)
  total = jnp.sum(jnp.abs(scaled), axis=axes, keepdims=True)
  return scaled / jnp.where(total > 0, total, 1.0)
