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
# # Robust optimization in an hour
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/robust-opt/robust_opt/blob/main/colab/1_robust_optimization_in_an_hour.ipynb)
#
# A network that classifies digits accurately can be fooled by perturbations that are barely
# visible. This notebook starts from the min-max problem that addresses this and ends with a
# network that resists such perturbations:
#
# 1. the min-max problem,
# 2. the inner maximization, which has a closed form for a linear loss,
# 3. a standard network and its adversarial examples,
# 4. Algorithm 1 of Shaham, Yamada and Negahban ([*Understanding Adversarial
#    Training*](https://arxiv.org/abs/1511.05432), 2015) in ten lines of plain JAX,
# 5. the same algorithm with the library, and a check that the parameters agree,
# 6. the robust network, and the limits of its robustness,
# 7. other uncertainty sets.
#
# You need to know what a gradient is and how a network is trained.

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
# Choose the size of the experiment. `small` uses scikit-learn's 1,797 digits of 8 x 8 pixels and
# takes about a minute on two CPU cores. `full` uses MNIST, 70,000 images of 28 x 28 pixels, and
# needs an accelerator (in Colab: Runtime, Change runtime type).

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

import robust_opt as ro
from robust_opt import models, tables
from robust_opt.data import datasets
from robust_opt.plots import base, runs
from robust_opt.training import sharding

# %matplotlib inline
plt.rcParams["figure.dpi"] = 70

# %% [markdown]
# The same code runs on TPUs, GPUs and CPUs. On several devices, a *mesh* splits every batch over
# all of them and replicates the parameters.

# %%
mesh = sharding.data_mesh()
place_batch = sharding.batch_placer(mesh)
device = jax.devices()[0]
print(f"Found {jax.device_count()} {device.platform.upper()} device(s): {device.device_kind}.")
print(f"Batches are split over a mesh of {dict(mesh.shape)}. JAX {jax.__version__}.")

# %% [markdown]
# ## 1. The min-max problem
#
# Standard training looks for parameters $\theta$ that minimize the loss $J$ at the examples
# $(x_i, y_i)$. In robust optimization, an adversary first perturbs each example by some
# $\delta_i$ of an uncertainty set $U$, and the parameters minimize the loss at the worst
# perturbation:
#
# $$\min_\theta \sum_i \max_{\delta_i \in U} J(\theta,\, x_i + \delta_i,\, y_i)$$
#
# $U$ contains the perturbations that should not change the prediction. Here it is a ball of
# radius $r$ around zero in one of three norms: $\ell_\infty$ bounds the largest change of any
# pixel, $\ell_2$ the Euclidean length, and $\ell_1$ the sum of the absolute changes. Pixels and
# radii are in $[0, 1]$ throughout.

# %% [markdown]
# ## 2. The inner problem
#
# For small perturbations the loss is nearly linear: $J(x + \delta) \approx J(x) + \langle g,
# \delta \rangle$, where $g$ is the gradient with respect to $x$. The maximum of a linear function
# over a ball has a closed form:
#
# | ball | $\delta^*$ | $\langle g, \delta^* \rangle$ |
# |---|---|---|
# | $\ell_\infty$ | $r\,\mathrm{sign}(g)$ | $r\,\lVert g \rVert_1$ |
# | $\ell_2$ | $r\, g / \lVert g \rVert_2$ | $r\,\lVert g \rVert_2$ |
# | $\ell_1$ | $r\,\mathrm{sign}(g)$ in the largest entry, else 0 | $r\,\lVert g \rVert_\infty$ |
#
# In the library a set is a value, `ro.LInf(r)`, `ro.L2(r)` or `ro.L1(r)`, and its method
# `steepest_ascent` computes $\delta^*$. In two dimensions:

