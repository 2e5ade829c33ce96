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
# # Why do adversarial examples exist? Two papers side by side
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/robust-opt/robust_opt/blob/main/colab/3_two_papers.ipynb)
#
# Two answers are widely quoted.
#
# - Goodfellow, Shlens and Szegedy 2015 ([*Explaining and harnessing adversarial
#   examples*](https://arxiv.org/abs/1412.6572)): networks are too linear. Many tiny changes, each
#   in the direction of a weight, add up over many pixels.
# - Ilyas, Santurkar, Tsipras, Engstrom, Tran and Madry 2019 ([*Adversarial examples are not bugs,
#   they are features*](https://arxiv.org/abs/1905.02175)): the data hold patterns that predict
#   the label well and that a small change can turn over. Networks use them, because they help.
#
# Both make predictions that a few minutes of computing can test:
#
# 1. small changes add up,
# 2. logits move along straight lines,
# 3. adversarial examples fill regions, not pockets,
# 4. they carry over to other networks,
# 5. what looks like noise to us is enough to learn from.
#
# The last cell puts predictions and observations in one table.

# %% [markdown]
# ## Before the start
#
# The first cell installs the library when it runs in Colab, and does nothing elsewhere.

# %%
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
  on_gpu = Path("/dev/nvidia0").exists()
  on_tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
  jax_for_this_machine = "jax[cuda12]" if on_gpu else "jax[tpu]" if on_tpu else "jax"
  packages = [jax_for_this_machine, "git+https://github.com/robust-opt/robust_opt"]
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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Image, Markdown, display
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

import robust_opt as ro
from robust_opt import models, tables
from robust_opt.data import constructed, datasets
from robust_opt.evaluation import accuracy as evaluation
from robust_opt.plots import base
from robust_opt.plots import explanations as explanation_figures
from robust_opt.theory import explanations
from robust_opt.training import sharding

# %matplotlib inline
plt.rcParams["figure.dpi"] = 70

# %%
mesh = sharding.data_mesh()
on_every_device = sharding.batch_placer(mesh)
kind = jax.devices()[0].platform.upper()
print(f"Found {jax.device_count()} {kind} device(s) of the kind {jax.devices()[0].device_kind!r}.")
print(f"Batches are split over a mesh of {dict(mesh.shape)}. JAX {jax.__version__}.")

# %% [markdown]
# Data, and two architectures: a multilayer perceptron and a convolutional network, each trained
# twice from different starts. All training here is the function `train`.

# %%
SETTINGS = {
  "small": {"name": "digits", "epochs": 20, "batch": 32, "tested": 360, "made": 1437, "l2": 1.0},
  "full": {"name": "mnist", "epochs": 5, "batch": 128, "tested": 1000, "made": 20000, "l2": 1.5},
}[SIZE]
EPS = 0.15  # of the attacks over l_inf, in pixels of [0, 1]
RADIUS = SETTINGS["l2"]  # of the changes in section 5, over l_2
BOX = (0.0, 1.0)

train_set = datasets.load(SETTINGS["name"], "train", data_dir=DATA_DIR or None)
test_set = datasets.load(SETTINGS["name"], "test", data_dir=DATA_DIR or None)
x_train = np.asarray(train_set.images[: SETTINGS["made"]] / 255, np.float32)
y_train = train_set.labels[: SETTINGS["made"]]
x = jnp.asarray(test_set.images[: SETTINGS["tested"]] / 255, jnp.float32)
y = jnp.asarray(test_set.labels[: SETTINGS["tested"]])
statistics = {"mean": float(x_train.mean()), "std": float(x_train.std())}
PERCEPTRON = models.MLP(**statistics)
CONVNET = (models.DigitsCNN if SIZE == "small" else models.MnistCNN)(**statistics)


applied = functools.cache(models.from_linen)  # one function a network, so that programs are shared


@functools.cache
def trainer(net):
  """The whole training as one program: (parameters, images, labels, key) -> parameters."""
  no_attack = ro.ascend(ro.pgd(ro.L2(0.0), ro.L2(0.0), random_start=False), 0)
  plan = ro.EpochPlan(len(y_train), SETTINGS["batch"])
  num_steps = SETTINGS["epochs"] * plan.num_steps
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
  step = ro.make_train_step(applied(net), optimizer, ro.robust(), no_attack)
  run = ro.make_scan(step, plan, place_batch=on_every_device)

  def whole(params, images, labels, key):
    state = ro.init_state(params, {}, optimizer)
    return run(state, ro.ArrayData(images, labels), key, num_steps)[0].params

  return jax.jit(whole)


