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
# # Robust optimisation in an hour
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/robust-opt/robust_opt/blob/main/colab/1_robust_optimization_in_an_hour.ipynb)
#
# A network that reads digits well can be made to misread them by a change that hardly shows. This
# notebook goes from the formula that says what to do about it to a network that withstands the
# change, one step at a time:
#
# 1. the min-max problem,
# 2. its inner half, which has an answer in closed form,
# 3. a network that is fooled,
# 4. Algorithm 1 of Shaham, Yamada and Negahban ([*Understanding Adversarial
#    Training*](https://arxiv.org/abs/1511.05432), 2015) in ten lines of plain JAX,
# 5. the same by the library, with a check that both give the same parameters,
# 6. the network that comes out, and how far its robustness reaches,
# 7. other shapes of the change.
#
# You need to know what a gradient is, and have seen a network being trained.

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
# Then the size. `small` is 1,797 scans of 8 x 8 pixels that come with scikit-learn, and takes
# about a minute on two CPU cores. `full` is MNIST, 70,000 images of 28 x 28 pixels, and wants an
# accelerator (in Colab: Runtime, Change runtime type).

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

import robust_opt as ro
from robust_opt import models, tables
from robust_opt.data import datasets
from robust_opt.plots import base, runs
from robust_opt.training import sharding

# %matplotlib inline
plt.rcParams["figure.dpi"] = 70

# %% [markdown]
# JAX runs the same program on a TPU, a GPU or a CPU. A *mesh* is how it is told to use several of
# them at once: each takes a part of every batch, and all hold the same parameters.

# %%
mesh = sharding.data_mesh()
on_every_device = sharding.batch_placer(mesh)
kind = jax.devices()[0].platform.upper()
print(f"Found {jax.device_count()} {kind} device(s) of the kind {jax.devices()[0].device_kind!r}.")
print(f"Batches are split over a mesh of {dict(mesh.shape)}. JAX {jax.__version__}.")

# %% [markdown]
# ## 1. The min-max problem
#
# Training usually looks for parameters $\theta$ that make the loss $J$ small at the examples
# $(x_i, y_i)$. Robust optimisation lets an adversary move each example first, by any $\delta_i$
# within a set $U$ of its choice, and asks for parameters that do well even then:
#
# $$\min_\theta \sum_i \max_{\delta_i \in U} J(\theta,\, x_i + \delta_i,\, y_i)$$
#
# $U$ holds the changes that should not matter. Here it is a ball around zero: all changes of at
# most $r$ in some norm. Three norms are in use, and each says something else about what is small:
# $\ell_\infty$ limits the largest change of a pixel, $\ell_2$ the length of the whole change,
# $\ell_1$ the sum over all pixels. Images are in pixels of $[0, 1]$ throughout.

# %% [markdown]
# ## 2. The inner half
#
# For small changes the loss is nearly linear: $J(x + \delta)$ is about $J(x) + \langle g, \delta
# \rangle$, with $g$ its gradient in $x$. The maximum of a linear function over a ball is known:
#
# | ball | $\delta^*$ | $\langle g, \delta^* \rangle$ |
# |---|---|---|
# | $\ell_\infty$ | $r\,\mathrm{sign}(g)$ | $r\,\lVert g \rVert_1$ |
# | $\ell_2$ | $r\, g / \lVert g \rVert_2$ | $r\,\lVert g \rVert_2$ |
# | $\ell_1$ | $r\,\mathrm{sign}(g)$ where $g$ is largest in size | $r\,\lVert g \rVert_\infty$ |
#
# In the library a set is a small object, `ro.LInf(r)`, `ro.L2(r)` or `ro.L1(r)`, and this answer
# is its `steepest_ascent`. Let us see it in two dimensions.

