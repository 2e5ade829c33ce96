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
# How robust is a network that you already have? This notebook answers for networks of four
# frameworks, Flax Linen, Flax NNX, Equinox and Haiku, and then shows how the answer can be wrong:
#
# 1. any network as a function from images to logits,
# 2. AutoAttack, and what is in its verdict,
# 3. how sure one can be: intervals,
# 4. the trust report, which examines the evaluation itself,
# 5. a trap: a network that withstands FGSM and PGD, and has no robustness at all,
# 6. a second trap, which needs the search without gradients.
#
# Notebook 1 explains the attacks themselves.

# %% [markdown]
# ## Before the start
#
# The first cell installs what is needed when it runs in Colab, and does nothing elsewhere.

# %%
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
  on_gpu = Path("/dev/nvidia0").exists()
  on_tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
  jax_for_this_machine = "jax[cuda12]" if on_gpu else "jax[tpu]" if on_tpu else "jax"
  library = "git+https://github.com/robust-opt/robust_opt"
  packages = [jax_for_this_machine, library, "equinox", "dm-haiku"]
  subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *packages], check=True)

# %% [markdown]
# `small` is scikit-learn's digits of 8 x 8 pixels and takes about a minute and a half on two CPU
# cores; `full` is MNIST and wants an accelerator.

# %% tags=["parameters"]
SIZE = "small"
SEED = 0
DATA_DIR = ""  # for "full": a folder where MNIST lies prepared; empty: it is downloaded

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
batches_over_the_mesh = NamedSharding(mesh, PartitionSpec(sharding.AXIS))
kind = jax.devices()[0].platform.upper()
print(f"Found {jax.device_count()} {kind} device(s) of the kind {jax.devices()[0].device_kind!r}.")
print(f"Batches are split over a mesh of {dict(mesh.shape)}. JAX {jax.__version__}.")

# %% [markdown]
# ## 1. Any network as a function from images to logits
#
# The library asks for one thing: a function that takes images `[B, H, W, C]` in pixels of $[0,
# 1]$ and returns logits `[B, classes]`, every image by itself, in evaluation mode. What your
# network wants in other units or another layout, this function converts.

# %%
SETTINGS = {
  "small": {"name": "digits", "epochs": 40, "batch": 64, "radius": 0.2, "tested": 128},
  "full": {"name": "mnist", "epochs": 4, "batch": 128, "radius": 0.2, "tested": 512},
}[SIZE]
RADIUS = SETTINGS["radius"]  # over l_inf, in pixels of [0, 1]
BOX = (0.0, 1.0)

train_set = datasets.load(SETTINGS["name"], "train", data_dir=DATA_DIR or None)
test_set = datasets.load(SETTINGS["name"], "test", data_dir=DATA_DIR or None)
x_train = jnp.asarray(train_set.images / 255, jnp.float32)
y_train = jnp.asarray(train_set.labels)
x_test = np.asarray(test_set.images[: SETTINGS["tested"]] / 255, np.float32)
y_test = test_set.labels[: SETTINGS["tested"]]
shape = x_test.shape[1:]
key = jax.random.key(SEED)

# %% [markdown]
# Each framework keeps parameters in its own way. A pure function of `(params, x)` is what they
# have in common, and four times a few lines lead there.
#
# **Flax Linen** is there already. This network standardises the pixels itself:


# %%
class LinenMLP(nn.Module):
  """Pixels of [0, 1] to logits."""

  width: int = 128

  @nn.compact
  def __call__(self, x):
    """x [B, H, W, C]."""
    x = (x.reshape(x.shape[0], -1) - 0.3) / 0.4
    x = nn.relu(nn.Dense(self.width)(x))
    x = nn.relu(nn.Dense(self.width)(x))
    return nn.Dense(10)(x)


linen_net = LinenMLP()
linen_params = linen_net.init(key, x_train[:1])
linen_logits = linen_net.apply

# %% [markdown]
# **Flax NNX** keeps parameters inside the object; `nnx.split` takes them out. (A network with
# dropout or batch normalisation needs `net.eval()` before.)


