"""Linear models: worst cases attained, minima certified, and the equivalences of the theory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso, LogisticRegression, Ridge

import robust_opt as ro
from robust_opt.errors import InputError
from robust_opt.theory.linear import comparisons, counterparts, decay, solve
from robust_opt.theory.linear.comparisons import algorithm1_gap

ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL_ORDERS = {"linf": 1, "l2": 2, "l1": np.inf}
SETS = {"linf": ro.LInf, "l2": ro.L2, "l1": ro.L1}
EVERY_NORM = pytest.mark.parametrize("norm", list(ORDERS))
GROUPS = np.array([0, 1, 0, 2])
EVERY_NOISE = pytest.mark.parametrize(
  "noise", ["frobenius", "columns", GROUPS], ids=["frobenius", "columns", "groups"]
)
PHI = {
  "logistic": lambda m: np.logaddexp(0, -m),
  "hinge": lambda m: np.maximum(0, 1 - m),
  "exponential": lambda m: np.exp(-m),
}


def linear_problem(seed=0):
  """w [4], b, x [12, 4], labels [12] of -1 and 1, targets [12]; float64, never separable."""
  rng = np.random.default_rng(seed)
  w, x = rng.normal(size=4), rng.normal(size=(12, 4))
  labels = np.where(x @ w + 1.5 * rng.normal(size=12) > 0, 1.0, -1.0)
  x[-1], labels[-2:] = x[-2], (-1.0, 1.0)  # the same point in both classes
  return w, 0.3, x, labels, x @ w + 0.5 * rng.normal(size=12)


def radii_of(noise):
  return {"frobenius": 0.4, "columns": np.array([0.1, 0.4, 0.2, 0.3])}.get(
    noise if isinstance(noise, str) else "", np.array([0.3, 0.1, 0.2])
  )


def double(function, *args):
  """The function's value in float64."""
  with jax.enable_x64(True):
    jaxed = [jnp.asarray(a) if isinstance(a, np.ndarray) and a.dtype == float else a for a in args]
    return np.asarray(function(*jaxed))


@EVERY_NORM
@pytest.mark.parametrize("loss", [*counterparts.MARGIN_LOSSES, "squared"])
def test_the_worst_loss_is_attained(norm, loss):
  w, b, x, labels, targets = linear_problem()
  radius = np.linspace(0.0, 0.5, 12)
  u = SETS[norm](radius)
  if loss == "squared":
    y = np.append(targets[:-1], x[-1] @ w + b)  # one without a residual
    worst = double(counterparts.squared_loss, w, b, x, y, u)
    delta = double(counterparts.squared_perturbation, w, b, x, y, u)
    loss_at = lambda x: (x @ w + b - y) ** 2  # noqa: E731
  else:
    worst = double(counterparts.margin_loss, w, b, x, labels, u, loss)
    delta = double(counterparts.margin_perturbation, w, x, labels, u)
    loss_at = lambda x: PHI[loss](labels * (x @ w + b))  # noqa: E731
  assert np.all(np.linalg.norm(delta, ORDERS[norm], axis=1) <= radius * (1 + 1e-9))
  np.testing.assert_allclose(worst, loss_at(x + delta), rtol=1e-6, atol=1e-12)
  other = np.random.default_rng(1).normal(size=(50, *x.shape))
  other *= (radius / np.linalg.norm(other, ORDERS[norm], axis=-1))[..., None]
  assert np.all(loss_at(x + other) <= worst * (1 + 1e-9) + 1e-12)


@EVERY_NOISE
@pytest.mark.parametrize("residual", ["some", "none"])
@pytest.mark.parametrize("weights", ["all", "some_zero"])
def test_matrix_noise_is_attained(noise, residual, weights):
  w, b, x, _, y = linear_problem()
  w = w * (1.0 if weights == "all" else np.array([1, 0, 1, 0]))
  y, radius = (y if residual == "some" else x @ w + b), radii_of(noise)
  groups = {"frobenius": np.zeros(4, int), "columns": np.arange(4)}.get(str(noise), GROUPS)
  worst = double(counterparts.least_squares, w, b, x, y, noise, radius)
  D = double(counterparts.least_squares_perturbation, w, b, x, y, noise, radius)
  limits = np.broadcast_to(radius, groups.max() + 1)

  def lengths(D):
    return np.array([np.linalg.norm(D[:, groups == g]) for g in range(len(limits))])

  assert np.all(lengths(D) <= limits * (1 + 1e-9))
  np.testing.assert_allclose(worst, np.linalg.norm((x + D) @ w + b - y), rtol=1e-6, atol=1e-7)
  for other in np.random.default_rng(1).normal(size=(50, *x.shape)):
    other = other * (limits / lengths(other))[groups]
    assert np.linalg.norm((x + other) @ w + b - y) <= worst * (1 + 1e-9)