# %%
gradient = jnp.array([[1.0, 0.6]])  # a batch of one
grid = np.stack(np.meshgrid(*2 * [np.linspace(-1.5, 1.5, 200)]), axis=-1).astype(np.float32)
points = jnp.asarray(grid.reshape(-1, 2))
figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.0), layout="constrained")
for axis, ball in zip(axes, (ro.LInf(1.0), ro.L2(1.0), ro.L1(1.0))):
  gauge = np.asarray(ball.gauge(points, jnp.zeros_like(points))).reshape(200, 200)
  best = ball.steepest_ascent(gradient, jnp.zeros((1, 2)))[0]
  coordinates = grid[..., 0], grid[..., 1]
  axis.contourf(*coordinates, gauge, levels=[0, 1], colors=["#cfe3f2"])
  axis.contour(*coordinates, gauge, levels=[1], colors=["#0072b2"])
  axis.contour(*coordinates, grid @ np.asarray(gradient[0]), levels=9, colors="0.7", linewidths=0.7)
  axis.annotate("", np.asarray(gradient[0]), (0, 0), arrowprops={"arrowstyle": "->", "lw": 1.5})
  axis.plot(*best, "o", color="#d55e00", ms=8)
  axis.set(
    title=tables.norm_name(ball.name).tex, aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1]
  )
plt.show()

# %% [markdown]
# The arrow is the gradient, the thin lines are level sets of the linear function, and the orange
# point is the maximizer: a corner of the $\ell_\infty$ ball, the point of the $\ell_2$ ball in the
# direction of the gradient, and a vertex of the $\ell_1$ ball, which changes a single coordinate.
#
# The same in 784 dimensions, compared with the best of 1,000 random points of the ball:


# %%
def show_table(title, rows):
  """Displays rows, dictionaries with the same keys, as a Markdown table."""
  display(Markdown(tables.markdown(tables.Table(title, list(rows[0]), rows))))


g = jax.random.normal(jax.random.key(SEED), (1, 784))
rows = []
for ball in (ro.LInf(0.1), ro.L2(1.0), ro.L1(3.0)):
  best = ball.steepest_ascent(g, jnp.zeros_like(g))
  random = ball.sample(jax.random.key(SEED + 1), jnp.zeros((1000, 784)))
  rows.append(
    {
      "ball": tables.ball_name(ball.name, ball.radius),
      "steepest ascent": f"{jnp.vdot(g, best):.3f}",
      "r times the dual norm": f"{ball.radius * ball.dual_norm(g):.3f}",
      "best of 1,000 random points": f"{jnp.max(random @ g[0]):.3f}",
    }
  )
show_table("The largest <g, delta>", rows)

# %% [markdown]
# The first two columns agree: steepest ascent attains the exact maximum. A random perturbation of
# the same size achieves little, because in high dimensions a random direction is almost orthogonal
# to the gradient. This is why networks that tolerate noise are still vulnerable to an adversary.

# %% [markdown]
# ## 3. A standard network
#
# We need data, a small convolutional network, and an optimizer. The network takes pixels in
# $[0, 1]$ and standardizes them itself, so radii are in pixels.

# %%
SETTINGS = {
  "small": {"name": "digits", "radius": 0.15, "epochs": 30, "batch": 32, "tested": 360},
  "full": {"name": "mnist", "radius": 0.15, "epochs": 8, "batch": 128, "tested": 2000},
}[SIZE]
RADIUS = SETTINGS["radius"]
BOX = (0.0, 1.0)  # the range of a pixel

train_set = datasets.load(SETTINGS["name"], "train", data_dir=DATA_DIR or None)
test_set = datasets.load(SETTINGS["name"], "test", data_dir=DATA_DIR or None)
mean, std = train_set.images.mean() / 255, train_set.images.std() / 255
architecture = models.DigitsCNN if SIZE == "small" else models.MnistCNN
net = architecture(mean=float(mean), std=float(std))
apply = models.from_linen(net)

# The data are replicated on every device; batches are taken from them and split over the mesh.
tested = slice(SETTINGS["tested"])
train_data = sharding.replicate(ro.ArrayData(train_set.images, train_set.labels), mesh)
test_data = ro.ArrayData(test_set.images[tested], test_set.labels[tested])
test_data = sharding.replicate(test_data, mesh)
plan = ro.EpochPlan(len(train_set.labels), SETTINGS["batch"])
num_steps = SETTINGS["epochs"] * plan.num_steps
optimizer = optax.sgd(optax.cosine_decay_schedule(0.02, num_steps), momentum=0.9)


