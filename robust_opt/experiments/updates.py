"""From a config to its update: an objective, an attack over a set, and what goes with them.

step = updates.make(config, net, optimizer, u, image_shape, steps_per_epoch)
memory = updates.memory(config, train.images)
state = init_state(params, model_state, optimizer, memory)
state, metrics = jax.jit(step)(state, batch, key)
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from robust_opt import losses, maximizers, models
from robust_opt.errors import InputError
from robust_opt.experiments import build, sections
from robust_opt.experiments.attacks import ONE_PASS, scaled, step_set
from robust_opt.maximizers import Attack, ScheduledAttack
from robust_opt.models import affine
from robust_opt.objectives import RobustObjective
from robust_opt.sets import UncertaintySet
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


def make(
  config: ConfigDict,
  net: nn.Module,
  optimizer: optax.GradientTransformation,
  u: UncertaintySet,
  image_shape: Sequence[int],
  steps_per_epoch: int,
) -> TrainStep:
  """The config's update: by one backward pass, or of its objective under its attack.

  Args:
    config: checked by config.validate.
    net: the network.
    optimizer: from build.optimizer.
    u: from build.own_set.
    image_shape: [H, W, C].
    steps_per_epoch: updates an epoch, for what changes with time.

  Raises:
    InputError: parts of the config do not fit together.
  """
  check_together(config)
  apply, gamma = models.from_linen(net), config.weights.perturbation
  match config.attack.name:
    case "free":
      replays, whole = config.attack.num_replays, step_set(u, 1.0)
      return free.make_free_train_step(apply, optimizer, u, whole, replays, _loss(config))
    case "recall":
      build.attack(config).train(u)  # which refuses sets that signs do not serve
      return free.make_recall_train_step(apply, optimizer, u, _loss(config))
  if hidden := config.attack.get("hidden_radius"):
    apply = layerwise.lifted_apply(net, image_shape)
    u = layerwise.layerwise(net, image_shape, u, hidden)
  step = make_train_step(
    apply,
    optimizer,
    objective(config, u),
    training_attack(config, u, steps_per_epoch),
    ascent_apply=_ascent_apply(config, net),
    ascent_in_train_mode=config.attack.get("train_mode", False),
    perturb_weights=optimizers.adversarial_weights(gamma) if gamma else None,
    penalty=penalty(config, net, u),
  )
  return layerwise.lifted_step(step, layerwise.shapes(net, image_shape)) if hidden else step


def memory(config: ConfigDict, images: np.ndarray) -> PyTree:
  """What the first update on images [N, *S] finds in TrainState.memory; () for most attacks."""
  match config.attack.name:
    case "free":
      return np.zeros((config.training.batch_size, *images.shape[1:]), np.float32)
    case "recall":
      key = streams(jax.random.key(config.seed)).memory
      return free.unknown_directions(key, len(images), images.shape[1:])
    case _:
      return ()


def training_attack(
  config: ConfigDict, u: UncertaintySet, steps_per_epoch: int
) -> Attack | ScheduledAttack:
  """config.attack over a set, as it is at each step.

  The radii may grow at first, and updates between every k-th may do without an adversary.
  """
  attack = build.attack(config)
  every, warmup = config.attack.get("every", 1), config.attack.get("warmup", 0.0)
  warmup_steps = warmup * config.training.epochs * steps_per_epoch

  def at(step: Array) -> Attack:
    grown = scaled(u, jnp.minimum(step / warmup_steps, 1.0)) if warmup_steps else u
    now = attack.train(grown)
    return now if every == 1 else maximizers.only_if(step % every == 0, now)

  return ScheduledAttack(at) if warmup or every > 1 else attack.train(u)


def objective(config: ConfigDict, u: UncertaintySet) -> RobustObjective:
  """config.objective."""
  return sections.make(config, "objective", u=u)


def penalty(config: ConfigDict, net: nn.Module, u: UncertaintySet) -> penalties.Penalty | None:
  """config.penalty, times its weight."""
  if config.penalty.name == "none":
    return None
  layers_of, model = functools.partial(affine.layers_of, net), models.from_linen(net)
  unweighted = sections.make(config, "penalty", layers_of=layers_of, model=model, u=u)
  return penalties.weighted(config.penalty.weight, unweighted)


def _loss(config: ConfigDict) -> LossFn:
  return sections.loss_of(config.objective.get("loss", losses.cross_entropy.__name__))


def _ascent_apply(config: ConfigDict, net: nn.Module) -> ApplyFn | None:
  """The net in the arithmetic of the ascent, if that is another than its own."""
  dtype = config.attack.get("dtype", "float32")
  if dtype == "float32":
    return None
  if not hasattr(net, "dtype"):
    raise InputError(
      f"--config.attack.dtype={dtype} needs a network with an attribute dtype, which "
      f"{type(net).__name__} does not have."
    )
  return models.from_linen(net.clone(dtype=jnp.dtype(dtype)))


def check_together(config: ConfigDict) -> None:
  """Raises an InputError for combinations of sections that would not do what their names say."""
  attack, name = config.attack.name, config.objective.name
  flat = name in ("trades", "virtual")
  if flat and not build.attack(config).random:
    raise InputError(
      f"--config.objective.name={name} ascends a divergence that is flat at the clean example: "
      f"--config.attack.name must be power_iteration, n_fgsm, or pgd with "
      f"--config.attack.random_start=True, but was {attack}."
    )
  if attack == "power_iteration" and not flat:
    raise InputError(
      f"--config.attack.name=power_iteration ascends what is flat at the clean example: "
      f"--config.objective.name must be trades or virtual, but was {name}."
    )
  if name == "gradient_penalty" and attack != "none":
    raise InputError(
      f"--config.objective.name=gradient_penalty has no attack: --config.attack.name must be none, "
      f"but was {attack}."
    )
  needed: dict[str, object] = {}
  if attack in (*ONE_PASS, "layerwise"):
    needed |= {"objective.name": "robust", "penalty.name": "none"}
  if attack in ONE_PASS:
    needed |= {"weights.perturbation": 0.0}
  if attack == "recall":
    needed |= {"training.augment": ()}  # a flipped image would recall another's directions
  for key, value in needed.items():
    section, _, own = key.partition(".")
    if config[section][own] != value:
      raise InputError(
        f"--config.attack.name={attack} needs --config.{key}={value}, but it was "
        f"{config[section][own]}."
      )
  if config.penalty.name == "gradient_alignment" and config.data.labels and name == "virtual":
    raise InputError(
      f"--config.penalty.name=gradient_alignment needs the labels of all examples, but "
      f"--config.data.labels={config.data.labels} keeps that many."
    )
