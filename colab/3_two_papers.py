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
# There are two well-known explanations.
#
# - Goodfellow, Shlens and Szegedy 2015 ([*Explaining and harnessing adversarial
#   examples*](https://arxiv.org/abs/1412.6572)): networks are too linear. Many tiny changes, each
#   in the direction of a weight, add up over many pixels.
# - Ilyas, Santurkar, Tsipras, Engstrom, Tran and Madry 2019 ([*Adversarial examples are not bugs,
#   they are features*](https://arxiv.org/abs/1905.02175)): the data contain features that predict
#   the label well but can be flipped by a small perturbation. Networks use them because they
#   improve accuracy.
#
# Both make predictions that can be tested in a few minutes:
#
# 1. small changes add up over many dimensions,
# 2. logits are piecewise linear along the sign of the gradient,
# 3. adversarial examples occupy contiguous regions,
# 4. adversarial examples transfer to other networks,
# 5. perturbations that look like noise suffice to learn the true task.
#
# The last cell compares predictions and observations in one table.

# %% [markdown]
# ## Setup
#
# The first cell installs the library in Colab and does nothing elsewhere.

# %%
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
  gpu = Path("/dev/nvidia0").exists()
  tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
  library = "robust_opt[run,data] @ git+https://github.com/robust-opt/robust_opt"
  packages = ["jax[cuda12]" if gpu else "jax[tpu]" if tpu else "jax", library]
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
from robust_opt.evaluation.accuracy import logits_of
from robust_opt.plots import base
from robust_opt.plots import explanations as figures
from robust_opt.theory import explanations
from robust_opt.training import sharding

# %matplotlib inline
plt.rcParams["figure.dpi"] = 70

# %%
mesh = sharding.data_mesh()
place_batch = sharding.batch_placer(mesh)
device = jax.devices()[0]
print(f"Found {jax.device_count()} {device.platform.upper()} device(s): {device.device_kind}.")
print(f"Batches are split over a mesh of {dict(mesh.shape)}. JAX {jax.__version__}.")

# %% [markdown]
# We use two architectures, a multilayer perceptron and a convolutional network, each trained from
# two random initializations. The function `train` does all training in this notebook.

# %%
SETTINGS = {
  "small": {"name": "digits", "epochs": 20, "batch": 32, "tested": 360, "train": 1437, "l2": 1.0},
  "full": {"name": "mnist", "epochs": 5, "batch": 128, "tested": 1000, "train": 20000, "l2": 1.5},
}[SIZE]
EPS = 0.15  # l_inf radius of the attacks, in pixels of [0, 1]
RADIUS = SETTINGS["l2"]  # l_2 radius of the perturbations in section 5
BOX = (0.0, 1.0)

train_set = datasets.load(SETTINGS["name"], "train", data_dir=DATA_DIR or None)
test_set = datasets.load(SETTINGS["name"], "test", data_dir=DATA_DIR or None)
x_train = np.asarray(train_set.images[: SETTINGS["train"]] / 255, np.float32)
y_train = train_set.labels[: SETTINGS["train"]]
x = jnp.asarray(test_set.images[: SETTINGS["tested"]] / 255, jnp.float32)
y = jnp.asarray(test_set.labels[: SETTINGS["tested"]])
pixels = {"mean": float(x_train.mean()), "std": float(x_train.std())}
ARCHITECTURES = {
  "perceptron": models.MLP(**pixels),
  "convnet": (models.DigitsCNN if SIZE == "small" else models.MnistCNN)(**pixels),
}
apply_of = functools.cache(models.from_linen)  # the same function for all networks of a kind


@functools.cache
def compiled_training(net):
  """(parameters, images, labels, key) -> trained parameters, as one program."""
  plan = ro.EpochPlan(len(y_train), SETTINGS["batch"])
  num_steps = SETTINGS["epochs"] * plan.num_steps
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
  no_attack = ro.ascend(ro.frank_wolfe(ro.LInf(0.0)), num_steps=0)
  step = ro.make_train_step(apply_of(net), optimizer, ro.robust(), no_attack)
  scan = ro.make_scan(step, plan, place_batch=place_batch)

  def run(params, images, labels, key):
    state = ro.init_state(params, {}, optimizer)
    return scan(state, ro.ArrayData(images, labels), key, num_steps)[0].params

  return jax.jit(run)