# %%
class NnxMLP(nnx.Module):
  """One hidden layer."""

  def __init__(self, rngs):
    self.hidden = nnx.Linear(int(np.prod(shape)), 128, rngs=rngs)
    self.out = nnx.Linear(128, 10, rngs=rngs)

  def __call__(self, x):
    """x [B, H, W, C]."""
    return self.out(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


nnx_graph, nnx_params = nnx.split(NnxMLP(nnx.Rngs(SEED)))


def nnx_logits(params, x):
  """The network put together again."""
  return nnx.merge(nnx_graph, params)(x)


# %% [markdown]
# **Equinox** networks are written for one example, channels first. `jax.vmap` makes a batch of
# it, and the function turns the axes.


# %%
class EquinoxCNN(eqx.Module):
  """One convolution, one example: [C, H, W] to [10]."""

  conv: eqx.nn.Conv2d
  out: eqx.nn.Linear

  def __init__(self, key):
    conv_key, out_key = jax.random.split(key)
    self.conv = eqx.nn.Conv2d(shape[2], 8, kernel_size=3, stride=2, padding=1, key=conv_key)
    places = -(-shape[0] // 2) * -(-shape[1] // 2)
    self.out = eqx.nn.Linear(8 * places, 10, key=out_key)

  def __call__(self, x):
    """x [C, H, W]."""
    return self.out(jax.nn.relu(self.conv(x)).reshape(-1))


equinox_params, equinox_rest = eqx.partition(EquinoxCNN(key), eqx.is_inexact_array)


def equinox_logits(params, x):
  """Over a batch, from channels last to channels first."""
  return jax.vmap(eqx.combine(params, equinox_rest))(jnp.moveaxis(x, -1, 1))


# %% [markdown]
# **Haiku** transforms a function into a pair, `init` and `apply`. Suppose that this network was
# trained on standardised images: the function standardises, and the radius stays in pixels.


# %%
def haiku_forward(standardised):
  """A network that expects (x - mean) / std."""
  return hk.nets.MLP([128, 10])(standardised.reshape(standardised.shape[0], -1))


haiku_net = hk.without_apply_rng(hk.transform(haiku_forward))
pixel_mean, pixel_std = float(x_train.mean()), float(x_train.std())
haiku_params = haiku_net.init(key, x_train[:1])


def haiku_logits(params, x):
  """From pixels of [0, 1]."""
  return haiku_net.apply(params, (x - pixel_mean) / pixel_std)


# %% [markdown]
# All four train by the same loop, in seconds. The last one, for comparison, by the loss at the
# worst case: `ro.robustify` knows nothing of frameworks either.


# %%
def fit(logits, params, attack=None):
  """Adam for some epochs, as one compiled program; robust training if there is an attack."""

  def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

  batch = SETTINGS["batch"]
  steps = len(y_train) // batch
  num_updates = SETTINGS["epochs"] * steps
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_updates))
  trained_loss = loss if attack is None else ro.robustify(loss, attack)
  place = sharding.batch_placer(mesh)

  @jax.jit
  def run(params, x, y):
    def update(carry, ids):
      params, opt_state = carry
      x_batch, y_batch = place((x[ids], y[ids]))
      value, grads = jax.value_and_grad(trained_loss)(params, x_batch, y_batch)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), value

    keys = jax.random.split(jax.random.key(SEED), SETTINGS["epochs"])
    orders = jax.vmap(lambda key: jax.random.permutation(key, len(y))[: steps * batch])(keys)
    carry = (params, optimizer.init(params))
    return jax.lax.scan(update, carry, orders.reshape(num_updates, batch))[0][0]

  return run(*sharding.replicate((params, x_train, y_train), mesh))


ball = ro.LInf(RADIUS, BOX)
adversary = ro.ascend(ro.pgd(ball, ro.LInf(RADIUS / 3), random_start=False), 5)
nets = {
  "Linen": Partial(linen_logits, fit(linen_logits, linen_params)),
  "NNX": Partial(nnx_logits, fit(nnx_logits, nnx_params)),
  "Equinox": Partial(equinox_logits, fit(equinox_logits, equinox_params)),
  "Haiku": Partial(haiku_logits, fit(haiku_logits, haiku_params)),
  "Linen, robust": Partial(linen_logits, fit(linen_logits, linen_params, adversary)),
}
for name, logits_fn in nets.items():
  right = np.asarray(logits_fn(x_test).argmax(-1)) == y_test
  print(f"{name}: {right.mean():.1%} of {len(y_test)} test images")

