"""Accuracy on clean and on attacked examples.

  evaluate = make_evaluate(apply, ro.robust(), lambda radius: ro.steepest(ro.L2(radius)), 500)
  result = evaluate(params, model_state, data, radius, key)
  accuracy = result.robust_correct.mean()

The model runs in evaluation mode, random starts derive from the ids of the examples, and the last
batch is padded: the result counts every example once and depends neither on the batch size nor on
the order. Products are in full float32 on every backend, unless jax.default_matmul_precision is
set. The radius is traced, so that a sweep over radii compiles once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robust_opt import losses
from robust_opt.checks import check_callable
from robust_opt.errors import InputError
from robust_opt.keys import keys_of
from robust_opt.maximizers import Attack
from robust_opt.maximizers.base import check_attack, check_examples
from robust_opt.objectives import RobustObjective
from robust_opt.precision import measured
from robust_opt.training import ArrayData, take
from robust_opt.types import ApplyFn, Array, Batch, LogitsFn, ModelState, Params, PyTree


class Evaluation(NamedTuple):
  """The outcome for every example, each [N]; the means of the first two are accuracies.

  Attributes:
    clean_correct: bool, whether the clean example is classified correctly.
    robust_correct: bool, whether both the clean and the perturbed example are: the adversary may
      also leave an example unchanged, so that this never exceeds the clean accuracy.
    zero_gradient: bool, whether the first input gradient was exactly zero.
  """

  clean_correct: Array
  robust_correct: Array
  zero_gradient: Array


class Perturbed(NamedTuple):
  """A batch under attack: delta [B, *S], logits [B, C] at x and at x + delta."""

  delta: Array
  clean_logits: Array
  robust_logits: Array
  zero_gradient: Array


def perturb(
  apply: ApplyFn,
  params: Params,
  model_state: ModelState,
  objective: RobustObjective,
  attack: Attack,
  batch: Batch,
  key: Array,
) -> Perturbed:
  """Attacks a batch, with the model in evaluation mode.

  Raises:
    InputError: attack is not an attack, the examples are not one array of floats, or the labels are
      not classes of a net of at least two classes.
  """
  check_attack(attack)
  check_examples("The examples (x of the batch)", batch.x)

  def forward(x: Array) -> tuple[Array, ModelState]:
    return apply(params, model_state, x, train=False, key=None)

  clean_logits = forward(batch.x)[0]
  _check_classes(clean_logits, batch.y)
  value_fn = objective.inner(forward, batch.x, batch.y)
  delta, info = attack(value_fn, keys_of(key, batch.ids), batch.x)
  zero = jnp.any(info.zero_gradient[:1], axis=0)
  return Perturbed(delta, clean_logits, forward(batch.x + delta)[0], zero)


def make_evaluate(
  apply: ApplyFn,
  objective: RobustObjective,
  make_attack: Callable[[Any], Attack],
  batch_size: int,
  *,
  place_batch: Callable[[Batch], Batch] = lambda batch: batch,
) -> Callable[[Params, ModelState, ArrayData, PyTree, Array], Evaluation]:
  """A jittable evaluation of a whole data set.

  Args:
    apply: the model.
    objective: defines the value that the attack maximizes.
    make_attack: (radius [], or a set, or any pytree) -> attack; called under trace.
    batch_size: affects speed and memory, not the result.
    place_batch: applies a sharding constraint to a batch (sharding.py).

  Returns:
    evaluate(params, model_state, data, radius [], key) -> Evaluation.

  Raises:
    InputError: an argument is no function; from evaluate: the labels are not classes [N] of a net
      of at least two classes.
  """
  check_callable(
    "apply", apply, "ro.ApplyFn: (params, model_state, x, train, key) -> logits, state"
  )
  check_callable("make_attack", make_attack, "such as lambda r: ro.steepest(ro.L2(r))", None)

  @measured
  def evaluate(
    params: Params, model_state: ModelState, data: ArrayData, radius: PyTree, key: Array
  ) -> Evaluation:
    num_examples = data.labels.shape[0]
    num_batches = -(-num_examples // batch_size)
    # Padded with the last example; cut off below.
    ids = jnp.minimum(jnp.arange(num_batches * batch_size, dtype=jnp.int32), num_examples - 1)

    def one_batch(ids: Array) -> Evaluation:
      batch = place_batch(take(data, ids))
      attack = make_attack(radius)
      out = perturb(apply, params, model_state, objective, attack, batch, key)
      clean_correct = losses.correct(out.clean_logits, batch.y)
      return Evaluation(
        clean_correct,
        clean_correct & losses.correct(out.robust_logits, batch.y),
        out.zero_gradient,
      )

    stacked = jax.lax.map(one_batch, ids.reshape(num_batches, batch_size))
    return jax.tree.map(lambda a: a.reshape(-1)[:num_examples], stacked)

  return evaluate


def _check_classes(logits: Array, labels: Array) -> None:
  """InputError unless labels and logits are those of a classifier."""
  integers = jnp.issubdtype(labels.dtype, jnp.integer)
  if labels.ndim != 1 or not integers or logits.ndim != 2 or logits.shape[1] < 2:
    raise InputError(
      f"Accuracy needs integer labels [B] and logits [B, C] of at least 2 classes, but labels are "
      f"{labels.dtype} of the shape {labels.shape} and the net's outputs have the shape "
      f"{logits.shape}; for the worst case of another loss, use ro.robustify."
    )


def logits_of(apply: ApplyFn, params: Params, model_state: ModelState) -> LogitsFn:
  """The net in evaluation mode, as a Partial of its weights."""
  return jax.tree_util.Partial(_Logits(apply), params, model_state)


class _Logits:
  """Equal for the same apply, so that nets of one architecture share their compilations."""

  def __init__(self, apply: ApplyFn) -> None:
    self._apply = apply

  def __call__(self, params: Params, model_state: ModelState, x: Array) -> Array:
    return self._apply(params, model_state, x, train=False, key=None)[0]

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Logits) and self._apply == other._apply

  def __hash__(self) -> int:
    return hash(self._apply)
