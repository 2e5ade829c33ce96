"""The state that a run starts from: at random, or weights of a run or a file (config.init_from).

first = initial.start(experiment)
first.state, first.sha256
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from robust_opt import training, weight_files, weights
from robust_opt.errors import InputError
from robust_opt.experiments import build, target
from robust_opt.experiments.assembly import Experiment
from robust_opt.training import TrainState, sharding
from robust_opt.types import ModelState, Params, PyTree


class Start(NamedTuple):
  """A state before the first update."""

  state: TrainState  # on the devices
  sha256: str | None  # of the parameters and batch statistics; None: they are random


def start(experiment: Experiment) -> Start:
  """The state of random weights, or of those of config.init_from.

  That is the work directory of a run, whose weights are those that it reports on: of its last or
  best checkpoint, averaged if it averages weights. Or it is a file or folder of weights
  (robust_opt.weight_files).
  The optimizer, the order of the data and all keys start anew, and images are standardized as this
  config says.

  Raises:
    InputError: it is neither, or its network has another architecture.
  """
  config, blank = experiment.config, experiment.state
  if not config.init_from:
    return Start(blank, None)
  name = f"--config.init_from={config.init_from}"
  path, endings = Path(config.init_from), (*weight_files.SAFETENSORS, *weight_files.TORCH)
  if path.suffix in endings or (path / weight_files.HUB_FILE).is_file():
    return _from_file(experiment, path)
  if not (path / "config.json").is_file():
    raise InputError(
      f"{name} must be the work directory of a run of robust_opt.main, a folder of "
      f"ro.save_weights, or a file of weights ({', '.join(endings)})."
    )
  try:
    run = target.load_run(config.init_from)
  except InputError as error:
    raise InputError(str(error).replace("--workdir=", "--config.init_from=")) from error
  found, own = (run.params, run.model_state), (blank.params, blank.model_state)
  differing = _first_difference(found, own)
  if differing:
    raise InputError(f"{name} has a network of another architecture: {differing}.")
  params, model_state = jax.tree.map(lambda new, old: np.asarray(new, old.dtype), found, own)
  return Start(_state(experiment, params, model_state), run.sha256)


def _from_file(experiment: Experiment, path: Path) -> Start:
  """The state of the weights in a file."""
  config, train = experiment.config, experiment.splits.train
  net, shape = build.model(config, train), train.images.shape[1:]
  try:
    loaded = weights.loaded(net, weight_files.read(path), path, shape)
  except InputError as error:
    if isinstance(error, ImportError):
      raise
    raise InputError(f"--config.init_from={error}") from error
  return Start(_state(experiment, loaded.params, loaded.model_state), loaded.sha256)


def _state(experiment: Experiment, params: Params, model_state: ModelState) -> TrainState:
  """Before the first update, on the devices."""
  optimizer = build.optimizer(experiment.config, experiment.plan.num_steps)
  state = training.init_state(params, model_state, optimizer, experiment.state.memory)
  return sharding.replicate(state, sharding.data_mesh())


def _first_difference(found: PyTree, own: PyTree) -> str:
  """In words, the first array that only one of two trees has, or that has another shape in them."""

  def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path[1:]): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}

  theirs, ours = shapes(found), shapes(own)
  for name in {**ours, **theirs}:
    there, here = (str(list(s[name])) if name in s else "absent" for s in (theirs, ours))
    if there != here:
      return f"{name} is {there} there and {here} here"
  return ""