# %%
gradient = jnp.array([[1.0, 0.6]])  # a batch of one
center = jnp.zeros((1, 2))
grid = np.stack(np.meshgrid(*2 * [np.linspace(-1.5, 1.5, 200)]), axis=-1).astype(np.float32)
figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.0), layout="constrained")
for axis, norm in zip(axes, ("linf", "l2", "l1")):
  ball = getattr(ro, norm)(1.0)
  points = jnp.asarray(grid.reshape(-1, 2))
  gauge = np.asarray(ball.gauge(points, jnp.zeros_like(points))).reshape(grid.shape[:2])
  best = np.asarray(ball.steepest_ascent(gradient, center))[0]
  axis.contourf(grid[..., 0], grid[..., 1], gauge, levels=[0, 1], colors=["#cfe3f2"])
  axis.contour(grid[..., 0], grid[..., 1], gauge, levels=[1], colors=["#0072b2"])
  axis.contour(
    grid[..., 0], grid[..., 1], grid @ np.array([1.0, 0.6]), levels=9, colors="0.7", linewidths=0.7
  )
  axis.annotate("", np.asarray(gradient)[0], (0, 0), arrowprops={"arrowstyle": "->", "lw": 1.5})
  axis.plot(*best, "o", color="#d55e00", ms=8)
  axis.set(title=tables.norm_name(norm).tex, aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
plt.show()

# %% [markdown]
# The arrow is the gradient, the thin lines are the levels of the linear function. The orange
# point is the place of the ball that lies furthest along the gradient: a corner of the
# $\ell_\infty$ ball, the point in the gradient's own direction of the $\ell_2$ ball, and a tip of
# the $\ell_1$ ball, which changes one coordinate alone.
#
# The same in 784 dimensions, beside the best of a thousand random points of the ball:

# %%
RADII = {"linf": 0.1, "l2": 1.0, "l1": 3.0}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}  # the norm that the maximum is measured in
g = jax.random.normal(jax.random.key(SEED), (1, 784))
rows = []
for norm, r in RADII.items():
  ball = getattr(ro, norm)(r)
  best = jnp.vdot(g, ball.steepest_ascent(g, jnp.zeros_like(g)))
  drawn = ball.sample(jax.random.key(SEED + 1), jnp.zeros((1000, 784)))
  rows.append(
    {
      "ball": norm,
      "steepest ascent": f"{best:.3f}",
      "r times the dual norm": f"{r * np.linalg.norm(g[0], DUAL[norm]):.3f}",
      "best of 1,000 random points": f"{jnp.max(drawn @ g[0]):.3f}",
    }
  )
columns = list(rows[0])
display(Markdown(tables.markdown(tables.Table("The largest <g, delta>", columns, rows))))

# %% [markdown]
# The first two columns agree: the answer is exact. A random change of the same size achieves
# little, because in many dimensions almost every direction is nearly orthogonal to the gradient.
# That is why networks shrug off noise and still fall for an adversary.

# %% [markdown]
# ## 3. A network that is fooled
#
# The data, a small convolutional network, and an optimiser. The network takes pixels of $[0, 1]$
# and standardises them itself, so that a radius means the same everywhere.

# %%
SETTINGS = {
  "small": {"name": "digits", "radius": 0.15, "epochs": 30, "batch": 32, "tested": 360},
  "full": {"name": "mnist", "radius": 0.15, "epochs": 8, "batch": 128, "tested": 2000},
}[SIZE]
RADIUS = SETTINGS["radius"]
BOX = (0.0, 1.0)  # what a pixel may be

train_set = datasets.load(SETTINGS["name"], "train", data_dir=DATA_DIR or None)
test_set = datasets.load(SETTINGS["name"], "test", data_dir=DATA_DIR or None)
mean, std = train_set.images.mean() / 255, train_set.images.std() / 255
architecture = models.DigitsCNN if SIZE == "small" else models.MnistCNN
net = architecture(mean=float(mean), std=float(std))
apply = models.from_linen(net)

# The data lie on every device; a batch is cut out of them and split over the mesh.
train_data = sharding.replicate(ro.ArrayData(train_set.images, train_set.labels), mesh)
count = SETTINGS["tested"]
test_data = sharding.replicate(ro.ArrayData(test_set.images[:count], test_set.labels[:count]), mesh)
plan = ro.EpochPlan(len(train_set.labels), SETTINGS["batch"])
num_steps = SETTINGS["epochs"] * plan.num_steps
rate = optax.cosine_decay_schedule(0.02, num_steps)
optimizer = optax.sgd(rate, momentum=0.9)