def train(name, images, labels, seed):
  """A trained network as a function from images to logits."""
  net, key = ARCHITECTURES[name], jax.random.key(1000 * SEED + seed)
  params, _ = models.init(net, key, images.shape[1:])
  params, images, labels = sharding.replicate((params, images, labels), mesh)
  return logits_of(apply_of(net), compiled_training(net)(params, images, labels, key), {})


@jax.jit
def accuracy(logits_fn, images, labels):
  """The fraction of images that are classified correctly."""
  return jnp.mean(ro.losses.correct(logits_fn(images), labels))


@jax.jit
def gradient(logits_fn, images, labels):
  """The gradient of the cross-entropy in each image."""
  return jax.grad(lambda x: ro.losses.cross_entropy(logits_fn(x), labels).sum())(images)


nets = {
  f"{name} {seed}": train(name, x_train, y_train, seed) for name in ARCHITECTURES for seed in (1, 2)
}
for name, logits_fn in nets.items():
  print(f"{name}: {accuracy(logits_fn, x, y):.1%} of {len(y)} test images")


# %%
def show(draw, *args, width=700, **kwargs):
  """Displays a figure of `robust_opt.plots`, which draws into a file."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "figure.png")
    draw(*args, path=path, **kwargs)
    display(Image(path.read_bytes(), width=width))


def show_table(title, rows):
  """Displays rows, dictionaries with the same keys, as a Markdown table."""
  display(Markdown(tables.markdown(tables.Table(title, list(rows[0]), rows))))


# %% [markdown]
# ## 1. Small changes add up over many dimensions
#
# A linear unit computes $\langle w, x \rangle$. If every pixel changes by $\epsilon$ in the
# direction of the sign of its weight, the output changes by $\epsilon \lVert w \rVert_1$, which
# grows in proportion to the number of pixels $n$. If every pixel changes by $\pm\epsilon$ at
# random, most of the changes cancel, and the output changes in proportion to $\sqrt n$.

# %%
dimensions = (16, 64, 256, 1024, 4096, 16384)
growth = explanations.activation_growth(jax.random.key(SEED), dimensions, EPS, trials=200)
worst, noise = np.asarray(growth.worst), np.asarray(growth.noise)
show(figures.growth_with_dimension, dimensions, worst, noise, width=420)
exponents = [np.polyfit(np.log(dimensions), np.log(v), 1)[0] for v in (worst, noise)]
print(f"Exponents: {exponents[0]:.2f} for worst-case signs, {exponents[1]:.2f} for random signs.")

# %% [markdown]
# On logarithmic axes both are straight lines, one twice as steep as the other. With 16 inputs the
# adversary changes the output three times as much as noise does, with 16,384 inputs about a hundred
# times.

# %% [markdown]
# ## 2. Logits are piecewise linear along the sign of the gradient
#
# If a network is nearly linear, its logits along the sign of the gradient are nearly straight
# lines, possibly with a kink at the image itself.

# %%
epsilons = jnp.linspace(-0.5, 0.5, 81)
signs = {name: jnp.sign(gradient(logits_fn, x, y)) for name, logits_fn in nets.items()}
sweep = jax.jit(explanations.epsilon_sweep)
logits = {name: sweep(logits_fn, x, signs[name], epsilons) for name, logits_fn in nets.items()}
ids = np.array([np.flatnonzero(np.asarray(y) == label)[0] for label in (3, 4, 8)])
labels = np.asarray(y)[ids]
for name in ("perceptron 1", "convnet 1"):
  print(name)
  examples = np.asarray(logits[name])[:, ids]
  show(figures.logits_against_epsilon, np.asarray(epsilons), examples, labels)

kinked = {}
for name in nets:
  fit = explanations.linearity(epsilons, logits[name])
  line, kinked[name] = float(np.nanmedian(fit.line)), float(np.nanmedian(fit.knee))
  print(f"{name}: median R^2 of one line {line:.3f}, of two with a kink {kinked[name]:.3f}")

# %% [markdown]
# The curves are nearly straight: two lines that meet at the image explain almost all of the
# variance of a logit, and a single line does not do much worse. To the right the loss grows: the
# logit of the true class (black) falls, others rise, and beyond some $\epsilon$ (gray) the image is
# misclassified and remains so.

# %% [markdown]
# ## 3. Adversarial examples occupy contiguous regions
#
# If logits are nearly linear, adversarial examples are not isolated: the right direction leads into
# a region of misclassified points, however far one continues. Along a line, the misclassified
# points should form few intervals, and on a two-dimensional slice of image space few connected
# regions. The slices below are spanned by the sign of the gradient (horizontal) and random signs
# (vertical); their edges are changes of $\pm 0.33$ of a pixel's range.

# %%
EXTENT = 0.33
slices = jax.jit(explanations.plane, static_argnums=5)
random_signs = jax.random.rademacher(jax.random.key(SEED + 400), x.shape, x.dtype)
convnet = nets["convnet 1"]
show(
  figures.class_slices,
  np.asarray(slices(convnet, x[ids], signs["convnet 1"][ids], random_signs[ids], EXTENT, 61)),
  labels,
  extent=EXTENT,
  num_classes=10,
  directions=("sign of the gradient", "random signs"),
)

# %% [markdown]
# To the right of the cross the predicted class changes, and beyond the boundary there are large
# areas of another class rather than isolated points. Upward and downward, along random signs, the
# class mostly stays the same. The same counted over 100 slices, and over the lines of section 2:

# %%
num_slices, resolution = 100, 31
part = slice(num_slices)
directions = signs["convnet 1"][part], random_signs[part]
predicted = np.asarray(slices(convnet, x[part], *directions, EXTENT, resolution))
wrong = predicted != np.asarray(y)[part, None, None]
middle = resolution // 2  # no change in that direction
along_gradient, along_noise = wrong[:, -1, middle].mean(), wrong[:, middle, -1].mean()
print(f"Misclassified at the edge along the sign of the gradient: {along_gradient:.1%}")
print(f"Misclassified at the edge along random signs: {along_noise:.1%}")
has_errors = wrong.any(axis=(1, 2))
regions = explanations.components(wrong)[has_errors].mean()
print(
  f"{has_errors.sum()} of {num_slices} slices contain misclassified points: {regions:.1f} regions "
  f"that cover {wrong[has_errors].mean():.0%} of the slice, on average"
)

print("Share of lines with misclassified points, epsilon > 0, where these form one interval:")
for name in nets:
  runs = explanations.intervals(jnp.argmax(logits[name][40:], -1) != y).runs
  print(f"  {name}: {jnp.mean((runs == 1)[runs > 0]):.0%}")

# %% [markdown]
# Along the sign of the gradient nearly every image becomes misclassified, along random signs of the
# same size few do. A slice contains few regions, and a line that has entered one rarely leaves it.

# %% [markdown]
# ## 4. Adversarial examples transfer
#
# Examples made against one network often fool another one, even of another architecture. Goodfellow
# et al. explain this by the similarity of networks as (nearly) linear classifiers, Ilyas et al. by
# the features of the data that all networks learn.


# %%
@jax.jit
def adversarial(logits_fn, images, labels):
  """Ten steps of PGD within the l_inf ball and the pixel box."""

  def value_fn(x):
    return ro.losses.cross_entropy(logits_fn(x), labels)

  maximizer = ro.pgd(ro.LInf(EPS, BOX), ro.LInf(EPS / 4), random_start=False)
  delta, _ = ro.ascend(maximizer, 10)(value_fn, None, images)
  return images + delta


attacked = {name: adversarial(logits_fn, x, y) for name, logits_fn in nets.items()}
attacked["random signs"] = jnp.clip(x + EPS * random_signs, *BOX)
transfer = np.asarray(explanations.transfer_matrix(list(nets.values()), list(attacked.values()), y))
show(figures.transfer_heat_map, transfer, list(attacked), list(nets), width=560)

error = 1 - transfer
families = np.array([name.split()[0] for name in nets])
other_family = families[:, None] != families[None, :]
own, transferred, by_noise = np.diag(error).mean(), error[:4][other_family].mean(), error[4].mean()
print(
  f"Mean error on a network's own examples {own:.1%}, on those of the other architecture "
  f"{transferred:.1%}, on noise of the same size {by_noise:.1%}."
)

# %% [markdown]
# The diagonal is brightest: each network is fooled by its own examples. Off the diagonal the errors
# are lower, but far above those of the last row, random noise of the same size. Do the networks
# agree on the wrong class?

# %%
a, b = "perceptron 1", "convnet 1"
predictions = [jnp.argmax(nets[name](attacked[a]), -1) for name in (a, b)]
agreement = explanations.agreement_on_mistakes(*predictions, y)
print(f"Examples of {a} that {b} misclassifies too: {agreement.num_both}.")
print(f"On {agreement.both:.0%} of these both predict the same wrong class.")
weights = [explanations.effective_weights(nets[name], x) for name in (a, b)]
cosine = float(jnp.nanmean(explanations.cosine_similarity(*weights)))
print(f"Mean cosine between the two as linear classifiers: {cosine:.2f} (0 if unrelated).")

# %% [markdown]
# They do, far more often than the 1 in 9 of guessing among the wrong classes. (Part of this is due
# to the data: some pairs of digits are more easily confused than others.) As linear classifiers,
# the two networks are similar.

# %% [markdown]
# ## 5. Perturbations that look like noise suffice to learn the true task
#
# Here the two papers differ. Take each training image, choose a class at random, perturb the image
# within a small $\ell_2$ ball until a network predicts that class, and use the class as its label.
# To a person, almost all labels of this data set, *D_rand*, are wrong, and the strokes of a digit
# are unrelated to its label. Train a new network on D_rand and test it on unmodified images with
# their true labels.
#
# If the perturbations are merely a quirk of the network they were made with, nothing useful can be
# learned from them. If they are features of the data, the new network will classify the true test
# set.
#
# A second data set, *D_det*, perturbs each image toward the class after its own. Strokes and
# perturbations now contradict each other: a network that learns from strokes will classify a 3 as a
# 4, one that learns from perturbations will classify it as a 3. The control is the unmodified
# images with the random labels of D_rand.

# %%
train_keys = jax.vmap(jax.random.fold_in, (None, 0))(
  jax.random.key(SEED + 500), jnp.arange(len(y_train))
)
random_labels = np.asarray(constructed.random_targets(train_keys, 10))
next_labels = np.asarray(constructed.next_class(jnp.asarray(y_train), 10))
settings = constructed.Settings(RADIUS, num_steps=100, step=RADIUS / 5)
batch_sharding = NamedSharding(mesh, PartitionSpec(sharding.AXIS))


@jax.jit
def perturbed(logits_fn, images, labels):
  """A batch of images, perturbed until they are classified as `labels`."""
  return constructed.towards(logits_fn, images, labels, settings)


def perturbed_set(labels, size=480):
  """The training images, perturbed in batches that are split over the mesh."""
  batches = []
  for begin in range(0, len(labels), size):
    rows = np.resize(np.arange(begin, min(begin + size, len(labels))), size)  # a full batch
    batch = jax.device_put((x_train[rows], labels[rows]), batch_sharding)
    batches.append(np.asarray(perturbed(nets["perceptron 1"], *batch)))
  return np.concatenate(batches)[: len(labels)]


data = {
  "original": (x_train, y_train),
  "control": (x_train, random_labels),
  "D_rand": (perturbed_set(random_labels), random_labels),
  "D_det": (perturbed_set(next_labels), next_labels),
}
first = {name: (images[:8], labels[:8]) for name, (images, labels) in data.items()}
show(figures.labeled_rows, first, width=560)

# %% [markdown]
# Each image has its label below. The digits look the same in all rows, but smudged in the last two,
# since an image of 8 x 8 pixels cannot hide a perturbation well. The labels of the first row are
# true, those of the last row are all wrong, and those of the other two are correct only by chance.

# %%
learned = {}
for name, (images, labels) in data.items():
  learned[name] = {}
  for family in ARCHITECTURES:
    # No network above has this seed; for the original set we already have a network.
    new = nets[f"{family} 2"] if name == "original" else train(family, images, labels, seed=3)
    learned[name][family] = float(accuracy(new, x, y))
    if name == "D_det":
      next_class = constructed.next_class(y, 10)
      learned[name][f"{family}, by strokes"] = float(accuracy(new, x, next_class))

rows = [
  {"trained on": name, **{family: f"{shares[family]:.1%}" for family in ARCHITECTURES}}
  for name, shares in learned.items()
]
show_table(f"Accuracy of new networks on the {len(y)} true test images", rows)
by_strokes = [learned["D_det"][f"{family}, by strokes"] for family in ARCHITECTURES]
print(
  "Test images that networks trained on D_det classify as the next digit, by their strokes: "
  f"perceptron {by_strokes[0]:.1%}, convnet {by_strokes[1]:.1%}"
)

figure, axis = plt.subplots(figsize=(7.0, 3.0), layout="constrained")
for index, family in enumerate(ARCHITECTURES):
  shares = [100 * accuracies[family] for accuracies in learned.values()]
  positions = np.arange(len(learned)) + 0.4 * index - 0.2
  axis.bar(positions, shares, 0.38, color=base.COLORS[index], label=family)
axis.axhline(10, color="0.4", ls=":", lw=1, label="chance")
axis.set_xticks(range(len(learned)), list(learned))
axis.set(xlabel="trained on", ylabel="accuracy on true test images (%)", ylim=(0, 105))
figure.legend(frameon=False, loc="outside right upper")
plt.show()

# %% [markdown]
# Networks trained on D_rand have seen almost only wrong labels, yet classify the true test set far
# better than the control, which had the same labels but unmodified images. So they learned from the
# small perturbations, and a convolutional network can use perturbations made with a perceptron.
# D_det is the harder test, since strokes and perturbations compete: the bars show how often the
# perturbations win, and the two printed numbers how often the strokes do. On photographs, the paper
# reports 44 % for the perturbations.

# %% [markdown]
# ## Predictions and observations


# %%
def above_chance(shares, count, chance=0.1):
  """Whether each of these shares of `count` test images is significantly above chance."""
  tests = [stats.binomtest(round(v * count), count, chance, "greater") for v in shares]
  return "yes" if all(test.pvalue < 0.01 for test in tests) else "no"


def above(share, other, count):
  """Whether the first of two shares of `count` test images is significantly larger."""
  table = [[round(v * count), count - round(v * count)] for v in (share, other)]
  return "yes" if stats.fisher_exact(table, alternative="greater").pvalue < 0.01 else "no"


def mean_accuracy(name):
  """On the true test images, over both architectures."""
  return np.mean([learned[name][family] for family in ARCHITECTURES])


rand, det, control = map(mean_accuracy, ("D_rand", "D_det", "control"))
columns = ("question", "Goodfellow et al. 2015", "Ilyas et al. 2019", "observed", "as predicted")
answers = [
  (
    "How does the effect of a small change grow with the number of pixels n? (arithmetic)",
    "as n, for noise as sqrt(n)",
    "no prediction",
    f"exponents {exponents[0]:.2f} and {exponents[1]:.2f}",
    "yes" if np.allclose(exponents, (1.0, 0.5), atol=0.1) else "no",
  ),
  (
    "How do logits change along the sign of the gradient?",
    "piecewise linearly, with a kink at the image",
    "no prediction",
    f"median R^2 {min(kinked.values()):.2f} to {max(kinked.values()):.2f}",
    "yes" if min(kinked.values()) > 0.9 else "in part",
  ),
  (
    "Where are adversarial examples?",
    "in contiguous regions, given by a direction",
    "no prediction",
    f"{regions:.1f} regions per slice; misclassified {along_gradient:.0%} along the sign of the "
    f"gradient, {along_noise:.0%} along random signs",
    above(along_gradient, along_noise, num_slices),
  ),
  (
    "Do they fool other architectures?",
    "yes: all resemble the same linear classifier",
    "yes: all learn the same non-robust features",
    f"error {transferred:.0%}, on noise {by_noise:.0%}",
    above(transferred, by_noise, len(y)),
  ),
  (
    "Can the true task be learned from the perturbations alone?",
    "no prediction",
    "yes, from D_rand",
    f"accuracy {rand:.0%}, control {control:.0%}",
    above(rand, control, len(y)),
  ),
  (
    "Even if the strokes contradict them?",
    "no prediction",
    "yes, from D_det, but less well",
    f"accuracy {det:.0%}, chance 10%, by the strokes {np.mean(by_strokes):.0%}",
    above_chance([learned["D_det"][family] for family in ARCHITECTURES], len(y)),
  ),
]
show_table("Two explanations", [dict(zip(columns, answer)) for answer in answers])

# %% [markdown]
# The two explanations are compatible. The first says *how* a small change can have a large effect,
# the second *why* in these directions: they are features that the data contain. Only the last two
# questions distinguish them, and the first paper makes no prediction there.
#
# Limitations: the images and networks are small, and there is one seed per new network. The first
# row is arithmetic on random weights, and two lines fit any smooth curve to some extent. The last
# row depends on the data: `python -m robust_opt.papers.ilyas2019` repeats section 5 over several
# seeds with intervals and adds the data sets of robust features. On MNIST it finds that networks
# trained on D_det classify 3.1 % of the true test set correctly, below chance, since there the
# strokes win.
#
# ## Next steps
#
# - Make the data sets of section 5 with the convolutional network. Which architecture learns more
#   from them?
# - Train a robust network as in notebook 1 and use it in sections 2 and 4. How linear are its
#   logits, and which networks do its adversarial examples fool?
