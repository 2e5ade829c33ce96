"""From a config to the update that it trains by: an objective, an attack, and what goes with them.

  step = updates.make(config, net, optimizer, train.images, steps_per_epoch)
  memory = updates.memory(config, train.images)
  state = init_state(params, model_state, optimizer, memory)
  state, metrics = jax.jit(step)(state, batch, key)

Everything by name, getattr(module, name)(**kwargs), as in build.py. What would silently be
something else than its name says is refused.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from robust_opt import losses, maximizers, models, objectives, sets
from robust_opt.errors import InputError
from robust_opt.experiments import build
from robust_opt.experiments import config as config_lib
from robust_opt.maximizers import Attack, ScheduledAttack
from robust_opt.models import affine
from robust_opt.objectives import RobustObjective
from robust_opt.sets import BasisOf, balls, tangents
from robust_opt.training import (
  TrainStep,
  free,
  layerwise,
  make_train_step,
  optimizers,
  penalties,
  streams,
)
from robust_opt.types import ApplyFn, Array, LossFn, PyTree

# Attacks whose ascent is the descent's own backward pass.
ONE_PASS = ("free", "recall")


def make(
  config: ConfigDict,
  net: nn.Module,
  optimizer: optax.GradientTransformation,
  images: np.ndarray,
  steps_per_epoch: int,
) -> TrainStep:
  """The config's update: by one backward pass, or of its objective under its attack.

  Args:
    config: checked by config.validate.
    net: the network.
    optimizer: from build.optimizer.
    images: [N, *S], of the training set; their shape counts, and tangent planes are learnt here.
    steps_per_epoch: updates an epoch, for what changes with time.

  Raises:
    InputError: parts of the config do not fit together.
  """
  _refuse(config)
  chosen = objective(config)
  if _is_one_pass(config):
    return _one_pass(config, models.from_linen(net), optimizer)
  radius, shape = config.uncertainty.hidden_radius, images.shape[1:]
  gamma = config.training.weight_perturbation
  step = make_train_step(
    layerwise.lifted_apply(net, shape) if radius else models.from_linen(net),
    optimizer,
    chosen,
    training_attack(config, net, images, steps_per_epoch),
    ascent_apply=_ascent_apply(config, net),
    ascent_in_train_mode=config.attack.train_mode,
    perturb_weights=optimizers.adversarial_weights(gamma) if gamma else None,
    penalty=penalty(config, net),
  )
  if radius:
    step = layerwise.lifted_step(step, layerwise.shapes(net, shape))
  return step


def memory(config: ConfigDict, images: np.ndarray) -> PyTree:
  """What the first update finds in TrainState.memory; () for all but those of one backward pass.

  Args:
    config: checked by config.validate.
    images: [N, *S], of the training set.
  """
  if not _is_one_pass(config):
    return ()
  if config.attack.name == "free":
    return np.zeros((config.training.batch_size, *images.shape[1:]), np.float32)
  key = streams(jax.random.key(config.seed)).memory
  return free.unknown_directions(key, len(images), images.shape[1:])


def training_attack(
  config: ConfigDict, net: nn.Module, images: np.ndarray, steps_per_epoch: int
) -> Attack | ScheduledAttack:
  """`build.attack` as it is trained by: over the config's set, as it is at each step.

  The radius may grow at first, and all but every so-manieth update may do without an adversary.
  Arguments as of `make`.
  """
  norm, num_steps, every = config.uncertainty.name, config.attack.num_steps, config.attack.every
  warmup = config.uncertainty.warmup * config.training.epochs * steps_per_epoch
  basis_of = _basis_of(config, images)

  def attack(radius: float | Array) -> Attack:
    if basis_of is not None:
      return maximizers.steepest(sets.TangentAt(radius, basis_of))
    if config.uncertainty.hidden_radius:
      first = build.uncertainty_set(config, norm, radius)
      return maximizers.steepest(
        layerwise.layerwise(net, images.shape[1:], first, config.uncertainty.hidden_radius)
      )
    return build.attack(config, build.uncertainty_set(config, norm, radius), num_steps)

  def at(step: Array) -> Attack:
    share = jnp.minimum(step / warmup, 1.0) if warmup else 1.0
    now = attack(config.uncertainty.radius * share)
    return now if every == 1 else maximizers.only_if(step % every == 0, now)

  return ScheduledAttack(at) if warmup or every > 1 else attack(config.uncertainty.radius)


def penalty(config: ConfigDict, net: nn.Module) -> penalties.Penalty | None:
  """The config's penalty, times its weight; none for the weight 0."""
  name, weight = config.penalty.name, config.penalty.weight
  if not weight:
    return None
  if name == "gradient_alignment":
    if config.dataset.labels and config.objective.name == "virtual":
      raise InputError(
        "--config.penalty.name=gradient_alignment needs the labels of all examples, but "
        f"--config.dataset.labels={config.dataset.labels} keeps so many."
      )
    ball = build.uncertainty_set(config, config.uncertainty.name, config.uncertainty.radius)
    return penalties.weighted(weight, penalties.gradient_alignment(models.from_linen(net), ball))
  layers_of = functools.partial(affine.layers_of, net)
  return penalties.weighted(weight, getattr(penalties, name)(layers_of))