def fresh_state(seed):
  """Parameters before training, the same on every device."""
  params, model_state = models.init(net, jax.random.key(seed), train_set.images.shape[1:])
  return sharding.replicate(ro.init_state(params, model_state, optimizer), mesh)


def train(attack, seed=SEED):
  """The min-max for `num_steps` updates, as one compiled scan."""
  step = ro.make_train_step(apply, optimizer, ro.robust(), attack)
  run = jax.jit(ro.make_scan(step, plan, place_batch=on_every_device), static_argnums=3)
  state, metrics = run(fresh_state(seed), train_data, jax.random.key(seed), num_steps)
  return state.params, metrics


@functools.cache
def judge(make_attack):
  """Compiled once for an attack: the radius is an argument of the program."""
  evaluate = ro.make_evaluate(apply, ro.robust(), make_attack, 120, place_batch=on_every_device)
  return jax.jit(lambda *given: evaluate(*given).robust_correct)


def accuracy(params, make_attack, radius):
  """The share of the test images that the network still classifies correctly under an attack."""
  return float(judge(make_attack)(params, {}, test_data, radius, jax.random.key(9)).mean())


# %% [markdown]
# Standard training is the min-max without an adversary: an attack of no steps.

# %%
no_attack = ro.ascend(ro.pgd(ro.LInf(0.0), ro.LInf(0.0), random_start=False), 0)
standard, _ = train(no_attack)


def one_step(radius):
  """The ascent step of Algorithm 1; over the l_inf ball, the fast gradient sign method."""
  return ro.steepest(ro.LInf(radius, BOX))


def twenty_steps(radius):
  """Projected gradient descent: small steps, each time back into the ball."""
  return ro.ascend(ro.pgd(ro.LInf(radius, BOX), ro.LInf(radius / 4)), 20)


attacks = {"one step": one_step, "twenty steps": twenty_steps}
for words, make_attack in attacks.items():
  clean, attacked = (accuracy(standard, make_attack, radius) for radius in (0.0, RADIUS))
  print(f"Standard network: clean {clean:.1%}, {words} of radius {RADIUS}: {attacked:.1%}")

# %% [markdown]
# The same network, the same images but for a seventh of the range of a pixel, and most of what it
# knew is gone. Twenty small steps find more than one large one, for the loss is not quite linear.
# What do such images look like?


