"""Makes assets/fooled.png: a digit, its worst perturbation, and what two networks then say.

  for net in standard linf; do
    python -m robust_opt.main --config=configs/mnist_$net.py --workdir=runs/mnist_$net \\
        --config.training.epochs=2 --config.optimizer.learning_rate=0.02 --config.set.radius=0.1
  done
  python docs/pictures.py runs/mnist_standard runs/mnist_linf docs/assets/fooled.png

Each network is attacked by its own gradient: 40 steps of PGD over l_inf 0.1 in the pixel box. Shown
is the first test digit that this attack makes the standard network misclassify and not the robust
one. Prints the accuracies under the attack.
"""

import sys

import jax
import matplotlib.pyplot as plt
import numpy as np
import robust_opt as ro

RADIUS, EXAMPLES = 0.1, 1000
INK = "#7d8590"  # legible on white and on black


def perturb(run, x, y):
  """The perturbed images, [N, 28, 28, 1]."""
  ball, step = (ro.LInf(radius, box=(0.0, 1.0)) for radius in (RADIUS, RADIUS / 10))
  attack = ro.ascend(ro.pgd(ball, step), 40, keep_best=True)
  delta, _ = attack(
    lambda x: ro.losses.cross_entropy(run.logits_fn(x), y), jax.random.key(0), x
  )
  return np.asarray(x + delta)


def draw(path, x, nets):
  """One row for each net: the digit, the perturbation, the perturbed digit; and its answers."""
  figure, axes = plt.subplots(len(nets), 3, figsize=(5.6, 4.1))
  for row, (title, image, answers) in zip(axes, nets):
    panels = (x, image - x, image)
    limits = ((0, 1), (-RADIUS, RADIUS), (0, 1))
    words = (
      f"says {answers[0]}",
      f"within \u00b1{RADIUS}",
      f"says {answers[1]}",
    )
    for axis, panel, (low, high), word in zip(row, panels, limits, words):
      axis.imshow(panel[..., 0], cmap="gray", vmin=low, vmax=high)
      axis.set_xlabel(word, color=INK, fontsize=12, weight="bold")
      axis.set(xticks=[], yticks=[])
      axis.spines[:].set_color(INK)
    row[0].set_ylabel(title, color=INK, fontsize=12)
  for axis, title in zip(axes[0], ("digit", "+ perturbation", "= perturbed digit")):
    axis.set_title(title, color=INK, fontsize=12)
  figure.tight_layout()
  figure.savefig(path, dpi=140, transparent=True)


def main(standard, robust, path):
  """Draws the picture from two work directories."""
  runs = {"standard net": ro.load_run(standard), "robust net": ro.load_run(robust)}
  x, y = runs["robust net"].examples("test", EXAMPLES)
  images = {name: perturb(run, x, y) for name, run in runs.items()}
  clean = {name: run.predict(x) for name, run in runs.items()}
  attacked = {name: run.predict(images[name]) for name, run in runs.items()}
  for name in runs:
    print(
      f"{name}: {(clean[name] == y).mean():.1%}, attacked {(attacked[name] == y).mean():.1%}"
    )
  right = np.all([clean[name] == y for name in runs], axis=0)
  shown = right & (attacked["standard net"] != y) & (attacked["robust net"] == y)
  first = int(np.flatnonzero(shown)[0])
  rows = [
    (name, images[name][first], (clean[name][first], attacked[name][first]))
    for name in runs
  ]
  draw(path, x[first], rows)


if __name__ == "__main__":
  main(*sys.argv[1:])
