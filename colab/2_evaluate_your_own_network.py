# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluate your own network
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/robust-opt/robust_opt/blob/main/colab/2_evaluate_your_own_network.ipynb)
#
# How robust is an existing network? This notebook evaluates networks of four frameworks, Flax
# Linen, Flax NNX, Equinox and Haiku, and then shows how an evaluation can go wrong:
#
# 1. any network as a function from images to logits,
# 2. AutoAttack and its verdict,
# 3. confidence intervals,
# 4. the trust report, which checks the evaluation itself,
# 5. a first pitfall: a network that resists FGSM and PGD without being robust,
# 6. a second pitfall, which takes a gradient-free attack to detect.
#
# Notebook 1 explains the attacks.

# %% [markdown]
# ## Setup
#
# The first cell installs the required packages in Colab and does nothing elsewhere.

# %%
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
  gpu = Path("/dev/nvidia0").exists()
  tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
  library = "robust_opt[run,data] @ git+https://github.com/robust-opt/robust_opt"
  packages = ["jax[cuda12]" if gpu else "jax[tpu]" if tpu else "jax", library]
  packages += ["equinox", "dm-haiku"]
  subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *packages], check=True)

# %% [markdown]
# `small` uses scikit-learn's digits of 8 x 8 pixels and takes about a minute and a half on two CPU
# cores; `full` uses MNIST and needs an accelerator.

# %% tags=["parameters"]
SIZE = "small"
SEED = 0
DATA_DIR = ""  # folder with a prepared MNIST, for "full"; if empty, MNIST is downloaded

# %%
import functools
import tempfile

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from IPython.display import Image, Markdown, display
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial
from scipy import stats

import robust_opt as ro
from robust_opt import tables
from robust_opt.data import datasets
from robust_opt.evaluation import trust
from robust_opt.plots import base, runs
from robust_opt.training import sharding

# %matplotlib inline
plt.rcParams["figure.dpi"] = 70

# %%
mesh = sharding.data_mesh()
batch_sharding = NamedSharding(mesh, PartitionSpec(sharding.AXIS))
device = jax.devices()[0]
print(f"Found {jax.device_count()} {device.platform.upper()} device(s): {device.device_kind}.")
print(f"Batches are split over a mesh of {dict(mesh.shape)}. JAX {jax.__version__}.")

# %% [markdown]
# ## 1. Any network as a function from images to logits
#
# The library needs one function: from images `[B, H, W, C]` with pixels in $[0, 1]$ to logits
# `[B, classes]`, in evaluation mode, where each output depends on its own image only. If the
# network expects other units or another layout, this function converts.

# %%
SETTINGS = {
  "small": {"name": "digits", "epochs": 40, "batch": 64, "tested": 128},
  "full": {"name": "mnist", "epochs": 4, "batch": 128, "tested": 512},
}[SIZE]
RADIUS = 0.2
ball = ro.LInf(RADIUS, box=(0.0, 1.0))  # in pixels of [0, 1]

train_set = datasets.load(SETTINGS["name"], "train", data_dir=DATA_DIR or None)
test_set = datasets.load(SETTINGS["name"], "test", data_dir=DATA_DIR or None)
x_train = jnp.asarray(train_set.images / 255, jnp.float32)
y_train = jnp.asarray(train_set.labels)
x_test = np.asarray(test_set.images[: SETTINGS["tested"]] / 255, np.float32)
y_test = test_set.labels[: SETTINGS["tested"]]
shape = x_test.shape[1:]
key = jax.random.key(SEED)

# %% [markdown]
# Frameworks store parameters differently, but each network can be written as a pure function of
# `(params, x)` in a few lines.
#
# **Flax Linen** already has this form. This network standardizes the pixels itself:


# %%
class LinenMLP(nn.Module):
  """Two hidden layers; pixels in [0, 1]."""

  width: int = 128

  @nn.compact
  def __call__(self, x):
    """x [B, H, W, C] -> logits [B, 10]."""
    x = (x.reshape(x.shape[0], -1) - 0.3) / 0.4
    x = nn.relu(nn.Dense(self.width)(x))
    x = nn.relu(nn.Dense(self.width)(x))
    return nn.Dense(10)(x)


linen_net = LinenMLP()
linen_params = linen_net.init(key, x_train[:1])
linen_logits = linen_net.apply