def initial_state():
  """Random parameters, replicated on every device."""
  params, model_state = models.init(net, jax.random.key(SEED), train_set.images.shape[1:])
  return sharding.replicate(ro.init_state(params, model_state, optimizer), mesh)


def train(attack):
  """Solves the min-max problem by `num_steps` updates in one compiled scan."""
  step = ro.make_train_step(apply, optimizer, ro.robust(), attack)
  run = jax.jit(ro.make_scan(step, plan, place_batch=place_batch), static_argnums=3)
  state, metrics = run(initial_state(), train_data, jax.random.key(SEED), num_steps)
  return state.params, metrics


@functools.cache
def compiled_evaluation(make_attack):
  """(params, model_state, data, set, key) -> [N]; one program for all radii of a set."""
  evaluate = ro.make_evaluate(apply, ro.robust(), make_attack, 120, place_batch=place_batch)
  return jax.jit(lambda *args: evaluate(*args).robust_correct)


def accuracy(params, make_attack, u):
  """Accuracy on the test images under an attack over the set u."""
  correct = compiled_evaluation(make_attack)(params, {}, test_data, u, jax.random.key(9))
  return float(correct.mean())


# %% [markdown]
# Standard training is the min-max problem without an adversary: an attack of zero steps. We
# evaluate the network by two attacks: a single step of steepest ascent, which over the
# $\ell_\infty$ ball is the fast gradient sign method (FGSM), and 20 steps of projected gradient
# descent (PGD).

# %%
standard, _ = train(ro.ascend(ro.frank_wolfe(ro.LInf(0.0)), num_steps=0))


def twenty_steps(u):
  """PGD with a random start: 20 small steps, each followed by a projection onto u."""
  step = ro.LInf if isinstance(u, ro.LInf) else ro.L2
  return ro.ascend(ro.pgd(u, step(u.radius / 4)), 20)


attacks = {"one step": ro.steepest, "twenty steps": twenty_steps}
for name, attack in attacks.items():
  clean, robust = (accuracy(standard, attack, ro.LInf(r, BOX)) for r in (0.0, RADIUS))
  print(
    f"Standard network: clean accuracy {clean:.1%}, under {name} of radius {RADIUS}: {robust:.1%}"
  )

# %% [markdown]
# Changing each pixel by at most 15 % of its range destroys most of the accuracy. Twenty small
# steps find worse perturbations than a single large one, since the loss is not exactly linear.
# This is what the adversarial examples look like:


# %%
def show(draw, *args, width=700, **kwargs):
  """Displays a figure of `robust_opt.plots`, which draws into a file."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "figure.png")
    draw(*args, path=path, **kwargs)
    display(Image(path.read_bytes(), width=width))


def attacked_examples(params, radius, count=8):
  """The first test image of each of `count` classes, attacked by PGD."""
  ids = np.array([np.flatnonzero(test_set.labels == label)[0] for label in range(count)])
  x = jnp.asarray(test_set.images[ids] / 255, jnp.float32)
  y = jnp.asarray(test_set.labels[ids])

  def forward(x):
    return apply(params, {}, x, train=False, key=None)

  value_fn = ro.robust().inner(forward, x, y)
  delta, _ = twenty_steps(ro.LInf(radius, BOX))(value_fn, jax.random.key(SEED), x)
  predictions = [np.asarray(forward(images)[0].argmax(-1)) for images in (x, x + delta)]
  return np.asarray(x), np.asarray(delta), np.asarray(y), *predictions


show(runs.example_grid, *attacked_examples(standard, RADIUS), title="the standard network")

# %% [markdown]
# The rows are the clean digits, the perturbations (scaled to be visible), and the perturbed
# digits. Orange captions mark misclassified images. To a person the perturbed digits still look
# like the clean ones.

# %% [markdown]
# ## 4. Algorithm 1 in ten lines
#
# Now for the outer problem. By Danskin's theorem, the gradient of $\max_\delta J(\theta, x +
# \delta)$ in $\theta$ is the gradient of $J$ at the maximizer: there is no need to differentiate
# through the maximization. One update is therefore a step of ascent in $x$, followed by a step of
# descent in $\theta$ at the perturbed batch.


# %%
def loss(params, x, y):
  """The mean cross-entropy over a batch."""
  logits = net.apply({"params": params}, x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def algorithm_1(params, opt_state, x, y):
  """One update in plain JAX."""
  ascent = jax.grad(loss, argnums=1)(params, x, y)
  delta = RADIUS * jnp.sign(ascent)  # the maximizer of the linearized loss
  descent = jax.grad(loss)(params, x + delta, y)  # Danskin: no gradient through delta
  updates, opt_state = optimizer.update(descent, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


# %% [markdown]
# That is the whole method. Each image is replaced by the worst one in its neighborhood, according
# to the linearized loss of the current network, before the network is trained on it.

# %% [markdown]
# ## 5. Algorithm 1 with the library
#
# The library offers two levels of interface. `ro.robustify` turns any loss into its worst case
# over a set and leaves your training loop unchanged:

# %%
robust_loss = ro.robustify(loss, ro.steepest(ro.LInf(RADIUS)))


@jax.jit
def robustified(params, opt_state, x, y):
  """One update of a standard training loop, with the robust loss."""
  descent = jax.grad(robust_loss)(params, x, y)
  updates, opt_state = optimizer.update(descent, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


# %% [markdown]
# `ro.make_train_step` builds the whole update from a model, an optimizer, an objective (the losses
# of the inner and outer problem) and an attack (the solver of the inner problem). It also handles
# batch statistics, reports metrics such as zero gradients, and works under `jit`, `pmap` and
# `shard_map`. All three should give the same parameters:

# %%
train_step = jax.jit(
  ro.make_train_step(apply, optimizer, ro.robust(), ro.steepest(ro.LInf(RADIUS)))
)
start = initial_state()
by_hand = by_robustify = (start.params, start.opt_state)
by_step = start
rng = np.random.default_rng(SEED)
# At an accelerator's default precision, rounding could flip signs of the gradient.
with jax.default_matmul_precision("highest"):
  for number in range(20):
    ids = rng.choice(len(train_set.labels), SETTINGS["batch"], replace=False)
    x = jnp.asarray(train_set.images[ids] / 255, jnp.float32)
    y = jnp.asarray(train_set.labels[ids])
    by_hand = algorithm_1(*by_hand, x, y)
    by_robustify = robustified(*by_robustify, x, y)
    batch = ro.Batch(x, y, jnp.asarray(ids))
    by_step, _ = train_step(by_step, batch, jax.random.key(number))


def difference(a, b):
  """The largest absolute difference between two sets of parameters."""
  return max(float(jnp.abs(p - q).max()) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


change = difference(by_hand[0], start.params)
print(f"20 updates changed the parameters by up to {change:.3f}.")
for name, params in (("ro.robustify", by_robustify[0]), ("ro.make_train_step", by_step.params)):
  print(f"Plain JAX and {name}: parameters differ by at most {difference(by_hand[0], params):.1e}.")
  assert difference(by_hand[0], params) < 1e-3 * change

# %% [markdown]
# Any differences are due to rounding: the three programs are compiled separately and may add in a
# different order.

# %% [markdown]
# ## 6. The robust network
#
# We train with the same function as for the standard network; only the attack differs.

# %%
robust, metrics = train(ro.steepest(ro.LInf(RADIUS)))
first, last = metrics.loss[:10].mean(), metrics.loss[-10:].mean()
print(f"Loss on the perturbed batches: {first:.2f} at the start, {last:.3f} at the end.")
print(f"Zero input gradients in {num_steps} updates: {metrics.zero_gradients.sum()}.")

# %% [markdown]
# Accuracy against the radius of the attack, for both networks:

# %%
radii = np.linspace(0.0, 2 * RADIUS, 9)
figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for (net_name, params), color in zip({"standard": standard, "robust": robust}.items(), base.COLORS):
  for (attack_name, attack), dashes in zip(attacks.items(), ("--", "-")):
    values = [accuracy(params, attack, ro.LInf(float(r), BOX)) for r in radii]
    label = f"{net_name}, {attack_name}"
    axis.plot(radii, 100 * np.array(values), dashes, color=color, marker="o", ms=3, label=label)
    print(f"{label}: clean {values[0]:.1%}, at radius {radii[4]:.3g} {values[4]:.1%}")
axis.axvline(RADIUS, color="0.5", lw=1, ls=":", label="training radius")
axis.set(xlabel="$\\ell_\\infty$ radius (pixels in [0, 1])", ylabel="test accuracy (%)")
axis.set(ylim=(-3, 103))
axis.grid(alpha=0.3)
figure.legend(frameon=False, loc="outside right upper")
plt.show()

# %% [markdown]
# At the training radius the robust network is far more accurate than the standard one under the
# same attack, while their clean accuracies are almost equal. Its robustness extends beyond the
# training radius, then breaks down. For each network, trust the lower curve, and even that is only
# an upper bound: a better attack may find more adversarial examples. Notebook 2 covers this.

# %%
show(runs.example_grid, *attacked_examples(robust, RADIUS), title="the robust network")

# %% [markdown]
# The same digits under the same attack, now against the robust network: fewer are misclassified.
# The perturbations look much as before, dark on the strokes and light around them; the network is
# no longer fooled by most of them.

# %% [markdown]
# ## 7. Other uncertainty sets
#
# Training over another ball only means passing another set. The attacks below also keep images in
# $[0, 1]$; over the $\ell_1$ ball, the part of the step that does not fit into one pixel goes to
# the next. The $\ell_2$ and $\ell_1$ networks are trained with this constraint too; the
# $\ell_\infty$ network is the one of section 6, trained without it. The three radii are arbitrary
# and not of equal strength. Each cell shows the accuracy under one step and under twenty.

# %%
sets = {
  "linf": ro.LInf(RADIUS, BOX),
  "l2": ro.L2(5 * RADIUS, BOX),
  "l1": ro.L1(20 * RADIUS, BOX),
}
nets = {"standard": standard, "robust linf": robust}
for norm in ("l2", "l1"):
  nets[f"robust {norm}"], _ = train(ro.steepest(sets[norm]))

rows = []
for name, params in nets.items():
  row = {"network": name, "clean": f"{accuracy(params, ro.steepest, ro.LInf(0.0, BOX)):.1%}"}
  for norm, u in sets.items():
    both = (accuracy(params, attack, u) for attack in attacks.values())
    row[f"{norm}, radius {u.radius:.2g}"] = " / ".join(f"{share:.1%}" for share in both)
  rows.append(row)
show_table("Accuracy over each ball, under one step / twenty steps", rows)

# %% [markdown]
# Under one step over its own ball, each robust network is more accurate than the standard one.
# Now compare the second numbers. The $\ell_\infty$ and $\ell_2$ networks keep much of their
# accuracy under twenty steps, over both of these balls. The $\ell_1$ network does not: it
# classifies most images correctly under the single step that it was trained on and hardly
# any under twenty, and even over its own ball the $\ell_2$ network may be more robust. It has
# learned to defeat that one attack. This is called catastrophic overfitting, and it is one reason
# to evaluate with stronger attacks than those used in training.

# %% [markdown]
# ## Next steps
#
# - In section 6, replace `ro.steepest(ro.LInf(RADIUS))` by `ro.ascend(ro.pgd(ro.LInf(RADIUS),
#   ro.LInf(RADIUS / 4)), 7)`, PGD training (Madry et al. 2018), and compare the curves. How much
#   slower is an update?
# - Set the radius in `SETTINGS` to 0.3 and train again. On MNIST this is the standard radius of the
#   literature, and single-step training no longer suffices.
# - Notebook 2 evaluates networks of any framework and shows how an evaluation can be misleading.
# - Notebook 3 asks why adversarial examples exist.