# %%
def show(draw, *args, width=700, **kwargs):
  """Has the library draw a figure, and shows it here."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "figure.png"
    draw(*args, path=path, **kwargs)
    display(Image(path.read_bytes(), width=width))


def attacked_examples(params, radius, count=8):
  """One image of each of the first `count` classes, attacked by twenty steps."""
  places = np.array([np.flatnonzero(test_set.labels == label)[0] for label in range(count)])
  x = jnp.asarray(test_set.images[places] / 255, jnp.float32)
  y = jnp.asarray(test_set.labels[places])

  def forward(x):
    return apply(params, {}, x, train=False, key=None)

  value_fn = ro.robust().inner(forward, x, y)
  delta, _ = twenty_steps(radius)(value_fn, jax.random.key(SEED), x)
  predictions = [np.asarray(forward(images)[0].argmax(-1)) for images in (x, x + delta)]
  return np.asarray(x), np.asarray(delta), np.asarray(y), *predictions


show(runs.example_grid, *attacked_examples(standard, RADIUS), title="the standard network")

# %% [markdown]
# Above the clean digits, below what the adversary made of them, between the two the change
# itself, stretched until it shows. Orange words are mistakes. To us the digits below are still
# the digits above.

# %% [markdown]
# ## 4. Algorithm 1 in ten lines
#
# Now the outer half. By Danskin's theorem the gradient of $\max_\delta J(\theta, x + \delta)$ in
# $\theta$ is the gradient of $J$ itself, taken at the maximiser: nothing has to be differentiated
# through the maximisation. So one update is: climb in $x$, then descend in $\theta$ from there.


# %%
def loss(params, x, y):
  """The mean cross-entropy over a batch."""
  logits = net.apply({"params": params}, x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def algorithm_1(params, opt_state, x, y):
  """One update, in plain JAX."""
  ascent = jax.grad(loss, argnums=1)(params, x, y)  # how does the loss grow in x?
  delta = RADIUS * jnp.sign(ascent)  # the worst change, if the loss were linear
  descent = jax.grad(loss)(params, x + delta, y)  # Danskin: no gradient through delta
  updates, opt_state = optimizer.update(descent, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


# %% [markdown]
# That is the whole method. Every image is replaced by the neighbour that would be its worst if the
# loss were linear, before the network learns from it, and the neighbour is computed anew each
# time, for the network as it is at that moment.

# %% [markdown]
# ## 5. The same by the library
#
# The library has two doors to it. `ro.robustify` turns any loss into its worst case over a set,
# and leaves your training loop as it is:

# %%
robust_loss = ro.robustify(loss, ro.steepest(ro.LInf(RADIUS)))


@jax.jit
def robustified(params, opt_state, x, y):
  """One update of a usual loop, but for the name of the loss."""
  descent = jax.grad(robust_loss)(params, x, y)
  updates, opt_state = optimizer.update(descent, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


# %% [markdown]
# `ro.make_train_step` makes the update itself, from a model, an optimiser, an objective (who
# plays for what) and an attack (how the adversary climbs). It also counts what can go wrong,
# carries batch statistics, and runs under `jit`, `pmap` and `shard_map`. All three should agree:

# %%
train_step = jax.jit(
  ro.make_train_step(apply, optimizer, ro.robust(), ro.steepest(ro.LInf(RADIUS)))
)
start = fresh_state(SEED)
by_hand = by_robustify = (start.params, start.opt_state)
by_step = start
rng = np.random.default_rng(SEED)
# An accelerator's usual products are coarser, and a sign of the gradient may turn on that.
with jax.default_matmul_precision("highest"):
  for number in range(20):
    ids = rng.choice(len(train_set.labels), SETTINGS["batch"], replace=False)
    x = jnp.asarray(train_set.images[ids] / 255, jnp.float32)
    y = jnp.asarray(train_set.labels[ids])
    by_hand = algorithm_1(*by_hand, x, y)
    by_robustify = robustified(*by_robustify, x, y)
    batch = ro.Batch(x, y, jnp.asarray(ids))
    by_step, metrics = train_step(by_step, batch, jax.random.key(number))


def distance(a, b):
  """The largest difference of two parameters."""
  return max(float(jnp.max(jnp.abs(p - q))) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


moved = distance(by_hand[0], start.params)
print(f"In 20 updates the parameters moved by up to {moved:.3f}.")
for words, params in (("ro.robustify", by_robustify[0]), ("ro.make_train_step", by_step.params)):
  apart = distance(by_hand[0], params)
  print(f"Ten lines against {words}: parameters differ by at most {apart:.1e}.")
  assert apart < 1e-3 * moved

# %% [markdown]
# Differences, where there are any, are those of rounding: the three programs are compiled apart
# and may add in another order.

# %% [markdown]
# ## 6. The robust network
#
# The whole training, by the function `train` that made the standard network; only the attack
# differs.

# %%
robust, metrics = train(ro.steepest(ro.LInf(RADIUS)))
first, last = metrics.loss[:10].mean(), metrics.loss[-10:].mean()
print(f"Loss at the perturbed batches: {first:.2f} at first, {last:.3f} at the end.")
nets = {"standard": standard, "robust": robust}
print(f"Gradients that were exactly zero, in {num_steps} updates: {metrics.zero_gradients.sum()}.")

# %% [markdown]
# Now the figure by which the two are compared: accuracy against the radius of the attack.

# %%
radii = np.linspace(0.0, 2 * RADIUS, 9)
figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for (net_name, params), colour in zip(nets.items(), base.COLORS):
  for (attack_name, make_attack), line in zip(attacks.items(), ("--", "-")):
    values = [accuracy(params, make_attack, radius) for radius in radii]
    label = f"{net_name}, {attack_name}"
    axis.plot(radii, 100 * np.array(values), line, color=colour, marker="o", ms=3, label=label)
    print(f"{label}: clean {values[0]:.1%}, at radius {radii[4]:.3g} {values[4]:.1%}")
axis.axvline(RADIUS, color="0.5", lw=1, ls=":", label="radius of the training")
axis.set(xlabel="radius over $\\ell_\\infty$ (pixels in [0, 1])", ylabel="test accuracy (%)")
axis.set(ylim=(-3, 103))
axis.grid(alpha=0.3)
figure.legend(frameon=False, loc="outside right upper")
plt.show()

# %% [markdown]
# At the radius of the training the robust network's curve lies far above the standard one's under
# the same attack, and at radius 0 the two begin together or nearly so. Robustness reaches beyond
# the radius of the training, and then ends. The lower of two curves of one network is the one to
# believe, and even that is an upper bound: a better attack may find more. Notebook 2 is about
# that.

# %%
show(runs.example_grid, *attacked_examples(robust, RADIUS), title="the robust network")

# %% [markdown]
# The same digits and the same attack, now against the robust network: fewer words are orange. The
# change looks much as it did before, dark along the strokes and light around them. It is the
# network that no longer follows it.

# %% [markdown]
# ## 7. Other shapes of the change
#
# One word chooses the ball. The attacks here keep images in $[0, 1]$: over the $\ell_1$ ball, what
# does not fit into one pixel goes to the next. The networks of the $\ell_2$ and the $\ell_1$ ball
# are trained so, too; that of the $\ell_\infty$ ball is the one of section 6, which was not. The
# three radii are a choice, and not equal in strength. Each cell of the table is the accuracy under
# one step, and under twenty.

# %%
BALLS = {"linf": RADIUS, "l2": 5 * RADIUS, "l1": 20 * RADIUS}


def boxed_step(norm):
  """One step over a ball of this norm, its radius an argument."""
  return lambda radius: ro.steepest(getattr(ro, norm)(radius, BOX))


def boxed_steps(norm):
  """Twenty; over l_2 and l_1 in steps of l_2, which is projected gradient ascent."""
  step = ro.LInf if norm == "linf" else ro.L2
  return lambda radius: ro.ascend(ro.pgd(getattr(ro, norm)(radius, BOX), step(radius / 4)), 20)


nets = {"standard": standard, "robust over linf": robust}
for norm in ("l2", "l1"):
  nets[f"robust over {norm}"], _ = train(boxed_step(norm)(BALLS[norm]))

columns = {
  f"{norm}, radius {r:.2g}": (boxed_step(norm), boxed_steps(norm), r) for norm, r in BALLS.items()
}
rows = []
for name, params in nets.items():
  row = {"net": name, "clean": f"{accuracy(params, one_step, 0.0):.1%}"}
  for words, (*ball_attacks, radius) in columns.items():
    row[words] = " / ".join(f"{accuracy(params, attack, radius):.1%}" for attack in ball_attacks)
  rows.append(row)
title = "Accuracy under each ball, by one step / by twenty"
display(Markdown(tables.markdown(tables.Table(title, ["net", "clean", *columns], rows))))

# %% [markdown]
# Under one step of its own ball each robust network beats the standard one. Read the second
# number, too. The networks of the $\ell_\infty$ and the $\ell_2$ ball keep much of their accuracy
# under twenty steps, in both of these balls. That of the $\ell_1$ ball is another matter: nearly
# all of its images stand the one step that it was trained by, hardly any stand twenty, and over
# its own ball the network of the $\ell_2$ ball may do better. It has learnt to mislead that one
# step, which is called catastrophic overfitting, and is one more reason to evaluate by stronger
# attacks than those of the training.

# %% [markdown]
# ## To go on
#
# - Change `ro.steepest(ro.LInf(RADIUS))` in section 6 to `ro.ascend(ro.pgd(ro.LInf(RADIUS),
#   ro.LInf(RADIUS / 4)), 7)`, PGD training (Madry et al. 2018), and compare the curves. What does
#   an update cost then?
# - Set `RADIUS` to 0.3 and see what training does. On MNIST that is the radius of the literature,
#   and one step is no longer enough.
# - Notebook 2 evaluates networks of any framework, and shows how an evaluation can deceive.
# - Notebook 3 asks why such examples exist.
