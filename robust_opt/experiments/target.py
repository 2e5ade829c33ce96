"""What is evaluated: a network and its test data, of a finished run or of the user's own.

run = load_run("runs/mnist_linf")          # also ro.load_run
target = load({"workdir": "runs/mnist_linf"})
target = load({"model": "my_package.my_module:logits_fn", "data": "test.npz"})
target = load({"architecture": "ResNet18", "weights": "net.pth", "data": "cifar10"})
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from robust_opt import models
from robust_opt.arrays import digest
from robust_opt.data import published
from robust_opt.data.datasets import (
  Dataset,
  Examples,
  fingerprint,
  from_arrays,
  read_examples,
)
from robust_opt.data.published import PublishedImages
from robust_opt.errors import InputError, MissingExtraError
from robust_opt.evaluation import network
from robust_opt.evaluation.accuracy import logits_of
from robust_opt.evaluation.batches import CPU_BATCH, predictions
from robust_opt.evaluation.collection import pixels
from robust_opt.experiments import architecture, build, robustbench
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import workdir as workdirs
from robust_opt.experiments.assembly import initial_run
from robust_opt.experiments.checkpoint import Checkpoints
from robust_opt.sets import BALLS
from robust_opt.sets.build import import_object
from robust_opt.sets.radii import number
from robust_opt.training import evaluated
from robust_opt.types import ApplyFn, LogitsFn, ModelState, Params
from robust_opt.weights import with_weights


class EvalTarget(NamedTuple):
  """A network in evaluation mode and its test data."""

  logits_fn: LogitsFn  # x [B, *S] -> logits [B, C]; a Partial, whose arrays are the weights
  x: np.ndarray  # [N, *S] float32, pixels in [0, 1]
  y: np.ndarray  # [N] int32
  net_sha256: str  # of the weights; empty where the network is a function without arrays
  name: str  # of the network in messages: a run's title, or --model
  definition: str = ""  # of a run, the repr of its network
  set: dict[str, Any] | None = None  # of a robust run, the config of its set
  loss: str = "cross_entropy"  # of a run, that of its training


class TrainedNet(NamedTuple):
  """The network of a run and its data; images of any function below are pixels in [0, 1].

  Attributes:
    logits_fn: x [B, *S] -> logits [B, C], in evaluation mode; a Partial, whose arrays are the
      weights.
    features_fn: x [B, *S] -> the input of the last dense layer, [B, F]; likewise.
    train, test: the data of the run, images [N, H, W, C] as they are stored, often uint8;
      `examples` has them as pixels.
    sha256: of the weights.
    title: of the run, in words.
    definition: the text of the network, its preprocessing included.
    set: the config of the set that it was trained over, if any.
    params, model_state: the weights and the batch statistics, or {}, as NumPy arrays; their
      averages, if the run averages them.
    apply: the network as `ro.make_train_step` takes it.
    classes: the names of the C classes; their numbers if the data set names none.
    config: of the run.
    net: the network itself.
  """

  logits_fn: LogitsFn
  features_fn: LogitsFn
  train: Dataset
  test: Dataset
  sha256: str
  title: str
  definition: str
  set: dict[str, Any] | None
  params: Params
  model_state: ModelState
  apply: ApplyFn
  classes: tuple[str, ...]
  config: ConfigDict
  net: models.Net

  @property
  def image_shape(self) -> tuple[int, ...]:
    """[H, W, C] of its images."""
    return tuple(self.test.images.shape[1:])

  @property
  def dataset(self) -> str:
    """The name of its data set."""
    return str(self.config.data.name)

  def examples(self, split: str = "test", count: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` examples (0: all) of "test" or "train".

    Returns:
      x [N, *S] float32, pixels in [0, 1], and y [N] int32.

    Raises:
      InputError: another split.
    """
    splits = {"test": self.test, "train": self.train}
    if split not in splits:
      raise InputError(f'The examples of a run are "test" or "train", not {split!r}.')
    data = splits[split]
    count = count or len(data.labels)
    return pixels(data.images[:count]), data.labels[:count].astype(np.int32)

  def predict(self, images: np.ndarray, batch_size: int = CPU_BATCH) -> np.ndarray:
    """The predicted classes [N] int32 of images [N, *S], pixels in [0, 1] or uint8 in [0, 255]."""
    shape = self.test.images.shape[1:]
    if np.shape(images)[1:] != shape:
      raise InputError(
        f"Images must have the shape [N, {', '.join(map(str, shape))}], as those of "
        f"the run, but have {list(np.shape(images))}."
      )
    return predictions(self.logits_fn, pixels(images), batch_size)

  def with_weights(self, params: Params, model_state: ModelState) -> "TrainedNet":
    """The same with other weights, as after further training; `title` stays."""
    return with_weights(self, params, model_state)