def _is_one_pass(config: ConfigDict) -> bool:
  return config.attack.name in ONE_PASS and config.attack.num_steps > 0


def _one_pass(
  config: ConfigDict, apply: ApplyFn, optimizer: optax.GradientTransformation
) -> TrainStep:
  """Free training, and Algorithm 1 at directions of the last visit."""
  loss = _loss(config)
  norm, radius = config.uncertainty.name, config.uncertainty.radius
  ball = build.uncertainty_set(config, norm, radius)
  if config.attack.name == "recall":
    return free.make_recall_train_step(apply, optimizer, ball, loss)
  # A step of l_1 would be lost on a saturated pixel.
  ascent = balls.LInf(radius) if norm == "linf" else balls.L2(radius)
  steps = config.attack.num_steps
  return free.make_free_train_step(apply, optimizer, ball, ascent, steps, loss)


def _basis_of(config: ConfigDict, images: np.ndarray) -> BasisOf | None:
  """The tangent planes that the adversary keeps to, learnt from the training images."""
  if config.uncertainty.tangents == "none":
    return None
  given = config.uncertainty
  return tangents.fit(given.tangents, images, given.tangent_rank, config.seed)


def _ascent_apply(config: ConfigDict, net: nn.Module) -> ApplyFn | None:
  """The net in the arithmetic of the ascent, if that is another than its own."""
  if config.attack.dtype == "float32":
    return None
  if not hasattr(net, "dtype"):
    raise InputError(
      f"--config.attack.dtype={config.attack.dtype} needs a net with an attribute dtype, which "
      f"{type(net).__name__} has not."
    )
  return models.from_linen(net.clone(dtype=jnp.dtype(config.attack.dtype)))


def _refuse(config: ConfigDict) -> None:
  """Refuses keys that would not do what they say beside the others."""
  attack, given = config.attack, config.uncertainty
  steps = attack.num_steps
  if attack.name in ("recall", "random_signs") and steps and given.name == "l1":
    raise InputError(
      f"--config.attack.name={attack.name} has signs alone, and over l_1 signs name no largest "
      f"pixel: --config.uncertainty.name must be linf or l2, but was l1."
    )
  if _is_one_pass(config):
    _demand(config, f"attack.name={attack.name}", {"objective.name": "robust", **_WITHOUT})
  if attack.name == "recall" and steps:
    # A flipped image would recall the directions of another.
    _demand(config, "attack.name=recall", {"attack.num_steps": 1, "training.augment": ()})
  one_step = {"attack.name": "pgd", "attack.num_steps": 1, "attack.random_start": False}
  if given.tangents != "none":
    wanted = one_step | {"uncertainty.name": "l2", "uncertainty.box": False}
    _demand(config, f"uncertainty.tangents={given.tangents}", wanted)
  if given.hidden_radius:
    wanted = one_step | {
      "objective.name": "robust",
      "uncertainty.tangents": "none",
      "attack.dtype": "float32",
      "penalty.weight": 0.0,
    }
    _demand(config, f"uncertainty.hidden_radius={given.hidden_radius}", wanted)