@EVERY_NORM
@pytest.mark.parametrize("separation", [0.0, 3.0, 1e3])
def test_total_hinge_is_attained(norm, separation):
  """Also for data with slack, for which it is less than the norm-regularized hinge."""
  w, b, x, y, _ = linear_problem()
  x = x + separation * y[:, None] * w
  worst = double(counterparts.total_hinge_loss, w, b, x, y, SETS[norm](2.0))
  delta = double(counterparts.total_hinge_perturbation, w, b, x, y, SETS[norm](2.0))
  assert np.linalg.norm(delta, ORDERS[norm], axis=1).sum() <= 2.0 * (1 + 1e-9)
  attained = PHI["hinge"](y * ((x + delta) @ w + b)).sum()
  np.testing.assert_allclose(worst, attained, rtol=1e-6, atol=1e-9)
  hinges = PHI["hinge"](y * (x @ w + b)).sum()
  regularized = hinges + 2.0 * np.linalg.norm(w, DUAL_ORDERS[norm])
  if separation == 0.0:
    np.testing.assert_allclose(worst, regularized, rtol=1e-9)
  if separation == 1e3:
    assert worst == 0.0 < regularized
  shares = np.random.default_rng(1).dirichlet(np.full(12, 0.3), size=50)
  along = double(
    counterparts.margin_perturbation, w, x, y, SETS[norm](2.0)
  )  # the best for every share
  for share in shares[..., None]:
    assert PHI["hinge"](y * ((x + share * along) @ w + b)).sum() <= worst + 1e-9


@pytest.mark.parametrize("label", [-1.0, 1.0])
def test_goodfellows_formula(label):
  """E softplus(r |w|_1 - y (w'x + b)) is the worst of all sign perturbations, for either label.

  The formula as printed has y = 1 inside: with it the other label comes out wrong.
  """
  w, b, x, _, _ = linear_problem()
  y, r = np.full(12, label), 0.25
  signs = np.array(list(itertools.product((-1.0, 1.0), repeat=4)))
  scores = (x[None] + r * signs[:, None]) @ w + b
  worst = np.logaddexp(0, -y * scores).max(0).mean()
  formula = np.logaddexp(0, r * np.abs(w).sum() - y * (x @ w + b)).mean()
  printed = np.logaddexp(0, r * np.abs(w).sum() - (x @ w + b)).mean()
  found = double(counterparts.margin_loss, w, b, x, y, ro.LInf(r)).mean()
  np.testing.assert_allclose([found, formula], worst, rtol=1e-9)
  assert (abs(printed - worst) < 1e-9) == (label == 1.0)


@EVERY_NORM
def test_algorithm_1_descends_the_exact_counterpart(norm):
  """Its gradient in w and b is that of the counterpart away from kinks; at w = 0 it is one too."""
  w, b, x, y, _ = linear_problem()

  with jax.enable_x64(True):
    w, x, y = jnp.asarray(w), jnp.asarray(x), jnp.asarray(y)
    robust = ro.robustify(comparisons.algorithm1_loss, ro.steepest(SETS[norm](0.2)), argnum=2)

    @jax.jit
    def method(w, b):
      return jnp.mean(robust(w, b, x, y))

    @jax.jit
    def exact(w, b):
      return jnp.mean(counterparts.margin_loss(w, b, x, y, SETS[norm](0.2)))

    for point in (w, 1e-3 * w):
      np.testing.assert_allclose(method(point, b), exact(point, b), rtol=1e-9)
      found, expected = (jax.grad(objective, (0, 1))(point, b) for objective in (method, exact))
      np.testing.assert_allclose(found[0], expected[0], rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-12)
    zero = jnp.zeros(4)
    subgradient = jax.grad(method)(zero, b)
    for other in np.random.default_rng(0).normal(size=(20, 4)):
      assert exact(jnp.asarray(other), b) >= exact(zero, b) + subgradient @ other - 1e-9


MINIMA = [
  *((n, loss) for n in ORDERS for loss in counterparts.MARGIN_LOSSES),
  *((noise, "least_squares") for noise in ("frobenius", "columns", GROUPS)),
]