# %% [markdown]
# **Flax NNX** stores parameters in the module; `nnx.split` extracts them. (Networks with dropout or
# batch normalization need `net.eval()` first.)


# %%
class NnxMLP(nnx.Module):
  """One hidden layer."""

  def __init__(self, rngs):
    self.hidden = nnx.Linear(int(np.prod(shape)), 128, rngs=rngs)
    self.out = nnx.Linear(128, 10, rngs=rngs)

  def __call__(self, x):
    """x [B, H, W, C] -> logits [B, 10]."""
    return self.out(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


nnx_graph, nnx_params = nnx.split(NnxMLP(nnx.Rngs(SEED)))


def nnx_logits(params, x):
  """Merges the parameters back into the module."""
  return nnx.merge(nnx_graph, params)(x)


# %% [markdown]
# **Equinox** modules take one example with the channels first: add `jax.vmap`, and move the channel
# axis.


# %%
class EquinoxCNN(eqx.Module):
  """One convolution."""

  conv: eqx.nn.Conv2d
  out: eqx.nn.Linear

  def __init__(self, key):
    conv_key, out_key = jax.random.split(key)
    self.conv = eqx.nn.Conv2d(shape[2], 8, kernel_size=3, stride=2, padding=1, key=conv_key)
    num_features = 8 * -(-shape[0] // 2) * -(-shape[1] // 2)
    self.out = eqx.nn.Linear(num_features, 10, key=out_key)

  def __call__(self, x):
    """x [C, H, W] -> logits [10]."""
    return self.out(jax.nn.relu(self.conv(x)).reshape(-1))


equinox_params, equinox_static = eqx.partition(EquinoxCNN(key), eqx.is_inexact_array)


def equinox_logits(params, x):
  """Maps the module over a batch with the channels last."""
  return jax.vmap(eqx.combine(params, equinox_static))(jnp.moveaxis(x, -1, 1))


# %% [markdown]
# **Haiku** transforms a function into a pair, `init` and `apply`. Suppose that this network was
# trained on standardized images: the function standardizes, so that the radius remains in pixels.


# %%
def haiku_forward(standardized):
  """A network that expects (x - mean) / std."""
  return hk.nets.MLP([128, 10])(standardized.reshape(standardized.shape[0], -1))


haiku_net = hk.without_apply_rng(hk.transform(haiku_forward))
pixel_mean, pixel_std = float(x_train.mean()), float(x_train.std())
haiku_params = haiku_net.init(key, x_train[:1])


def haiku_logits(params, x):
  """Standardizes pixels in [0, 1]."""
  return haiku_net.apply(params, (x - pixel_mean) / pixel_std)


# %% [markdown]
# The same training loop works for all four and takes seconds. For comparison, a fifth network is
# trained on the worst-case loss of `ro.robustify`, which does not depend on the framework either.


# %%
def fit(logits, params, attack=None):
  """Trains with Adam in one compiled scan; with an attack, on the worst-case loss."""

  def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

  batch = SETTINGS["batch"]
  steps = len(y_train) // batch
  num_updates = SETTINGS["epochs"] * steps
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_updates))
  training_loss = loss if attack is None else ro.robustify(loss, attack)
  place_batch = sharding.batch_placer(mesh)

  @jax.jit
  def run(params, x, y):
    def update(carry, ids):
      params, opt_state = carry
      grads = jax.grad(training_loss)(params, *place_batch((x[ids], y[ids])))
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(jax.random.key(SEED), SETTINGS["epochs"])
    orders = jax.vmap(lambda key: jax.random.permutation(key, len(y))[: steps * batch])(keys)
    carry = (params, optimizer.init(params))
    return jax.lax.scan(update, carry, orders.reshape(num_updates, batch))[0][0]

  return run(*sharding.replicate((params, x_train, y_train), mesh))


training_attack = ro.ascend(ro.pgd(ball, ro.LInf(RADIUS / 3), random_start=False), 5)
nets = {
  "Linen": Partial(linen_logits, fit(linen_logits, linen_params)),
  "NNX": Partial(nnx_logits, fit(nnx_logits, nnx_params)),
  "Equinox": Partial(equinox_logits, fit(equinox_logits, equinox_params)),
  "Haiku": Partial(haiku_logits, fit(haiku_logits, haiku_params)),
  "Linen, robust": Partial(linen_logits, fit(linen_logits, linen_params, training_attack)),
}
for name, logits_fn in nets.items():
  correct = np.asarray(logits_fn(x_test).argmax(-1)) == y_test
  print(f"{name}: {correct.mean():.1%} of {len(y_test)} test images")