# Of a step that is its own: what make_train_step would do.
_WITHOUT: dict[str, Any] = {
  "uncertainty.warmup": 0.0,
  "uncertainty.tangents": "none",
  "uncertainty.hidden_radius": 0.0,
  "attack.every": 1,
  "attack.dtype": "float32",
  "penalty.weight": 0.0,
  "training.weight_perturbation": 0.0,
}


def _demand(config: ConfigDict, why: str, wanted: dict[str, Any]) -> None:
  for key, allowed in wanted.items():
    value = config
    for part in key.split("."):
      value = value[part]
    if value != allowed:
      raise InputError(
        f"--config.{why} stands by itself: --config.{key} must be {allowed}, but was {value!r}."
      )


def objective(config: ConfigDict) -> RobustObjective:
  """The config's objective over its loss, to train by."""
  given = config.objective.to_dict()
  name = given.pop("name")
  if name not in objectives.__all__:
    allowed = ", ".join(objectives.__all__)
    raise InputError(f"--config.objective.name must be one of {allowed}, but was {name!r}.")
  _fits(config, name)
  if "loss" in given:
    given["loss"] = _loss(config)
  if name == "gradient_penalty":
    given["uncertainty"] = build.uncertainty_set(
      config, config.uncertainty.name, config.uncertainty.radius
    )
  try:
    return getattr(objectives, name)(**given)
  except TypeError as error:
    raise InputError(f"--config.objective does not fit {name}: {error}.") from error


def _loss(config: ConfigDict) -> LossFn:
  """The config's loss; the cross-entropy where it names none."""
  name = config.objective.get("loss", "cross_entropy")
  if name not in config_lib.LOSSES:
    raise InputError(
      f"--config.objective.loss must be one of {', '.join(config_lib.LOSSES)}, but was {name!r}."
    )
  return getattr(losses, name)


def _fits(config: ConfigDict, name: str) -> None:
  """Refuses an objective and an attack that together would silently be something else."""
  attack = config.attack
  flat = name in ("trades", "virtual")  # the divergence, at the clean example
  random = attack.name in ("power_iteration", "n_fgsm") or (
    attack.name == "pgd" and attack.random_start
  )
  if flat and not (random and attack.num_steps):
    raise InputError(
      f"--config.objective.name={name} ascends a divergence that is flat at the clean example: it "
      f"needs one step or more of --config.attack.name=power_iteration or n_fgsm, or of pgd with "
      f"--config.attack.random_start."
    )
  if attack.name == "power_iteration" and attack.num_steps and not flat:
    raise InputError(
      f"--config.attack.name=power_iteration ascends what is flat at the clean example: "
      f"--config.objective.name must be trades or virtual, but was {name!r}."
    )
  if attack.name in ("n_fgsm", *config_lib.NOISES) and attack.num_steps > 1:
    raise InputError(
      f"--config.attack.name={attack.name} is one step: --config.attack.num_steps must be 1, but "
      f"was {attack.num_steps}."
    )
  if name == "gradient_penalty" and (attack.num_steps or config.uncertainty.warmup):
    raise InputError(
      f"--config.objective.name=gradient_penalty has no attack, over a fixed radius: "
      f"--config.attack.num_steps and --config.uncertainty.warmup must be 0, but were "
      f"{attack.num_steps} and {config.uncertainty.warmup}."
    )