# %% [markdown]
# `jax.tree_util.Partial(logits, params)` is the function of images alone. A `lambda` does as
# well; Partial hands the weights over as arguments, so that networks of one architecture share
# what is compiled.

# %% [markdown]
# ## 2. AutoAttack and its verdict
#
# AutoAttack (Croce and Hein 2020) runs four attacks in a row, each on the images that the earlier
# ones did not break. An image counts as robust only if all fail. `version="quick"` runs two of
# them, shortened, for an overview; report the result of the standard version.


# %%
def ensemble(logits_fn, version):
  """The verdict over the test images, all devices at work."""
  return ro.autoattack(
    logits_fn,
    x_test,
    y_test,
    ro.LInf(RADIUS, box=(0.0, 1.0)),
    version=version,
    seed=SEED,
    batch_size=128,
    put=lambda array: jax.device_put(array, batches_over_the_mesh),
  )


verdicts = {name: ensemble(logits_fn, "quick") for name, logits_fn in nets.items()}
verdicts["Linen, robust"] = ensemble(nets["Linen, robust"], "standard")

# %% [markdown]
# The verdict holds the outcome for every image: which attack broke it, and the adversarial image.

# %%
verdict = verdicts["Linen, robust"]
print(f"clean accuracy {verdict.clean_accuracy:.1%}, robust accuracy {verdict.robust_accuracy:.1%}")
for index, name in enumerate(verdict.names):
  words = "misclassified without an attack" if name == "clean" else f"broken by {name}"
  print(f"  {words}: {np.sum(verdict.broken_by == index)}")
print(f"  robust: {np.sum(verdict.broken_by == -1)}")

# %% [markdown]
# None of it has to be taken on trust. The images are there, so that anyone who has the network
# can check the three claims that matter:

# %%
broken = verdict.broken_by > 0
images = verdict.images[broken]
furthest = np.abs(images - x_test[broken]).max()
fooled = np.asarray(nets["Linen, robust"](images).argmax(-1)) != y_test[broken]
print(f"Largest change of a pixel: {furthest:.4f}, allowed {RADIUS}.")
print(f"Pixels lie in [{images.min():.2f}, {images.max():.2f}].")
print(f"Misclassified: {fooled.sum()} of {broken.sum()}.")
assert furthest <= RADIUS
assert fooled.all()