@pytest.mark.parametrize(("kind", "loss"), MINIMA)
def test_minima_are_certified(kind, loss):
  _, _, x, y, targets = linear_problem()
  if loss == "least_squares":
    counterpart, args = counterparts.least_squares, (x, targets, kind, radii_of(kind))
    found = solve.least_squares(*args)
  else:
    counterpart, args = counterparts.margin_loss, (x, y, SETS[kind](0.1), loss)
    found = solve.margin(*args)
  value = double(counterpart, found.w, found.b, *args).mean()
  np.testing.assert_allclose(found.value, value, rtol=1e-9)
  assert -1e-12 <= found.gap <= 1e-7 * found.value


@EVERY_NORM
def test_robust_svm_is_the_regularized_svm(norm):
  """The minimum of the worst case over the shared budget is that of hinges + c |w|_q."""
  _, _, x, y, _ = linear_problem()
  found = solve.svm(x, y, SETS[norm](1.5))
  assert -1e-12 <= found.gap <= 1e-7 * found.value
  worst = double(counterparts.total_hinge_loss, found.w, found.b, x, y, SETS[norm](1.5))
  np.testing.assert_allclose(worst, found.value, rtol=1e-6)
  # No other w is better against the shared budget: it is the regularized objective everywhere.
  for w in found.w + 0.3 * np.random.default_rng(0).normal(size=(20, 4)):
    other = double(counterparts.total_hinge_loss, w, found.b, x, y, SETS[norm](1.5))
    assert other >= found.value - found.gap


def test_columnwise_robust_least_squares_is_the_lasso():
  _, _, x, _, y = linear_problem()
  for radius in (0.05, 0.3, 1.0):
    robust = solve.least_squares(x, y, "columns", radius)
    strength = radius * np.linalg.norm(x @ robust.w + robust.b - y)
    lasso = Lasso(alpha=strength / len(y), tol=1e-14, max_iter=100_000).fit(x, y)
    np.testing.assert_allclose(robust.w, lasso.coef_, atol=1e-6)
    np.testing.assert_allclose(robust.b, lasso.intercept_, atol=1e-6)


def test_frobenius_robust_least_squares_is_ridge():
  """X'e / |e| + r w / |w| = 0, so that the ridge of strength r |e| / |w| has the same w."""
  _, _, x, _, y = linear_problem()
  for radius in (0.05, 0.3, 1.0):
    robust = solve.least_squares(x, y, "frobenius", radius)
    residual = np.linalg.norm(x @ robust.w + robust.b - y)
    ridge = Ridge(alpha=radius * residual / np.linalg.norm(robust.w)).fit(x, y)
    np.testing.assert_allclose(robust.w, ridge.coef_, atol=1e-6)
    np.testing.assert_allclose(robust.b, ridge.intercept_, atol=1e-6)


@EVERY_NORM
def test_algorithm_1_reaches_the_certified_optimum(norm):
  _, _, x, y, _ = linear_problem()
  run = algorithm1_gap(x, y, SETS[norm](0.1), jax.random.key(0), num_epochs=200, batch_size=4)
  assert run.gap.shape == (201,)
  assert np.all(run.gap > -1e-9), "nothing lies below the lower bound"
  assert run.gap[0] > 0.05 * run.optimum.value, "it has something to learn"
  assert run.gap[-1] < 1e-3 * run.optimum.value


def test_separable_classes():
  """The logistic loss has no minimum then, and the hinge has one, 0."""
  x, y = np.array([[-2.0, 0.0], [-3.0, 1.0], [2.0, 0.0], [3.0, 1.0]]), np.array([-1.0, -1, 1, 1])
  assert abs(solve.margin(x, y, ro.L2(0.5), "hinge").value) < 1e-7
  with pytest.raises(InputError, match="separates the classes at radius"):
    solve.margin(x, y, ro.L2(0.5))
  assert solve.margin(x, y, ro.L2(2.5)).gap < 1e-7  # wider than the gap between them


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda w, b, x, y, t: counterparts.margin_loss(w, b, x, y, "l3"), "margin_loss takes ro.LInf"),
    (
      lambda w, b, x, y, t: counterparts.squared_loss(w, b, x, t, ro.L2(1.0, (0.0, 1.0))),
      "squared_loss takes a set without a box",
    ),
    (lambda w, b, x, y, t: counterparts.margin_loss(w, b, x, t, ro.L2(1.0)), "-1 or 1"),
    (lambda w, b, x, y, t: counterparts.margin_loss(w, b, x, y, ro.L2(1.0), "no"), "loss must be"),
    (lambda w, b, x, y, t: counterparts.squared_loss(w[1:], b, x, t, ro.L2(1.0)), "one entry"),
    (lambda w, b, x, y, t: counterparts.least_squares(w, b, x, t, "rows", 1.0), "noise must be"),
    (lambda w, b, x, y, t: solve.least_squares(x, t, np.array([0, 2, 0, 0]), 1.0), "without a gap"),
    (lambda w, b, x, y, t: solve.least_squares(x, t, "columns", np.ones(3)), "each of the 4"),
    (lambda w, b, x, y, t: solve.margin(x, t, ro.L2(1.0)), "both -1 and 1"),
    (lambda w, b, x, y, t: solve.margin(x, y, ro.sets.L0(1, 1.0)), "margin takes ro.LInf.*an L0"),
    (lambda w, b, x, y, t: solve.margin(x, y, ro.L2(0.0)), "must be > 0"),
    (lambda w, b, x, y, t: solve.margin(x, y, ro.L2(np.ones(12))), "takes one radius"),
    (lambda w, b, x, y, t: solve.lasso(x, t[1:], 1.0), "shapes"),
    (
      lambda w, b, x, y, t: algorithm1_gap(x, y, ro.L2(0.1), jax.random.key(0), batch_size=13),
      "from 1 to 12",
    ),
  ],
)
def test_input_errors(call, words):
  with pytest.raises(InputError, match=words):
    call(*linear_problem())


