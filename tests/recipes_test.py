"""Every recipe runs, and its robust net is the more robust one by far."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from processes import environment
from rounding import assert_close, rounding

import robust_opt as ro
from robust_opt.data import datasets

FOLDER = Path(__file__).parents[1] / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
ONE_LINE = "# the one line\n"

# Of 80 test digits. Measured: standard nets 6 to 14 %, robust ones 61 to 81 %, at least 48 points
# between the two of a recipe (jax 0.10.2).
MARGIN = 0.35


def load(name):
  spec = importlib.util.spec_from_file_location(f"recipe_{name}", FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def check(standard, robust):
  """(clean, under attack) of both nets."""
  assert standard[0] > 0.9
  assert robust[0] > 0.85
  assert robust[1] > standard[1] + MARGIN


def test_every_recipe_says_how_it_is_run_and_is_in_the_readme():
  for name in NAMES:
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    assert f"\n  python recipes/{name}.py\n" in ast.get_docstring(tree, clean=False)
  readme = (FOLDER / "README.md").read_text(encoding="utf-8")
  rows = re.findall(r"^\| \[`(\w+)\.py`\]\(\.\./recipes/(\w+)\.py\)", readme, re.MULTILINE)
  assert sorted(name for name, _ in rows) == NAMES
  assert all(name == link for name, link in rows)


def test_the_one_line_raises_the_loss_and_training_lowers_it():
  """Of one recipe; those of all are run by test_runs_as_a_process."""
  recipe, digits = load("nnx"), datasets.load("digits", "test")
  x, y = digits.images[:80] / np.float32(255), digits.labels[:80]
  before, after = (recipe.train(recipe.robust_loss, epochs) for epochs in (1, 4))
  assert recipe.robust_loss(after, x, y) > recipe.loss(after, x, y)
  assert recipe.robust_loss(after, x, y) < 0.85 * recipe.robust_loss(before, x, y)


def shares_of_process(name):
  """Net -> (clean, under attack), run as the reader does.

  The recipe's folder comes first in sys.path, where it must hide no package.
  """
  done = subprocess.run(
    [sys.executable, "-W", "error", f"recipes/{name}.py"],
    cwd=FOLDER.parent,
    env=environment() | {"PYTHONPATH": str(FOLDER.parent)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert 2 <= len(done.stdout.splitlines()) <= 3
  found = re.findall(r"^(\w+): (\d+)% clean, (\d+)% under attack$", done.stdout, re.MULTILINE)
  return {net: (int(clean) / 100, int(attacked) / 100) for net, clean, attacked in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "existing_loop"])  # below
def test_runs_as_a_process(name):
  if name == "torch_bridge":
    pytest.importorskip("torch")
  shares = shares_of_process(name)
  if name == "torch_bridge":  # trained by PyTorch, and not robustly
    assert shares["standard"][0] > 0.9
    assert shares["standard"][1] < 0.2
  else:
    check(shares["standard"], shares["robust"])


@pytest.mark.slow
def test_one_line_makes_an_existing_loop_robust():
  name = "existing_loop"
  lines = (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines(keepends=True)
  without = [line for line in lines if not line.endswith(ONE_LINE)]
  assert len(lines) - len(without) == 1
  names = {"__name__": "recipe_existing_loop"}
  exec(compile("".join(without), "existing_loop.py", "exec"), names)
  standard = names["main"]()
  check((standard.clean_accuracy, standard.robust_accuracy), shares_of_process(name)["test"])


@pytest.mark.slow
def test_a_loss_that_is_a_closure_is_made_robust_by_one_line():
  """What existing_loop.py says of such a loop, letter by letter."""
  recipe = load("existing_loop")
  code = recipe.__doc__.split("  images +=")[1].strip()
  digits = datasets.load("digits", "test")
  images, labels = digits.images[:32] / np.float32(255), digits.labels[:32]
  params = recipe.CNN().init(jax.random.key(0), images[:1])["params"]
  names = {
    "state": recipe.TrainState.create(apply_fn=recipe.CNN().apply, params=params, tx=optax.sgd(1)),
    "attack": ro.steepest(ro.LInf(0.15)),
    "cross_entropy": ro.losses.cross_entropy,
    "images": images,
    "labels": labels,
  }
  exec(f"images += {code}", names)
  # A small ConvNet: some hundred terms a sum.
  at_their_worst, _ = recipe.loss_fn.__wrapped__(params, names["images"], labels)
  robust, _ = recipe.loss_fn(params, digits.images[:32] / np.float32(255), labels)
  np.testing.assert_allclose(at_their_worst, robust, rtol=rounding(terms=1000))


def test_grain_gives_every_epoch_an_order_of_its_own():
  batches = [batch["image"] for batch in load("data_grain").batches(epochs=2)]
  train = datasets.load("digits", "train")
  assert len(batches) == 2 * len(train.labels) // 64
  assert all(batch.shape == (64, 64) and batch.dtype == np.float32 for batch in batches)
  seen = [image.tobytes() for image in np.concatenate(batches)]
  pixels = (train.images / np.float32(255)).reshape(-1, 64)
  first, second = seen[: len(pixels)], seen[len(pixels) :]
  assert sorted(first) == sorted(image.tobytes() for image in pixels)
  assert set(second) <= set(first)
  assert first[: len(second)] != second


# The bridge to PyTorch.


def torch_net(torch):
  """Of images that are not square, with batch statistics, left in training mode."""
  torch.manual_seed(0)
  net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3),
    torch.nn.BatchNorm2d(4),
    torch.nn.Tanh(),
    torch.nn.Flatten(),
    torch.nn.Linear(4 * 4 * 3, 5),
  )
  net(torch.rand(32, 3, 6, 5))  # so that the running statistics are some
  return net


def test_the_bridge_has_the_logits_and_gradients_of_the_torch_net():
  torch = pytest.importorskip("torch")
  net = torch_net(torch)
  logits_fn = load("torch_bridge").bridge(net, num_classes=5)
  rng = np.random.default_rng(0)
  x = rng.random((7, 6, 5, 3)).astype(np.float32)
  cotangent = rng.normal(size=(7, 5)).astype(np.float32)

  leaf = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
  expected = net(leaf)
  (gradient,) = torch.autograd.grad(expected, leaf, torch.tensor(cotangent))
  gradient = np.moveaxis(gradient.numpy(), 1, -1)

  # Forward and back through sums over 3 x 3 x 3 and 48 entries and 5 classes.
  close = functools.partial(assert_close, terms=2 * (27 + 48 + 5) + 8)

  def pullback(x, cotangent):
    return jax.vjp(logits_fn, x)[1](cotangent)[0]

  close(logits_fn(x), expected.detach().numpy())
  close(jax.jit(logits_fn)(x), logits_fn(x))
  for run in (pullback, jax.jit(pullback)):
    close(run(x, cotangent), gradient)
  stacked = jax.jit(jax.vmap(pullback))(np.stack([x, x[::-1]]), np.stack([cotangent] * 2))
  close(stacked[0], gradient)
  assert np.abs(gradient).max() > 0.01
  assert np.abs(stacked[1] - gradient).max() > 0.01
  close(logits_fn(x[2:3]), logits_fn(x)[2:3])  # evaluation mode


# What the recipes say of modules that update themselves: an `apply`, as in linen.py.


class NNXNet(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(64, 32, rngs=rngs)
    self.norm = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.out = nnx.Linear(32, 10, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.hidden(x.reshape(len(x), -1))))
    return self.out(self.dropout(x))


def nnx_net():
  structure, params, rest = nnx.split(NNXNet(nnx.Rngs(0)), nnx.Param, ...)

  def apply(params, model_state, x, *, train, key):
    model = nnx.merge(structure, params, model_state, copy=True)
    if train:
      model.train()
    else:
      model.eval()
    logits = model(x)
    return logits, nnx.state(model, nnx.Not(nnx.Param))

  return apply, params, rest


def equinox_net():
  class Net(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self, key):
      keys = jax.random.split(key)
      self.hidden = eqx.nn.Linear(64, 32, key=keys[0])
      self.norm = eqx.nn.BatchNorm(32, axis_name="batch", mode="batch", momentum=0.9)
      self.out = eqx.nn.Linear(32, 10, key=keys[1])

    def __call__(self, x, state):
      x, state = self.norm(self.hidden(x.ravel()), state)
      return self.out(jax.nn.relu(x)), state

  model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
  params, structure = eqx.partition(model, eqx.is_inexact_array)

  def apply(params, model_state, x, *, train, key):
    del key
    model = eqx.nn.inference_mode(eqx.combine(params, structure), not train)
    run = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    return run(x, model_state)

  return apply, params, state


@pytest.mark.slow
@pytest.mark.parametrize("make", [nnx_net, equinox_net])
def test_modules_with_a_state_are_trained_by_an_apply(make):
  apply, params, model_state = make()
  digits = datasets.load("digits", "train")
  images, labels = digits.images / np.float32(255), digits.labels
  optimizer = optax.adam(5e-3)
  step = ro.make_train_step(apply, optimizer, ro.robust(), ro.steepest(ro.LInf(0.1)))
  plan = ro.EpochPlan(len(labels), 64)
  run = jax.jit(ro.make_scan(step, plan), static_argnums=3)
  start = ro.init_state(params, model_state, optimizer)
  state, metrics = run(start, ro.ArrayData(images, labels), jax.random.key(0), 3 * plan.num_steps)
  assert metrics.loss[-1] < 0.7 * metrics.loss[0]
  moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.model_state, start.model_state)
  assert any(jax.tree.leaves(moved))

  def predict(x):
    return apply(state.params, state.model_state, x, train=False, key=None)

  logits, after = jax.jit(predict)(images[:200])
  assert np.mean(np.argmax(logits, -1) == labels[:200]) > 0.8
  np.testing.assert_allclose(
    predict(images[:1])[0], logits[:1], rtol=rounding(terms=1000), atol=rounding(terms=1000)
  )
  unmoved, expected = (
    [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    for tree in (after, state.model_state)
  )
  jax.tree.map(np.testing.assert_array_equal, unmoved, expected)