# %% [markdown]
# `jax.tree_util.Partial(logits, params)` is a function of the images alone. A `lambda` works too,
# but with Partial the weights are arguments of the compiled attacks, so networks of the same
# architecture share them.

# %% [markdown]
# ## 2. AutoAttack and its verdict
#
# AutoAttack (Croce and Hein 2020) runs four attacks in sequence, each on the images that the
# previous ones did not break. An image counts as robust only if all of them fail.
# `version="quick"` runs shortened versions of two attacks for an overview; report results of the
# standard version.


# %%
def evaluate(logits_fn, version):
  """The verdict of AutoAttack on the test images, computed on all devices."""
  return ro.autoattack(
    logits_fn,
    x_test,
    y_test,
    ball,
    version=version,
    seed=SEED,
    batch_size=128,
    put=lambda array: jax.device_put(array, batch_sharding),
  )


verdicts = {name: evaluate(logits_fn, "quick") for name, logits_fn in nets.items()}
verdicts["Linen, robust"] = evaluate(nets["Linen, robust"], "standard")

# %% [markdown]
# The verdict contains the outcome for each image: the attack that broke it, and the adversarial
# example.

# %%
verdict = verdicts["Linen, robust"]
print(f"clean accuracy {verdict.clean_accuracy:.1%}, robust accuracy {verdict.robust_accuracy:.1%}")
for index, attack in enumerate(verdict.names):
  outcome = "misclassified without an attack" if attack == "clean" else f"broken by {attack}"
  print(f"  {outcome}: {np.sum(verdict.broken_by == index)}")
print(f"  robust: {np.sum(verdict.broken_by == -1)}")

# %% [markdown]
# The result can be verified: anyone with the network can check that the adversarial examples are
# in the ball, are valid images, and are misclassified.

# %%
broken = verdict.broken_by > 0
images = verdict.images[broken]
largest = np.abs(images - x_test[broken]).max()
fooled = np.asarray(nets["Linen, robust"](images).argmax(-1)) != y_test[broken]
print(f"Largest change of a pixel: {largest:.4f}; the radius is {RADIUS}.")
print(f"Pixels are in [{images.min():.2f}, {images.max():.2f}].")
print(f"Misclassified: {fooled.sum()} of {broken.sum()}.")
assert largest <= RADIUS
assert fooled.all()


