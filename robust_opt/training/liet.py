"""Single-step training that starts from label information: Pan et al. 2025 (ICCV).

  step = make_liet_train_step(apply, optimizer, u, weight=lambda step: 100.0)
  state = init_state(params, model_state, optimizer, np.zeros((num_classes, 32, 32, 3), np.float32))

Catastrophic overfitting: the network learns to read the label from a single step of the attack.
The perturbation of an image without content, a gray one, shows what it reads, one for each class.
Training starts there, in the direction of the step or against it, and is made to predict the same
before the step and after it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from robust_opt import losses
from robust_opt.keys import keys_of
from robust_opt.sets import UncertaintySet
from robust_opt.training.state import TrainMetrics, TrainState, TrainStep, updated
from robust_opt.training.step import check_batch, check_losses
from robust_opt.types import ApplyFn, Array, Batch, LossFn, ModelState, Params

NOISE = (0.1, 0.5)  # the share of the pixels that start at random, uniform between these


def make_liet_train_step(
  apply: ApplyFn,
  optimizer: optax.GradientTransformation,
  uncertainty: UncertaintySet,
  weight: Callable[[Array], Array | float],
  refresh: int = 20,
  targets: Callable[[int], Array] = jnp.arange,
  loss: LossFn = losses.cross_entropy,
) -> TrainStep:
  """An update by one ascent step from label information, with a consistent prediction.

    I_c = argmax over U of <grad J(gray, c), delta>,  gray = 1/2 everywhere, in evaluation mode
    x_0 = x +- I_y, with a random sign, and noise of U in a random part of the pixels
    x' = x_0 + argmax over U of <grad J(x_0, y), delta>, projected
    minimize J(x', y) + weight JS(p(x_0) || p(x')), through both predictions

  Source: Pan et al. 2025 ("Mitigating catastrophic overfitting in fast adversarial training via
  label information elimination", ICCV) and its code. There the sign and the share of the noise are
  drawn for a batch, here for each example. The net is in train mode in both passes; the second one
  updates the running statistics. Three backward passes.

  Args:
    apply, loss: the model and J.
    optimizer: of the parameters.
    uncertainty: U.
    weight: state.step -> weight of the divergence; it grows linearly to 100 in the source.
    refresh: I_c is computed at every refresh-th step, and kept in state.memory, [num_classes, *S].
    targets: num_classes -> labels of the classes, [num_classes, ...], as the loss takes them.
  """

  def label_information(state: TrainState) -> Array:
    memory = state.memory
    gray = jnp.full_like(memory, 0.5)
    labels = targets(len(memory))

    def total(x: Array) -> Array:
      logits, _ = apply(state.params, state.model_state, x, train=False, key=None)
      return jnp.sum(loss(logits, labels))

    return uncertainty.steepest_ascent(jax.grad(total)(gray), gray).astype(memory.dtype)

  def start(information: Array, batch: Batch, key: Array) -> Array:
    classes = batch.y if batch.y.ndim == 1 else jnp.argmax(batch.y, axis=-1)

    def draw(key: Array, informed: Array) -> tuple[Array, Array]:
      sign, share, pixels = jax.random.split(key, 3)
      low, high = NOISE
      noisy = jax.random.bernoulli(
        pixels, jax.random.uniform(share, (), minval=low, maxval=high), informed.shape
      )
      return noisy, jnp.where(jax.random.bernoulli(sign), informed, -informed)

    draw_key, noise_key = jax.random.split(key)
    noisy, informed = jax.vmap(draw)(keys_of(draw_key, batch.ids), information[classes])
    noise = uncertainty.sample(keys_of(noise_key, batch.ids), batch.x)
    return uncertainty.project(jnp.where(noisy, noise, informed), batch.x)

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, TrainMetrics]:
    check_batch(batch)
    start_key, net_key = jax.random.split(key)
    fresh = state.step % refresh == 0
    memory = jax.lax.cond(fresh, label_information, lambda state: state.memory, state)
    delta = start(memory, batch, start_key)

    def forward(params: Params, x: Array) -> tuple[Array, ModelState]:
      return apply(params, state.model_state, x, train=True, key=net_key)

    def total(logits: Array) -> Array:
      return jnp.sum(loss(logits, batch.y))

    def objective(before: Array, after: Array) -> Array:
      values = loss(after, batch.y)
      check_losses(values, batch)
      return jnp.mean(values + weight(state.step) * losses.jensen_shannon(before, after))

    # The forward pass at x_0 serves both the ascent and the divergence.
    before, pull_before, _ = jax.vjp(forward, state.params, batch.x + delta, has_aux=True)
    _, g = pull_before(jax.grad(total)(before))
    zeros = jnp.sum(jnp.all(g == 0, axis=range(1, g.ndim)), dtype=jnp.int32)
    ascent = uncertainty.steepest_ascent(g, batch.x + delta)
    delta = uncertainty.project(delta + ascent, batch.x)

    at = lambda params: forward(params, batch.x + delta)  # noqa: E731
    after, pull_after, model_state = jax.vjp(at, state.params, has_aux=True)
    value, (of_before, of_after) = jax.value_and_grad(objective, argnums=(0, 1))(before, after)
    gradient = jax.tree.map(jnp.add, pull_before(of_before)[0], pull_after(of_after)[0])
    moved = updated(state, optimizer, gradient, model_state, memory)
    return moved, TrainMetrics(value, zeros)

  return step