def load(source: dict[str, Any], examples: int = 0) -> EvalTarget:
  """Loads a network and its test data.

  Args:
    source: workdir, of robust_opt.main, with data_dir, cache_dir, train_files and checkpoint
      ("last" or "best") if they are not the config's own, and data if that is not the run's test
      set; or model, "module:name" of a function of
      images, and data, files or a folder (`datasets.read_examples`, with image_size); with draws
      > 0 the function is one of images and a key, averaged over so many draws
      (`network.Randomized`); or architecture, weights and data, with mean, std, data_dir, cache_dir
      and image_size (`experiments.architecture`); or robustbench, DATASET/THREAT_MODEL/ID, and
      weights, with data if that is not the test set of DATASET, data_dir, cache_dir and image_size.
    examples: use only the first so many; 0: all.

  Raises:
    InputError: it cannot be found or read.
  """
  if examples < 0:
    raise InputError(f"--examples must be an integer >= 0 (0: all), but was {examples}.")
  given = {key: value for key, value in source.items() if value}
  by_file = given.keys() & {"architecture", "weights", "mean", "std", "robustbench"}
  if given.keys() >= {"model", "data"} and "workdir" not in given and not by_file:
    target = _of_user(given)
  elif "workdir" in given and not by_file and not given.keys() & {"model", "draws"}:
    data, image_size = given.pop("data", ""), given.pop("image_size", 0)
    if image_size and not data:
      raise InputError(f"--image_size={image_size} has no effect without --data.")
    net = load_run(**given)
    x, y = _for_run(net, data, image_size) if data else net.examples()
    loss = net.config.objective.get("loss", "cross_entropy")
    target = EvalTarget(net.logits_fn, x, y, net.sha256, net.title, net.definition, net.set, loss)
  elif given.keys() >= {"architecture", "weights", "data"} and given.keys() <= _WITH_WEIGHTS:
    target = _of_weights(given)
  elif given.keys() >= {"robustbench", "weights"} and given.keys() <= _OF_ROBUSTBENCH:
    target = _of_robustbench(given)
  else:
    flags = ("workdir", "model", "architecture", "robustbench", "weights", "mean", "std", "data")
    named = ", ".join(f"--{key}" for key in (*flags, "image_size", "draws") if key in given)
    raise InputError(
      f"Give either --workdir of a run, or both --model and --data (and --draws), or "
      f"--architecture, --weights and --data (and --mean and --std), or --robustbench and "
      f"--weights, but given was {named or 'none of them'}; --workdir may have --data of its own."
    )
  count = examples or len(target.y)
  return target._replace(x=target.x[:count], y=target.y[:count])