# %%
def show(draw, *args, width=700, **kwargs):
  """Has the library draw a figure, and shows it here."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "figure.png"
    draw(*args, path=path, **kwargs)
    display(Image(path.read_bytes(), width=width))


def examples_of(verdict, logits_fn, count=8):
  """The first images that an attack broke."""
  chosen = np.flatnonzero(verdict.broken_by > 0)[:count]
  after = np.asarray(logits_fn(verdict.images[chosen]).argmax(-1))
  delta = verdict.images[chosen] - x_test[chosen]
  return x_test[chosen], delta, y_test[chosen], verdict.prediction[chosen], after


show(runs.example_grid, *examples_of(verdicts["Linen"], nets["Linen"]), title="Linen, standard")

# %% [markdown]
# Images that the standard Linen network had right, the change that AutoAttack found, and the
# result: all words in the last row are orange, for each of these images is now taken for another
# class.

# %% [markdown]
# ## 3. How sure one can be
#
# An accuracy on a few hundred images is an estimate. The exact (Clopper-Pearson) interval says
# which true shares are compatible with the count. Two networks whose intervals overlap widely
# have not been told apart.


# %%
def interval(share, count):
  """The 95 % interval of a share of `count` images, in [0, 1]."""
  bounds = stats.binomtest(round(share * count), count).proportion_ci(method="exact")
  return bounds.low, bounds.high


rows = []
for name, verdict in verdicts.items():
  low, high = interval(verdict.robust_accuracy, len(y_test))
  rows.append(
    {
      "net": name,
      "clean": f"{verdict.clean_accuracy:.1%}",
      "robust": f"{verdict.robust_accuracy:.1%}",
      "95 % interval": f"{low:.1%} to {high:.1%}",
    }
  )
title = f"AutoAttack over l_inf {RADIUS}, the first {len(y_test)} test images"
display(Markdown(tables.markdown(tables.Table(title, list(rows[0]), rows))))


# %%
def bars(groups, title):
  """Robust accuracy with its interval: name of the group -> name of the bar -> share."""
  figure, axis = plt.subplots(figsize=(8.0, 3.0), layout="constrained")
  entries = list(next(iter(groups.values())))
  for number, entry in enumerate(entries):
    places = np.arange(len(groups)) + (number - (len(entries) - 1) / 2) * 0.8 / len(entries)
    shares = np.array([group[entry] for group in groups.values()])
    ends = np.array([interval(share, len(y_test)) for share in shares]).T
    axis.bar(
      places,
      100 * shares,
      0.75 / len(entries),
      yerr=100 * np.abs(ends - shares),
      color=base.COLORS[number],
      capsize=3,
      label=entry,
    )
  axis.set_xticks(range(len(groups)), list(groups))
  axis.set(ylabel="accuracy (%)", ylim=(0, 105), title=title)
  figure.legend(frameon=False, loc="outside right upper")
  plt.show()


shares = {n: {"clean": v.clean_accuracy, "robust": v.robust_accuracy} for n, v in verdicts.items()}
bars(shares, title)

# %% [markdown]
# The blue bars are all high: clean accuracy does not tell these networks apart. The orange ones
# do. The four standard networks keep next to nothing, whatever they were written in, and the one
# that was trained against an adversary keeps a large part: the whisker, its interval, ends above
# all others.

# %% [markdown]
# ## 4. The trust report
#
# A high number can mean a robust network or a failed attack. The trust report examines the
# evaluation by properties that a sound one must have: an adversary without limits breaks
# everything, more steps break more, gradients find more than noise does, and so on.


# %%
def report_on(name, logits_fn):
  """The checks of a network, with the verdict that they examine."""
  u, settings = ro.LInf(RADIUS, box=(0.0, 1.0)), {"batch_size": 128, "verdict": verdicts[name]}
  return trust.report(logits_fn, x_test, y_test, u, **settings)


checks = report_on("Linen, robust", nets["Linen, robust"])
display(Markdown(trust.to_markdown(checks)))
print(f"{sum(check.passed is True for check in checks)} of {len(checks)} checks passed.")

# %% [markdown]
# Eleven checks, and nothing suspicious: the robust network's number can be taken seriously. It is
# still an upper bound. That all checks pass says that none of these faults was found, not that
# there is none.

# %% [markdown]
# ## 5. A trap
#
# Here is a defence that costs one line and no training: multiply the logits by a thousand. The
# predictions stay the same, for the largest logit stays the largest. Is the network more robust?


# %%
def scaled_logits(scale, params, x):
  """The Linen network with louder logits."""
  return scale * linen_logits(params, x)


(standard_params,) = nets["Linen"].args
scaled = Partial(scaled_logits, 1000.0, standard_params)


@functools.partial(jax.jit, static_argnums=0)
def accuracy_under(attack, logits_fn, x, y):
  """By an attack that climbs the cross-entropy."""

  def value_fn(x):
    return ro.losses.cross_entropy(logits_fn(x), y)

  delta, _ = attack(value_fn, None, x)
  right, still_right = (ro.losses.correct(logits_fn(images), y) for images in (x, x + delta))
  return jnp.mean(right & still_right)


fgsm = ro.steepest(ball)
pgd = ro.ascend(ro.pgd(ball, ro.LInf(RADIUS / 4), random_start=False), 40)


def compared(name, logits_fn, version="standard"):
  """Three answers to the question how robust a network is."""
  placed = jax.device_put((x_test, y_test), batches_over_the_mesh)
  verdicts[name] = ensemble(logits_fn, version)
  return {
    "FGSM": float(accuracy_under(fgsm, logits_fn, *placed)),
    "PGD-40": float(accuracy_under(pgd, logits_fn, *placed)),
    "AutoAttack": verdicts[name].robust_accuracy,
  }


answers = {
  name: compared(name, logits_fn)
  for name, logits_fn in {"standard net": nets["Linen"], "logits x 1000": scaled}.items()
}


def in_words(name):
  """The answers as a line of text."""
  return f"{name}: " + ", ".join(f"{attack} {share:.1%}" for attack, share in answers[name].items())


def who_broke_it(name):
  """How many images each attack of the ensemble broke, of those that the ones before had left."""
  counts = [int(np.sum(verdicts[name].broken_by == n)) for n in range(len(verdicts[name].names))]
  return ", ".join(f"{attack} {count}" for attack, count in zip(verdicts[name].names, counts))


for name in answers:
  print(in_words(name))
print(f"logits x 1000, broken by: {who_broke_it('logits x 1000')}")

# %% [markdown]
# By FGSM and by forty steps of PGD the louder network keeps most of its accuracy, and by forty
# steps more than by one: a sign in itself that something is wrong, for where the gradient is
# exactly 0 an image stays where it is, and the few that move at all may be carried by a first
# short step to where it is 0. By AutoAttack it keeps next to nothing, like the network that it
# was made from. Which is true? The images of the verdict settle it: they are there, and they are
# misclassified. What the trap does is to the attacks alone. With margins of thousands the softmax
# is exactly 1 in float32, the cross-entropy exactly 0, and so is its gradient:

# %%
failed = {}
for name, logits_fn in {"standard net": nets["Linen"], "logits x 1000": scaled}.items():
  checks = report_on(name, logits_fn)
  failed[name] = [check.name for check in checks if check.failed]
  print(f"{name}: {len(failed[name])} checks fail: {', '.join(failed[name]) or 'none'}")
for check in checks:
  if check.failed:
    print(f"\n{check.name}: {check.measured}.\n{check.meaning}")

# %% [markdown]
# An attack that has no gradient stands still, and "not broken" is counted as "robust". AutoAttack
# is not deceived because its second attack, apgd-t, climbs a ratio of differences of logits,
# which no scale changes. Nobody multiplies by a thousand on purpose; a long training without
# weight decay, a low temperature or distillation do the same by accident.

# %% [markdown]
# ## 6. A second trap
#
# A defence that has been proposed in earnest: round the pixels to a few levels before the network
# sees them, so that small changes vanish. Rounding is a staircase, flat nearly everywhere, and
# this time no loss helps: there is no gradient for any of them.

# %%
LEVELS = 4


def rounded(x):
  """To 0, 1/4, 1/2, 3/4 or 1."""
  return jnp.round(x * LEVELS) / LEVELS


def quantised_logits(params, x):
  """The Linen network behind a staircase."""
  return linen_logits(params, rounded(x))


def straight_through_logits(params, x):
  """The same answers, but a gradient as if nothing had been rounded."""
  return linen_logits(params, x + jax.lax.stop_gradient(rounded(x) - x))


quantised = Partial(quantised_logits, standard_params)
adapted = Partial(straight_through_logits, standard_params)
answers["rounded pixels"] = compared("rounded pixels", quantised)
answers["rounded, adapted"] = compared("rounded, adapted", adapted, "quick")
for name in ("rounded pixels", "rounded, adapted"):
  print(in_words(name))
print(f"rounded pixels, broken by: {who_broke_it('rounded pixels')}")
checks = report_on("rounded pixels", quantised)
failed["rounded pixels"] = [check.name for check in checks if check.failed]
names = failed["rounded pixels"]
print(f"rounded pixels: {len(names)} checks fail: {', '.join(names)}")

# %%
bars(answers, f"Three answers, l_inf {RADIUS}")

# %% [markdown]
# For the standard network the three bars are all low. Behind either trap FGSM and PGD draw tall
# ones while AutoAttack's stays low: a gap like this is the mark of masked gradients. The last
# group is the remedy for the staircase, *adapt the attack to the defence*: the same network,
# answering the same, but with a gradient that ignores the rounding. Then gradients find the way
# again. (Its AutoAttack, like those of the standard networks in section 3, is the quick version,
# whose number can only be too high.)
#
# For the rounded network it is Square that brings AutoAttack's bar down, the one attack of the
# four that uses no gradient; the trust report names several checks at once, the black-box one
# among them. Had Square been left out, the staircase would have passed for a defence.

# %% [markdown]
# ## To go on
#
# - Put your own function in place of `nets["Linen"]`. By a command, on a file: `python -m
#   robust_opt.evaluate --model=my_module:logits_fn --data=test.npz --norm=l2 --radius=0.5
#   --output=runs/mine`, which keeps what it has done, and `python -m robust_opt.verify` for
#   others who want to recompute the claim.
# - Return probabilities in place of logits, or leave dropout switched on, and read the trust
#   report.