def train(net, images, labels, seed):
  """A network in evaluation mode, from images to logits."""
  key = jax.random.key(1000 * SEED + seed)
  params, _ = models.init(net, key, images.shape[1:])
  params, images, labels = sharding.replicate((params, images, labels), mesh)
  return evaluation.logits_of(applied(net), trainer(net)(params, images, labels, key), {})


@jax.jit
def accuracy(logits_fn, images, labels):
  """The share that is classified correctly."""
  return jnp.mean(ro.losses.correct(logits_fn(images), labels))


@jax.jit
def gradient(logits_fn, images, labels):
  """Of the cross-entropy, in every image."""
  return jax.grad(lambda x: ro.losses.cross_entropy(logits_fn(x), labels).sum())(images)


nets = {
  f"{name} {seed}": train(net, x_train, y_train, seed)
  for name, net in (("perceptron", PERCEPTRON), ("convnet", CONVNET))
  for seed in (1, 2)
}
for name, logits_fn in nets.items():
  print(f"{name}: {accuracy(logits_fn, x, y):.1%} of {len(y)} test images")


# %%
def show(draw, *args, width=700, **kwargs):
  """Has the library draw a figure, and shows it here."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "figure.png"
    draw(*args, path=path, **kwargs)
    display(Image(path.read_bytes(), width=width))


# %% [markdown]
# ## 1. Small changes add up
#
# A linear unit computes $\langle w, x \rangle$. Change every pixel by $\epsilon$ in the direction
# of the sign of its weight, and the answer moves by $\epsilon \lVert w \rVert_1$, which grows
# with the number of pixels $n$. Change every pixel by $\epsilon$ at random, and most of it
# cancels: $\sqrt n$.

# %%
dimensions = (16, 64, 256, 1024, 4096, 16384)
growth = explanations.activation_growth(jax.random.key(SEED), dimensions, EPS, trials=200)
worst, noise = np.asarray(growth.worst), np.asarray(growth.noise)
show(explanation_figures.growth_with_dimension, dimensions, worst, noise, width=420)
exponents = [np.polyfit(np.log(dimensions), np.log(v), 1)[0] for v in (worst, noise)]
print(
  f"Exponents: {exponents[0]:.2f} by the signs of the weights, {exponents[1]:.2f} by random signs."
)

# %% [markdown]
# Two straight lines on logarithmic axes, one twice as steep as the other. With sixteen inputs an
# adversary does three times as well as noise, with sixteen thousand a hundred times.

# %% [markdown]
# ## 2. Logits move along straight lines
#
# If a network is nearly linear, its logits are nearly straight lines along the direction of the
# signs of the gradient, perhaps with a bend at the image itself.

# %%
epsilons = jnp.linspace(-0.5, 0.5, 81)
signs = {name: jnp.sign(gradient(logits_fn, x, y)) for name, logits_fn in nets.items()}
sweep = jax.jit(explanations.epsilon_sweep)
logits = {name: sweep(logits_fn, x, signs[name], epsilons) for name, logits_fn in nets.items()}
first = [int(np.flatnonzero(np.asarray(y) == label)[0]) for label in (3, 4, 8)]
labels = np.asarray(y)[first]
for name in ("perceptron 1", "convnet 1"):
  print(name)
  shown = np.asarray(logits[name])[:, first]
  show(explanation_figures.logits_against_epsilon, np.asarray(epsilons), shown, labels)

straightness = {}
for name in nets:
  fits = explanations.linearity(epsilons, logits[name])
  straightness[name] = float(np.nanmedian(fits.knee))
  line, knee = float(np.nanmedian(fits.line)), straightness[name]
  print(f"{name}: median R^2 of one line {line:.3f}, of two that meet at the image {knee:.3f}")

# %% [markdown]
# The curves are nearly straight: two lines that meet at the image explain almost all of how the
# logits vary, and one line does not much worse. To the right the loss grows: the true class
# (black) sinks, others rise, and from some $\epsilon$ on (grey) the image is misclassified, and
# stays so.

# %% [markdown]
# ## 3. Regions, not pockets
#
# It follows that adversarial examples are nothing rare: on the way along the right direction one
# enters a region of mistakes and stays in it. So along each line the mistakes should form few
# runs, and on a slice through image space few regions. Here a slice is spanned by the signs of
# the gradient (to the right) and by random signs (upwards), and its corners are changes of a
# third of the range of a pixel in either direction.

# %%
EXTENT = 0.33
slices = jax.jit(explanations.plane, static_argnums=5)
random_signs = jax.random.rademacher(jax.random.key(SEED + 400), x.shape, x.dtype)
subject = nets["convnet 1"]
chosen = np.array(first)
directions = (signs["convnet 1"][chosen], random_signs[chosen])
show(
  explanation_figures.class_slices,
  np.asarray(slices(subject, x[chosen], *directions, EXTENT, 61)),
  labels,
  extent=EXTENT,
  num_classes=10,
  directions=("signs of the gradient", "random signs"),
)

# %% [markdown]
# Going right from the cross the class changes, and behind the border lie whole areas of another
# class, not specks. Going up or down, along noise, the class mostly stays. The same, counted over
# a hundred slices and over the lines of section 2:

# %%
num_slices, resolution = 100, 31
part = slice(num_slices)
predicted = slices(
  subject, x[part], signs["convnet 1"][part], random_signs[part], EXTENT, resolution
)
wrong = np.asarray(predicted) != np.asarray(y)[part, None, None]
middle = resolution // 2  # where there is no change in that direction
along_gradient = float(wrong[:, -1, middle].mean())
along_noise = float(wrong[:, middle, -1].mean())
print("Misclassified at the edge of the slice:")
print(
  f"  along the signs of the gradient {along_gradient:.1%}, along random signs {along_noise:.1%}"
)
has_mistakes = wrong.any(axis=(1, 2))
mean_regions = float(explanations.components(wrong)[has_mistakes].mean())
mean_area = float(wrong[has_mistakes].mean())
print(f"{has_mistakes.sum()} of {num_slices} slices hold mistakes:")
print(f"  on {mean_area:.0%} of the area, in {mean_regions:.1f} regions, on average")

print("Of the lines of section 2 that meet mistakes, to the right, one run holds them all in")
for name in nets:
  found = explanations.intervals(jnp.argmax(logits[name][40:], -1) != y)
  print(f"  {name}: {jnp.mean((found.runs == 1)[found.runs > 0]):.0%}")

# %% [markdown]
# Along the signs of the gradient nearly every image meets a region of mistakes, along random
# signs of the same size few do. The regions are few a slice, and a line that has entered one
# seldom leaves it again.

# %% [markdown]
# ## 4. They carry over
#
# Examples made against one network often fool another, even of another architecture. Goodfellow
# et al. explain it by what the networks share as (nearly) linear classifiers, Ilyas et al. by the
# features of the data that all of them learn.


# %%
@jax.jit
def adversarial(logits_fn, images, labels):
  """Ten steps within the l_inf ball and the pixel box."""

  def value_fn(x):
    return ro.losses.cross_entropy(logits_fn(x), labels)

  maximizer = ro.pgd(ro.LInf(EPS, BOX), ro.LInf(EPS / 4), random_start=False)
  delta, _ = ro.ascend(maximizer, 10)(value_fn, None, images)
  return images + delta


made = {name: adversarial(logits_fn, x, y) for name, logits_fn in nets.items()}
made["random signs"] = jnp.clip(x + EPS * random_signs, *BOX)
matrix = np.asarray(explanations.transfer_matrix(list(nets.values()), list(made.values()), y))
show(explanation_figures.transfer_heat_map, matrix, list(made), list(nets), width=560)

error = 1 - matrix
families = np.array([name.split()[0] for name in nets])
across = families[:, None] != families[None, :]
own, transferred = float(np.diag(error[:4]).mean()), float(error[:4][across].mean())
by_noise = float(error[4].mean())
print(f"Mean error on a net's own examples {own:.1%}, on those of the other architecture")
print(f"{transferred:.1%}, on noise of the same size {by_noise:.1%}.")

# %% [markdown]
# The diagonal is brightest: each network falls to its own examples. Off the diagonal the errors
# are smaller, but far above those of the last row, which is random noise of the same size. Do
# networks agree on what they mistake an example for?

# %%
a, b = "perceptron 1", "convnet 1"
predicted_a, predicted_b = (jnp.argmax(nets[name](made[a]), -1) for name in (a, b))
agreement = explanations.agreement_on_mistakes(predicted_a, predicted_b, y)
print(f"Examples of {a} on which {b} errs, too: {agreement.num_both}.")
print(f"Both name the same wrong class in {agreement.both:.0%} of these.")
weights = [explanations.effective_weights(nets[name], x) for name in (a, b)]
cosine = float(jnp.nanmean(explanations.cosine_similarity(*weights)))
print(f"Cosine of the two as linear classifiers: {cosine:.2f} (of unrelated ones 0, on average).")

# %% [markdown]
# They do, far above the one in nine of guessing among wrong classes (some pairs of digits are
# confused more easily than others, so a part of it is the data's): the two have much in common as
# linear classifiers.

# %% [markdown]
# ## 5. What looks like noise is enough to learn from
#
# Here the papers part. Take every training image, choose a class at random, and move the image
# slightly (within an $\ell_2$ ball) until a network takes it for that class. Label it so. To a
# person nearly all labels of this set, *D_rand*, are now wrong, and the strokes of a digit say
# nothing about its label. Train a fresh network on it, and test it on true images with true
# labels.
#
# If the changes are a quirk of the network that they were made with, nothing useful can be
# learnt. If they are features of the data, the fresh network will classify the true test set.
#
# A second set, *D_det*, moves each image to the class after its own. Now the strokes say one
# thing and the changes another: a network that learns from strokes will take a 3 for a 4, one
# that learns from the changes will take it for a 3. And a control: the random labels of D_rand,
# on the images as they were.

# %%
maker = nets["perceptron 1"]
ids = jnp.arange(len(y_train))
keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(SEED + 500), ids)
random_labels = np.asarray(constructed.random_targets(keys, 10))
next_labels = np.asarray(constructed.next_class(jnp.asarray(y_train), 10))
settings = constructed.Settings(RADIUS, num_steps=100, step=RADIUS / 5)
over_the_mesh = NamedSharding(mesh, PartitionSpec(sharding.AXIS))


@jax.jit
def moved(logits_fn, images, labels):
  """A batch of images, moved towards these classes."""
  return constructed.towards(logits_fn, images, labels, settings)


def moved_set(labels, size=480):
  """The whole training set, in batches that are split over the mesh."""
  parts = []
  for begin in range(0, len(labels), size):
    part = np.resize(np.arange(begin, min(begin + size, len(labels))), size)  # a full batch
    batch = jax.device_put((x_train[part], labels[part]), over_the_mesh)
    parts.append(np.asarray(moved(maker, *batch)))
  return np.concatenate(parts)[: len(labels)]


sets = {
  "original": (x_train, y_train),
  "control": (x_train, random_labels),
  "D_rand": (moved_set(random_labels), random_labels),
  "D_det": (moved_set(next_labels), next_labels),
}
shown = {name: (images[:8], labels[:8]) for name, (images, labels) in sets.items()}
show(explanation_figures.labeled_rows, shown, width=560)

# %% [markdown]
# Above each image its label. The digits that we see are the same in every row, smudged in the
# last two, since 8 x 8 pixels leave an adversary little room to hide. The labels of the first row
# are true, those of the last are all wrong, and the others are right by chance alone.

# %%
learnt = {}
for name, (images, labels) in sets.items():
  learnt[name] = {}
  for family, net in (("perceptron", PERCEPTRON), ("convnet", CONVNET)):
    # Fresh: no network above began from this seed. What the original set teaches is known.
    fresh = nets[f"{family} 2"] if name == "original" else train(net, images, labels, seed=3)
    learnt[name][family] = float(accuracy(fresh, x, y))
    if name == "D_det":
      learnt[name][f"{family}, by strokes"] = float(
        accuracy(fresh, x, constructed.next_class(y, 10))
      )

title = f"Fresh networks on the {len(y)} true test images"
rows = [
  {"learnt from": name, **{family: f"{v[family]:.1%}" for family in ("perceptron", "convnet")}}
  for name, v in learnt.items()
]
display(Markdown(tables.markdown(tables.Table(title, list(rows[0]), rows))))
by_strokes = [learnt["D_det"][f"{family}, by strokes"] for family in ("perceptron", "convnet")]
print("Learnt from D_det, they take a digit for the one after it:")
print(f"  perceptron {by_strokes[0]:.1%}, convnet {by_strokes[1]:.1%} of the test images")

figure, axis = plt.subplots(figsize=(7.0, 3.0), layout="constrained")
places = np.arange(len(learnt))
for number, family in enumerate(("perceptron", "convnet")):
  shares = [100 * v[family] for v in learnt.values()]
  axis.bar(places + 0.4 * number - 0.2, shares, 0.38, color=base.COLORS[number], label=family)
axis.axhline(10, color="0.4", ls=":", lw=1, label="chance")
axis.set_xticks(places, list(learnt))
axis.set(xlabel="learnt from", ylabel="accuracy on true test images (%)", ylim=(0, 105))
figure.legend(frameon=False, loc="outside right upper")
plt.show()

# %% [markdown]
# The learners from D_rand have seen almost only wrong labels, and classify the true test set far
# better than the control, whose labels were the same and whose images had not been moved. So the
# small changes carry what they learnt, and a convolutional network can read what a perceptron has
# written. D_det is the harder test, since strokes and changes compete: its bars, above chance or
# not, are the share that the changes win, and the two printed numbers the share of the strokes.
# On photographs the paper finds 44 % for the changes.

# %% [markdown]
# ## What each explanation predicts, and what we saw


# %%
def above_chance(shares, count, chance=0.1):
  """Whether every one of these shares of `count` test images is above chance, beyond noise."""
  tests = [stats.binomtest(round(v * count), count, chance, "greater") for v in shares]
  return "yes" if all(test.pvalue < 0.01 for test in tests) else "no"


def above(share, other, count):
  """Whether one share of `count` test images is above another, beyond the noise of both."""
  table = [[round(v * count), count - round(v * count)] for v in (share, other)]
  return "yes" if stats.fisher_exact(table, alternative="greater").pvalue < 0.01 else "no"


def share_of(name):
  """Of the test images, the mean over both learners."""
  return (learnt[name]["perceptron"] + learnt[name]["convnet"]) / 2


rand, det, control = map(share_of, ("D_rand", "D_det", "control"))
rows = [
  {
    "question": "How does the effect of a small change grow with the pixels? (arithmetic)",
    "Goodfellow et al. 2015": "as n, for noise as sqrt(n)",
    "Ilyas et al. 2019": "no prediction",
    "we saw": f"exponents {exponents[0]:.2f} and {exponents[1]:.2f}",
    "as predicted": "yes" if np.allclose(exponents, (1.0, 0.5), atol=0.1) else "no",
  },
  {
    "question": "What do logits do along the signs of the gradient?",
    "Goodfellow et al. 2015": "piecewise linear, bent at the image",
    "Ilyas et al. 2019": "no prediction",
    "we saw": f"median R^2 {min(straightness.values()):.2f} to {max(straightness.values()):.2f}",
    "as predicted": "yes" if min(straightness.values()) > 0.9 else "in part",
  },
  {
    "question": "Where do adversarial examples lie?",
    "Goodfellow et al. 2015": "in contiguous regions, found by direction",
    "Ilyas et al. 2019": "no prediction",
    "we saw": f"{mean_regions:.1f} regions a slice; misclassified {along_gradient:.0%} along the "
    f"signs, {along_noise:.0%} along noise",
    "as predicted": above(along_gradient, along_noise, num_slices),
  },
  {
    "question": "Do they fool other architectures?",
    "Goodfellow et al. 2015": "yes: all resemble one linear classifier",
    "Ilyas et al. 2019": "yes: all learn the same non-robust features",
    "we saw": f"error {transferred:.0%}, on noise {by_noise:.0%}",
    "as predicted": above(transferred, by_noise, len(y)),
  },
  {
    "question": "Can one learn the true task from the changes alone?",
    "Goodfellow et al. 2015": "no prediction",
    "Ilyas et al. 2019": "yes: D_rand teaches it",
    "we saw": f"accuracy {rand:.0%}, control {control:.0%}",
    "as predicted": above(rand, control, len(y)),
  },
  {
    "question": "And where the strokes contradict them?",
    "Goodfellow et al. 2015": "no prediction",
    "Ilyas et al. 2019": "D_det teaches it, too, but less well",
    "we saw": f"accuracy {det:.0%}, chance 10%, by the strokes {np.mean(by_strokes):.0%}",
    "as predicted": above_chance(
      (learnt["D_det"]["perceptron"], learnt["D_det"]["convnet"]), len(y)
    ),
  },
]
display(Markdown(tables.markdown(tables.Table("Two explanations", list(rows[0]), rows))))

# %% [markdown]
# The two do not contradict each other. The first says *how* a small change has a large effect,
# the second says *why the directions are what they are*: they point along features that the data
# really hold. Only the last two questions tell them apart, and the first paper is silent on
# these.
#
# What this does not show: these are small images, small networks and one seed of each learner. The
# first row is arithmetic on random weights; that two lines explain a logit well is what any smooth
# curve grants in part. And the last row depends on the data: `python -m
# robust_opt.papers.ilyas2019`, which repeats section 5 over several seeds with intervals and adds
# the sets of robust features, finds on MNIST that D_det teaches 3.1 % of the true test set, below
# chance, for there the strokes win.
#
# ## To go on
#
# - Let the convolutional network make the sets of section 5. Who learns more from it?
# - Train a robust network, as in notebook 1, and put it into sections 2 and 4. How straight are
#   its logits, and whom do its examples fool?