def load_run(
  workdir: str | Path,
  *,
  data_dir: str = "",
  cache_dir: str = "",
  train_files: str = "",
  checkpoint: str = "",
) -> TrainedNet:
  """The trained network of a run of robust_opt.main, as a value.

    run = ro.load_run("runs/digits")
    x, y = run.examples()                                  # x [N, *S] in [0, 1], y [N]
    accuracy = (run.predict(x) == y).mean()
    state = ro.init_state(run.params, run.model_state, optax.sgd(1e-3))    # train it further

  Args:
    workdir: the work directory, of a run that has saved a checkpoint.
    data_dir, cache_dir, train_files: where its data lies now; empty: where its config says.
    checkpoint: "last" or "best" by held-out robust accuracy; empty: the one that it reports on.

  Raises:
    InputError: no run, no whole checkpoint, or other training data than the run had.
  """
  if not str(workdir):
    raise InputError("Give --workdir, of a finished run of robust_opt.main.")
  workdir = Path(workdir)
  if not (workdir / "config.json").is_file():
    raise InputError(f"--workdir={workdir} must be the directory of a run: it has no config.json.")
  config = _config(workdir / "config.json")
  places = {"data_dir": data_dir, "cache_dir": cache_dir, "train_files": train_files}
  config.data.update({key: place for key, place in places.items() if place})
  which = checkpoint or _reported(workdir) or config.evaluation.checkpoint
  if which not in ("last", "best"):
    raise InputError(f"--checkpoint must be last or best, but was {which!r}.")
  if not (workdir / "checkpoints").is_dir():
    raise InputError(f"--workdir={workdir} holds no checkpoints: no run has saved one there yet.")
  splits = build.splits(config, with_extra=False)
  _refuse_other_data(workdir, splits.train)
  initial = initial_run(config, splits.train)
  checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep, read_only=True)
  state = checkpoints.restore(initial.state, which)
  checkpoints.close()
  if state is None:
    raise InputError(f"--workdir={workdir} holds no checkpoint that is whole.")
  # On one device: an evaluation on several places the weights as it places the batches.
  params, model_state = jax.tree.map(np.asarray, evaluated(state))
  against, apply = config_lib.adversary(config), models.apply_of(initial.net)
  return TrainedNet(
    logits_of(apply, params, model_state),
    logits_of(models.representation(initial.net), params, model_state),
    splits.train,
    splits.test,
    digest((params, model_state)),
    f"{config.model.name} on {config.data.name}, {f'over {against}' if against else 'standard'}",
    models.definition(initial.net),
    config.set.to_dict() if against else None,
    params,
    model_state,
    apply,
    splits.train.class_names,
    config,
    initial.net,
  )


def _refuse_other_data(workdir: Path, train: Dataset) -> None:
  """The network standardizes its input by its training data: other data make another network."""
  trained_on = workdirs.read_inputs(workdir).get("data", {}).get("train")
  now = fingerprint(train)
  if trained_on not in (None, now):
    raise InputError(
      f"--workdir={workdir} was trained on other data than --data_dir or --train_files give now: "
      f"SHA-256 {trained_on} -> {now}."
    )


def _reported(workdir: Path) -> str | None:
  """Which checkpoint a finished run reports on: the best, where it was stopped for overfitting."""
  try:
    return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))["checkpoint"]
  except (OSError, ValueError, KeyError):
    return None


