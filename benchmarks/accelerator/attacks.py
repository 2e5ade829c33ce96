"""AutoAttack of robust_opt beside torchattacks' with the standard settings, on one net.

target = train(data, size)
ours = robust_opt_row(target, size)
theirs = torch_row(target, size)
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import robust_opt as ro
from benchmarks import clock
from benchmarks.accelerator.training import BOX, IMAGE, MEAN, STD, Size
from robust_opt import models
from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.evaluation.outcome import ROBUST, Progress
from robust_opt.evaluation.phases import VERSIONS
from robust_opt.types import Array, LogitsFn, ModelState, Params

RADIUS = 2 / 255  # in pixels
BATCH = 128
PHASES = {phase.name: phase for phase in VERSIONS["standard"]}


class Data(NamedTuple):
  """Images [N, 32, 32, 3] uint8 and labels [N] int32."""

  train: ro.ArrayData
  test: ro.ArrayData
  source: str


class Target(NamedTuple):
  """What both sides attack.

  Attributes:
    logits_fn: in JAX.
    params, model_state: its weights, in NumPy.
    x: [N, 32, 32, 3] float32 in [0, 1].
    y: [N] int32.
    row: how it was trained.
  """

  logits_fn: LogitsFn
  params: Params
  model_state: ModelState
  x: np.ndarray
  y: np.ndarray
  row: dict[str, Any]


def load(path: Path | None, size: Size) -> Data:
  """Images of an .npz (train_images, train_labels, test_images, test_labels), or of a TFDS folder.

  None: a synthetic set that a net learns at once.

  Raises:
    InputError: the file lacks an array, or its images are not [N, 32, 32, 3] uint8.
  """
  if path is None:
    return _synthetic(size)
  if path.is_dir():
    splits = [datasets.load("cifar10", split, data_dir=str(path)) for split in ("train", "test")]
    train, test = (ro.ArrayData(split.images, split.labels) for split in splits)
  else:
    train, test = _read(path)
  for split in (train, test):
    if split.images.shape[1:] != IMAGE or split.images.dtype != np.uint8:
      raise InputError(f"--data_dir={path} must hold images [N, 32, 32, 3] of uint8.")
  test = ro.ArrayData(test.images[: size.images], test.labels[: size.images])
  return Data(train, test, "CIFAR-10")


def _read(path: Path) -> tuple[ro.ArrayData, ro.ArrayData]:
  with np.load(path) as file:
    names = [f"{split}_{part}" for split in ("train", "test") for part in ("images", "labels")]
    if missing := [name for name in names if name not in file.files]:
      raise InputError(f"--data_dir={path} lacks {', '.join(missing)}.")
    arrays = [file[name] for name in names]
  return ro.ArrayData(arrays[0], arrays[1].astype(np.int32)), ro.ArrayData(
    arrays[2], arrays[3].astype(np.int32)
  )


def _synthetic(size: Size) -> Data:
  """A faint pattern of each class under noise."""
  rng = np.random.default_rng(0)
  patterns = rng.uniform(-1, 1, (10, *IMAGE))

  def draw(count: int) -> ro.ArrayData:
    labels = rng.integers(0, 10, count, np.int32)
    images = 0.5 + 0.02 * patterns[labels] + 0.1 * rng.normal(size=(count, *IMAGE))
    return ro.ArrayData((255 * images.clip(0, 1)).astype(np.uint8), labels)

  return Data(draw(min(size.examples, 5000)), draw(size.images), "synthetic")


def train(data: Data, size: Size) -> Target:
  """A VGG in bfloat16 if that is measured, by Algorithm 1 over l_inf; attacked in float32."""
  dtype = jnp.bfloat16 if "bfloat16" in size.precisions else jnp.float32
  net = models.VGG(mean=MEAN, std=STD, dtype=dtype, width=size.width)
  count = len(data.train.labels)
  batch = min(BATCH, count)
  steps = max(1, size.epochs * (count // batch))
  optimizer = optax.chain(
    optax.add_decayed_weights(5e-4),
    optax.sgd(optax.cosine_decay_schedule(0.05, steps), momentum=0.9),
  )
  attack = ro.steepest(ro.LInf(RADIUS, BOX))
  step = ro.make_train_step(models.from_linen(net), optimizer, ro.robust(), attack)
  params, model_state = models.init(net, jax.random.key(0), IMAGE)
  state = ro.init_state(params, model_state, optimizer)
  scan = jax.jit(ro.make_scan(step, ro.EpochPlan(count, batch)), static_argnums=3)
  began = time.perf_counter()
  state, _ = scan(state, jax.device_put(data.train), jax.random.key(1), steps)
  params, model_state = jax.tree.map(np.asarray, (state.params, state.model_state))
  row = {"seconds": time.perf_counter() - began, "data": data.source, "train_images": count}
  logits_fn = jax.tree_util.Partial(_logits(size.width), params, model_state)
  x, y = np.asarray(data.test.images, np.float32) / 255, np.asarray(data.test.labels)
  return Target(logits_fn, params, model_state, x, y, row | {"epochs": size.epochs})


@functools.cache
def _logits(width: float) -> Callable[[Params, ModelState, Array], Array]:
  """One function of a width, so that it is compiled once."""
  apply = models.from_linen(models.VGG(mean=MEAN, std=STD, width=width))
  return lambda params, state, x: apply(params, state, x, train=False, key=None)[0]


def robust_opt_row(
  target: Target, size: Size, search_precision: str | None = None
) -> dict[str, Any]:
  """The first call, with compilation, and the second; judged in float32 in either case."""
  u = ro.LInf(RADIUS, box=BOX)
  version = "standard" if set(size.phases) == set(PHASES) else _chosen(size)
  row: dict[str, Any] = {}
  for call in ("first", "again"):
    account = Account()
    with clock.compiling() as compiling:
      began = time.perf_counter()
      verdict = ro.autoattack(
        target.logits_fn,
        target.x,
        target.y,
        u,
        version=version,
        search_precision=search_precision,
        report=account.add,
      )
      seconds = time.perf_counter() - began
    row[call] = {"seconds": seconds, "compile_s": compiling[0], "phases": account.phases()}
  robust = verdict.broken_by == ROBUST
  return row | _outcome(verdict.broken_by != 0, robust)


def _chosen(size: Size) -> Any:
  return tuple(PHASES[name] for name in size.phases)


class Account:
  """Adds up what each phase costs, from the reports after every batch."""

  def __init__(self) -> None:
    self._sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    self._last = time.perf_counter()

  def add(self, progress: Progress) -> None:
    """A batch; its costs where robust_opt counts them, else the time since the last batch."""
    now = time.perf_counter()
    cost = getattr(progress, "cost", None)
    costs = {"seconds": now - self._last} if cost is None else cost._asdict()
    for name, value in costs.items():
      self._sums[progress.attack][name] += value
    self._last = now

  def phases(self) -> dict[str, dict[str, float]]:
    """phase -> its costs."""
    return {name: dict(costs) for name, costs in self._sums.items()}


def torch_row(target: Target, size: Size) -> dict[str, Any]:
  """torchattacks phase after phase, each on the images that are left, all in one batch."""
  import torch

  from benchmarks import torch_nets
  from benchmarks.accelerator import torch_training
  from benchmarks.torch_attacks import torch_attack

  device = torch_training.DEVICE
  torch_training.set_precision("tf32", benchmark=False)
  net = torch_nets.vgg_of(target.params, target.model_state)
  module = torch.nn.Sequential(torch_nets.Standardize(MEAN, STD), net).eval().requires_grad_(False)
  module = module.to(device).to(memory_format=torch.channels_last)
  x = torch_nets.channels_first(target.x).to(device)
  y = torch.from_numpy(target.y).long().to(device)

  def correct(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
      return module(images).argmax(1) == labels

  clean = robust = correct(x, y)
  phases = {}
  for name in size.phases:
    attack = torch_attack(name, "linf", RADIUS, module)
    assert attack is not None  # there is one for every phase over l_inf
    left = robust.nonzero()[:, 0]
    began = time.perf_counter()
    if len(left):
      robust = robust.clone()
      robust[left] = correct(attack(x[left], y[left]), y[left])
      torch_training.wait()
    phases[name] = {"seconds": time.perf_counter() - began}
  torch_training.release()
  seconds = sum(phase["seconds"] for phase in phases.values())
  outcome = _outcome(clean.cpu().numpy(), robust.cpu().numpy())
  return {"again": {"seconds": seconds, "phases": phases}, **outcome}


def _outcome(clean: np.ndarray, robust: np.ndarray) -> dict[str, Any]:
  return {
    "clean": float(clean.mean()),
    "robust": float(robust.mean()),
    "robust_images": np.flatnonzero(robust).tolist(),
  }


def agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any], images: int) -> float:
  """The share of images with the same outcome on both sides."""
  different = set(ours["robust_images"]) ^ set(theirs["robust_images"])
  return 1 - len(different) / images