# %%
def show(draw, *args, width=700, **kwargs):
  """Displays a figure of `robust_opt.plots`, which draws into a file."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "figure.png")
    draw(*args, path=path, **kwargs)
    display(Image(path.read_bytes(), width=width))


def broken_examples(verdict, logits_fn, count=8):
  """The first images that an attack broke."""
  ids = np.flatnonzero(verdict.broken_by > 0)[:count]
  predictions = np.asarray(logits_fn(verdict.images[ids]).argmax(-1))
  delta = verdict.images[ids] - x_test[ids]
  return x_test[ids], delta, y_test[ids], verdict.prediction[ids], predictions


show(runs.example_grid, *broken_examples(verdicts["Linen"], nets["Linen"]), title="Linen, standard")

# %% [markdown]
# Images that the standard Linen network classifies correctly, the perturbations found by
# AutoAttack, and the adversarial examples. All captions in the last row are orange: each of these
# images is misclassified.

# %% [markdown]
# ## 3. Confidence intervals
#
# The accuracy on a few hundred images is an estimate. The exact (Clopper-Pearson) interval
# contains the accuracies that are compatible with the observed count. If the intervals of two
# networks overlap widely, the evaluation does not tell which one is more robust.


# %%
def interval(share, count):
  """The 95 % interval of a proportion of `count` images."""
  bounds = stats.binomtest(round(share * count), count).proportion_ci(method="exact")
  return bounds.low, bounds.high


rows = []
for name, verdict in verdicts.items():
  low, high = interval(verdict.robust_accuracy, len(y_test))
  rows.append(
    {
      "network": name,
      "clean": f"{verdict.clean_accuracy:.1%}",
      "robust": f"{verdict.robust_accuracy:.1%}",
      "95 % interval": f"{low:.1%} to {high:.1%}",
    }
  )
title = f"AutoAttack over l_inf {RADIUS}, the first {len(y_test)} test images"
display(Markdown(tables.markdown(tables.Table(title, list(rows[0]), rows))))


# %%
def bars(groups, title):
  """A bar chart with intervals of {group: {bar: accuracy}}."""
  figure, axis = plt.subplots(figsize=(8.0, 3.0), layout="constrained")
  names = list(next(iter(groups.values())))
  for index, name in enumerate(names):
    x = np.arange(len(groups)) + (index - (len(names) - 1) / 2) * 0.8 / len(names)
    shares = np.array([group[name] for group in groups.values()])
    ends = np.array([interval(share, len(y_test)) for share in shares]).T
    style = {"color": base.COLORS[index], "capsize": 3, "label": name}
    axis.bar(x, 100 * shares, 0.75 / len(names), yerr=100 * np.abs(ends - shares), **style)
  axis.set_xticks(range(len(groups)), list(groups))
  axis.set(ylabel="accuracy (%)", ylim=(0, 105), title=title)
  figure.legend(frameon=False, loc="outside right upper")
  plt.show()


shares = {n: {"clean": v.clean_accuracy, "robust": v.robust_accuracy} for n, v in verdicts.items()}
bars(shares, title)

# %% [markdown]
# Clean accuracy (blue) is high for all networks and does not distinguish them. Robust accuracy
# (orange) does: it is almost zero for the four standard networks, whatever the framework. The
# network trained against an adversary keeps a large part of its accuracy, and its interval is
# above all the others.

# %% [markdown]
# ## 4. The trust report
#
# A high robust accuracy can mean a robust network or a failed attack. The trust report checks
# properties of a sound evaluation: an adversary with an unlimited radius breaks every image, more
# steps break more images, gradient attacks break more than noise does, and so on.


# %%
def trust_report(name, logits_fn):
  """The checks of the evaluation of a network."""
  return trust.report(logits_fn, x_test, y_test, ball, batch_size=128, verdict=verdicts[name])


checks = trust_report("Linen, robust", nets["Linen, robust"])
display(Markdown(trust.to_markdown(checks)))
print(f"{sum(check.passed is True for check in checks)} of {len(checks)} checks passed.")

# %% [markdown]
# All fifteen checks pass, so the robust accuracy of this network is credible. It is still an upper
# bound: passing means that none of these faults was detected, not that there are none.

# %% [markdown]
# ## 5. A first pitfall: scaled logits
#
# Here is a defense in one line and without training: multiply the logits by 1,000. The predictions
# stay the same, since the largest logit remains the largest. Is the network more robust?


# %%
def scaled_logits(scale, params, x):
  """The Linen network with scaled logits."""
  return scale * linen_logits(params, x)


(standard_params,) = nets["Linen"].args
scaled = Partial(scaled_logits, 1000.0, standard_params)


@functools.partial(jax.jit, static_argnums=0)
def robust_accuracy(attack, logits_fn, x, y):
  """Under an attack that maximizes the cross-entropy."""

  def value_fn(x):
    return ro.losses.cross_entropy(logits_fn(x), y)

  delta, _ = attack(value_fn, None, x)
  clean, robust = (ro.losses.correct(logits_fn(images), y) for images in (x, x + delta))
  return jnp.mean(clean & robust)


fgsm = ro.steepest(ball)
pgd = ro.ascend(ro.pgd(ball, ro.LInf(RADIUS / 4), random_start=False), 40)


def compare(name, logits_fn, version="standard"):
  """Robust accuracy under three evaluations."""
  data = jax.device_put((x_test, y_test), batch_sharding)
  verdicts[name] = evaluate(logits_fn, version)
  return {
    "FGSM": float(robust_accuracy(fgsm, logits_fn, *data)),
    "PGD-40": float(robust_accuracy(pgd, logits_fn, *data)),
    "AutoAttack": verdicts[name].robust_accuracy,
  }


results = {
  name: compare(name, logits_fn)
  for name, logits_fn in {"standard net": nets["Linen"], "logits x 1000": scaled}.items()
}


def print_results(name):
  """One line of robust accuracies."""
  print(f"{name}: " + ", ".join(f"{attack} {share:.1%}" for attack, share in results[name].items()))


def print_broken_by(name):
  """How many images each attack of the ensemble broke."""
  names, broken_by = verdicts[name].names, verdicts[name].broken_by
  counts = (f"{attack} {np.sum(broken_by == index)}" for index, attack in enumerate(names))
  print(f"{name}, broken by: {', '.join(counts)}")


def print_failed(name, checks):
  """The names of the checks that failed."""
  failed = [check.name for check in checks if check.failed]
  print(f"{name}: {len(failed)} checks fail: {', '.join(failed) or 'none'}")


for name in results:
  print_results(name)
print_broken_by("logits x 1000")

# %% [markdown]
# Under FGSM and 40 steps of PGD, the network with scaled logits keeps most of its accuracy, and 40
# steps break no more images than one. That is a warning sign in itself: where the gradient is
# exactly zero, an image does not move. Under AutoAttack the network keeps next to nothing, like the
# original one. The verdict settles which result is true: it contains the adversarial examples, and
# they are misclassified. The scaling only disables the attacks. With margins in the thousands, the
# softmax is exactly 1 in float32, so the cross-entropy and its gradient are exactly 0:

# %%
for name, logits_fn in {"standard net": nets["Linen"], "logits x 1000": scaled}.items():
  checks = trust_report(name, logits_fn)
  print_failed(name, checks)
for check in checks:
  if check.failed:
    print(f"\n{check.name}: {check.measured}.\n{check.meaning}")

# %% [markdown]
# Without a gradient an attack does not move, and "not broken" is counted as "robust". AutoAttack is
# not misled because its second attack, apgd-t, maximizes a ratio of logit differences, which is
# invariant to scaling. Nobody multiplies logits by 1,000 on purpose, but long training without
# weight decay, a low temperature and distillation have the same effect.

# %% [markdown]
# ## 6. A second pitfall: quantized inputs
#
# This defense has been proposed in earnest: round the pixels to a few levels before the network, so
# that small perturbations vanish. Rounding is constant almost everywhere, so no choice of loss
# helps: the gradient is zero for all of them.

# %%
LEVELS = 4


def quantize(x):
  """Rounds to 0, 1/4, 1/2, 3/4 or 1."""
  return jnp.round(x * LEVELS) / LEVELS


def quantized_logits(params, x):
  """The Linen network with quantized inputs."""
  return linen_logits(params, quantize(x))


def straight_through_logits(params, x):
  """The same logits, but with the gradient of the network without rounding."""
  return linen_logits(params, x + jax.lax.stop_gradient(quantize(x) - x))


quantized = Partial(quantized_logits, standard_params)
adapted = Partial(straight_through_logits, standard_params)
results["rounded pixels"] = compare("rounded pixels", quantized)
results["rounded, adapted"] = compare("rounded, adapted", adapted, "quick")
for name in ("rounded pixels", "rounded, adapted"):
  print_results(name)
print_broken_by("rounded pixels")
print_failed("rounded pixels", trust_report("rounded pixels", quantized))

# %%
bars(results, f"Robust accuracy over l_inf {RADIUS} under three evaluations")

# %% [markdown]
# For the standard network all three bars are low. With scaled logits or rounded pixels, FGSM and
# PGD report high robust accuracy while AutoAttack reports a low one: such a gap indicates gradient
# masking. The last group shows the remedy for rounding, an *adaptive attack*: the same network with
# the same outputs, but with a gradient that ignores the rounding (the straight-through estimator).
# Gradient attacks succeed again. (AutoAttack is the quick version here, as for the standard
# networks in section 3; its robust accuracy can only be too high.)
#
# For the rounded network, Square is the attack that lowers AutoAttack's bar, the only one of the
# four that needs no gradient. The trust report flags several checks, the black-box check among
# them. Without Square, rounding would have passed as a defense.

# %% [markdown]
# ## Next steps
#
# - Evaluate your own function in place of `nets["Linen"]`. There is also a command, which resumes
#   if it is interrupted: `python -m robust_opt.evaluate --model=my_module:logits_fn
#   --data=test.npz --norm=l2 --radius=0.5 --output=runs/mine`. Others can verify its verdict file
#   with `python -m robust_opt.verify`.
# - Return probabilities instead of logits, or leave dropout on, and read the trust report.