def _config(path: Path) -> ConfigDict:
  """The config that a run wrote."""
  try:
    config = config_lib.from_dict(json.loads(path.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
    raise InputError(f"{path} is no readable config of a run ({error}).") from error
  config_lib.validate(config)
  return config


_PLACES = {"data_dir", "cache_dir"}
_WITH_WEIGHTS = {"architecture", "weights", "mean", "std", "data", "image_size", *_PLACES}
_OF_ROBUSTBENCH = {"robustbench", "weights", "data", "image_size", *_PLACES}


def _of_weights(given: dict[str, Any]) -> EvalTarget:
  """A network of the literature, or of robust_opt, with weights from a file."""
  places = (given.get("data_dir", ""), given.get("cache_dir", ""))
  data = architecture.examples(given["data"], *places, given.get("image_size", 0))
  net = architecture.load(given, data)
  x, y = pixels(data.images), data.labels.astype(np.int32)
  return EvalTarget(net.logits_fn, x, y, net.sha256, net.title, net.definition)


def _of_robustbench(given: dict[str, Any]) -> EvalTarget:
  """A network of RobustBench's model zoo, by default on the test images of its data set."""
  entry = robustbench.find(given["robustbench"])
  net = robustbench.load(entry, Path(given["weights"]))
  places = (given.get("data_dir", ""), given.get("cache_dir", ""))
  data = given.get("data", entry.dataset)
  found = architecture.examples(data, *places, given.get("image_size", 0))
  if found.images.shape[1:] != robustbench.SHAPE:
    shapes = " x ".join(map(str, found.images.shape[1:])), " x ".join(map(str, robustbench.SHAPE))
    raise InputError(
      f"--data={data} has images of {shapes[0]}, but {entry.name} takes {shapes[1]}."
    )
  x, y = pixels(found.images), found.labels.astype(np.int32)
  own = {"name": BALLS[entry.norm].__name__, "radius": number(entry.radius), "box": [0.0, 1.0]}
  return EvalTarget(net.logits_fn, x, y, net.sha256, net.title, net.definition, own)


def _read(data: str, image_size: int, data_dir: str = "", cache_dir: str = "") -> Examples:
  """--data, or an InputError in the words of the flags."""
  try:
    return read_examples(data, image_size, data_dir or None, cache_dir or None)
  except MissingExtraError:
    raise
  except InputError as error:
    words = str(error).replace("data.name=", "--data=").replace("data.image_size", "--image_size")
    words = words.replace("data.data_dir", "--data_dir")
    raise InputError(
      f"--data={data} must be an .npz file with x and y, or other data as --help says ({words})."
    ) from error


def _for_run(net: TrainedNet, data: str, image_size: int) -> tuple[np.ndarray, np.ndarray]:
  """x [N, H, W, C] and y [N] of other data than the run's own, in its layout and its classes.

  Raises:
    InputError: the images have another shape than the run's, or there are other classes.
  """
  shape = net.test.images.shape[1:]
  height, width, _ = shape
  of_files = Path(data).expanduser().is_dir() or isinstance(published.find(data), PublishedImages)
  square = height if of_files and height == width else 0
  places = net.config.data.data_dir, net.config.data.cache_dir
  images, labels, classes = _read(data, image_size or square, *places)
  channels_first = images.shape[1:] == (shape[2], *shape[:2]) != shape
  if channels_first:
    logging.warning("%s: axis 0 of its images, %s, is the channels.", data, images.shape[1:])
  elif shape not in (images.shape[1:], (*images.shape[1:], 1)):
    given, own = (" x ".join(map(str, sizes)) for sizes in (images.shape[1:], shape))
    raise InputError(f"--data={data} has images of {given}, but those of {net.title} are {own}.")
  if square and not image_size:
    words = "%s: images of another size than the run's are resized to %d x %d."
    logging.info(words, data, height, width)
  if classes:
    labels = _numbers_in_run(net, data, classes)[labels]
  try:
    axis = 0 if channels_first else -1
    found = from_arrays(images, labels, len(net.classes), channel_axis=axis)
  except InputError as error:
    raise InputError(f"--data={data} does not fit {net.title}: {error}.") from error
  x = pixels(found.images)
  if seen := _number_seen(net, x):
    logging.warning(
      "%s: %d of the %d images are training images of the run, on which accuracies are higher.",
      *(data, seen, len(x)),
    )
  return x, found.labels


def _number_seen(net: TrainedNet, x: np.ndarray) -> int:
  """How many of the images [N, H, W, C] the run was trained on, in 8 bits; 0 if it streams them."""
  if not isinstance(net.train.images, np.ndarray):
    return 0
  trained = {digest(image) for image in _in_8_bits(net.train.images)}
  return sum(digest(image) in trained for image in _in_8_bits(x))


def _in_8_bits(images: np.ndarray) -> np.ndarray:
  levels = images if images.dtype == np.uint8 else np.rint(255 * images)
  return levels.astype(np.uint8)


def _numbers_in_run(net: TrainedNet, data: str, classes: tuple[str, ...]) -> np.ndarray:
  """The number in the run of each class of a folder: by name if the run has such names."""
  if set(classes) <= set(net.classes):
    return np.array([net.classes.index(name) for name in classes], np.int32)
  if net.train.classes:
    other = next(name for name in classes if name not in net.classes)
    raise InputError(
      f"--data={data} has the class {other!r}, which is none of {net.title}: "
      f"{', '.join(net.classes[:20])}."
    )
  logging.warning("%s: its classes %s are taken as 0, 1, ...", data, ", ".join(classes[:20]))
  return np.arange(len(classes), dtype=np.int32)


def _of_user(given: dict[str, Any]) -> EvalTarget:
  model, draws = given["model"], given.get("draws", 0)
  if not all(model.partition(":")):
    raise InputError(f"--model must be module:function, but was {model!r}.")
  try:
    logits_fn = import_object(model)
  except InputError as error:
    raise InputError(f"--model={error}") from error
  if not callable(logits_fn):
    raise InputError(f"--model={model} must be a function of images, but is {logits_fn!r}.")
  options = {key: given[key] for key in ("image_size", *_PLACES) if key in given}
  x, y, _ = _read(given["data"], **{"image_size": 0, **options})
  arrays = jax.tree.leaves(logits_fn) if isinstance(logits_fn, jax.tree_util.Partial) else []
  if draws:
    logits_fn = network.Randomized(logits_fn, jax.random.key(0), draws)
  return EvalTarget(logits_fn, x, y, digest(arrays) if arrays else "", model)