def test_without_cvxpy(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(InputError, match="pip install"):
    solve.lasso(np.eye(2), np.ones(2), 1.0)


def test_the_adversarys_path_is_certified():
  _, _, x, y, _ = linear_problem()
  radii = np.array([0.02, 0.1, 0.3])
  found = decay.logistic_path(x, y, radii, "adversary", num_steps=3000)
  for value, radius in zip(found.value, radii):
    assert float(value) == pytest.approx(solve.margin(x, y, ro.LInf(radius)).value, abs=2e-4)


def test_the_path_of_weight_decay_is_sklearns():
  _, _, x, y, _ = linear_problem()
  strengths = np.array([0.02, 0.1])
  found = decay.logistic_path(x, y, strengths, "decay", num_steps=3000)
  for w, strength in zip(found.w, strengths):
    # liblinear would penalize the intercept too.
    reference = LogisticRegression(
      l1_ratio=1.0, C=1 / (len(y) * strength), solver="saga", tol=1e-9, max_iter=100_000
    ).fit(x, y)
    np.testing.assert_allclose(w, reference.coef_[0], atol=2e-3)


def test_the_pull_is_the_derivative_in_the_norm():
  """As |w|_1 enters softplus(eps |w|_1 - margin): decay never lets go, a won margin does."""
  x = jnp.array([[1.0], [-1.0]])
  y = jnp.array([1.0, -1.0])
  strengths = jnp.array([0.1, 0.5])
  lasting = decay.logistic_path(x, y, strengths, "decay", num_steps=200)
  np.testing.assert_allclose(lasting.pull, strengths)
  letting_go = decay.logistic_path(x, y, strengths, "adversary", num_steps=200)
  for place, strength in enumerate(strengths):
    w, b = letting_go.w[place, 0], letting_go.b[place]
    slope = strength * jnp.mean(jax.nn.sigmoid(strength * jnp.abs(w) - y * (x[:, 0] * w + b)))
    assert float(letting_go.pull[place]) == pytest.approx(float(slope), rel=1e-5)
  assert np.all(letting_go.pull < 0.2 * strengths)  # separable: every margin is won


def test_errors_of_a_path_are_exact():
  path = decay.LogisticPath(jnp.array([[1.0, -1.0]]), jnp.zeros(1), jnp.zeros(1), jnp.zeros(1))
  x, y = jnp.array([[0.3, 0.0], [0.0, 0.3], [-0.1, 0.0]]), jnp.array([1.0, -1.0, 1.0])
  assert float(decay.errors(path, x, y, 0.0)[0]) == pytest.approx(1 / 3)
  assert float(decay.errors(path, x, y, 0.14)[0]) == pytest.approx(1 / 3)
  assert float(decay.errors(path, x, y, 0.16)[0]) == 1.0


@pytest.mark.parametrize(
  ("kind", "strength", "words"),
  [("ridge", 0.1, "one of adversary, decay, but was 'ridge'"), ("adversary", -1.0, "radius")],
)
def test_what_decay_refuses(kind, strength, words):
  x, y = jnp.ones((2, 1)), jnp.array([1.0, -1.0])
  with pytest.raises(InputError, match=words):
    decay.objective(jnp.ones(1), jnp.zeros(()), x, y, strength, kind)
