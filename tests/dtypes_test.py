"""One table: everything returns the type of what it was given, rounded once.

Most rows are only traced: a scan or a while_loop whose carry changes its type fails there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import robust_opt as ro
from robust_opt import losses, objectives
from robust_opt import sets as sets_lib
from robust_opt.attacks import white_box
from robust_opt.attacks.fab import fab, fab_minimal
from robust_opt.attacks.minimal import deepfool, fast_minimum_norm
from robust_opt.attacks.square import square
from robust_opt.attacks.szegedy import szegedy
from robust_opt.attacks.transfer import transfer
from robust_opt.certificates import bounds, smoothing
from robust_opt.errors import InputError
from robust_opt.evaluation import phases, trust, trust_checks
from robust_opt.maximizers.apgd import apgd_steps

BATCH, ENTRIES, CLASSES = 6, 8, 4
BOX = (0.0, 1.0)
# (type, whether x64 is on)
TYPES = [
  *(("bfloat16", False), ("float32", False)),
  *(("float16", True), ("float32", True), ("float64", True)),
]
LOW = ["bfloat16", "float16"]
RADII = {"float": 0.3, "float64": np.float64(0.3), "array": np.full(BATCH, 0.3), "traced": None}
GROUPS = np.arange(ENTRIES) // 2
RNG = np.random.default_rng(0)
X, V, LOGITS = (
  RNG.random((BATCH, ENTRIES)),
  RNG.normal(size=(BATCH, ENTRIES)),
  RNG.normal(size=(BATCH, CLASSES)),
)
W1, W2 = RNG.normal(size=(ENTRIES, 16)), RNG.normal(size=(16, CLASSES))
Y = np.argmax(np.tanh((X - 0.5) @ W1) @ W2, axis=-1)
BASIS = RNG.normal(size=(3, ENTRIES)).astype(np.float32)


def sets(radius, box):
  """Every set; those without a box are the same in both."""
  return {
    "linf": ro.LInf(radius, box),
    "l2": ro.L2(radius, box),
    "l1": ro.L1(radius, box),
    "group_l21": sets_lib.GroupL21(radius, GROUPS),
    "group_linf2": sets_lib.GroupLInf2(radius, GROUPS),
    "ellipsoid": sets_lib.Ellipsoid(radius, np.linspace(0.5, 1.0, ENTRIES)),
    "l0": sets_lib.L0(2, radius, box),
    "tangent": sets_lib.Tangent(radius, BASIS),
    "linf_l2": sets_lib.LInfL2(radius, 2 * radius, box),
    "intersection": sets_lib.Intersection(ro.LInf(radius, box), ro.L2(2 * radius)),
    "product": sets_lib.Product((ro.L1(radius, box), ro.L2(radius)), ((5,), (3,))),
  }


def of_set(u, v, x):
  return {
    "steepest_ascent": u.steepest_ascent(v, x),
    "project": u.project(v, x),
    "sample": u.sample(jax.random.key(0), x),
    "gauge": u.gauge(v, x),
  }


def net(dtype):
  """A net that computes in dtype and answers in it, whatever its images are."""
  w1, w2 = jnp.asarray(W1, dtype), jnp.asarray(W2, dtype)
  return lambda x: jnp.tanh((x.astype(dtype) - 0.5) @ w1) @ w2


def loss_of(dtype):
  return lambda x: losses.cross_entropy(net(dtype)(x), Y)


def types_of(tree):
  return {leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.mark.parametrize(
  ("dtype", "x64", "radius"),
  [
    *(("bfloat16", False, "array"), ("float32", False, "float64")),
    *(("float16", True, "float64"), ("float32", True, "traced"), ("float64", True, "float")),
  ],
)
def test_sets(dtype, x64, radius):
  box = None if radius == "float" else BOX
  with jax.enable_x64(x64):
    v, x = jnp.asarray(V, dtype), jnp.asarray(X, dtype)

    def every(v, x, traced):
      given = traced if radius == "traced" else RADII[radius]
      return {name: of_set(u, v, x) for name, u in sets(given, box).items()}

    found = jax.eval_shape(every, v, x, jnp.float32(0.3))
    assert types_of(found) == {x.dtype}, jax.tree.map(lambda leaf: leaf.dtype, found)


@pytest.mark.slow
def test_sets_round_what_float32_says():
  """The ball is left by the rounding of each entry at most, eps / 2 of itself, the box never."""
  dtype = "bfloat16"
  v, x = jnp.asarray(V, dtype), jnp.asarray(X, dtype)
  wide = x.astype(jnp.float32)
  exact = jax.jit(functools.partial(deltas, None))(v.astype(jnp.float32), wide)
  low = jax.jit(functools.partial(deltas, None))(v, x)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype)), low, exact)

  @jax.jit
  def in_the_box(v, x):
    low = deltas(BOX, v, x)
    gauges = {
      name: jax.tree.map(lambda delta, u=u: u.gauge(delta.astype(jnp.float32), wide), low[name])
      for name, u in sets(0.3, None).items()
      if name in low
    }
    return low, gauges

  low, gauges = in_the_box(v, x)
  for gauge in jax.tree.leaves(gauges):
    assert np.all(gauge <= 1 + float(jnp.finfo(dtype).eps) / 2 + 1e-5)
  for name in ("linf", "l2", "l1", "l0", "linf_l2"):  # which have the box
    for delta in low[name].values():
      moved = np.asarray(x + delta, np.float64)
      assert np.all((moved >= 0) & (moved <= 1)), name


def deltas(box, v, x):
  """What the sets return that computes once: all but the intersection and, rounded, the tangent."""
  every = {n: of_set(u, v, x) for n, u in sets(0.3, box).items()}
  return {
    name: {f: delta for f, delta in functions.items() if f != "gauge"}
    for name, functions in every.items()
    if name not in ("intersection", "tangent")
  }


@pytest.mark.parametrize("dtype", LOW)
def test_long_sums_in_few_bits(dtype):
  """10^5 entries: squares of which the sum overflows float16, and rounds to 256 in bfloat16."""
  v = jnp.ones((1, 100_000), dtype)
  for u, length in ((ro.L2(2.0), 2 / np.sqrt(1e5)), (ro.L1(5.0), 5e-5)):
    inside = u.project(v, 0 * v)
    np.testing.assert_allclose(np.asarray(inside, float), length, rtol=jnp.finfo(dtype).eps)


MAXIMIZERS = {
  "frank_wolfe": lambda make: ro.frank_wolfe(make(0.3, BOX)),
  "pgd": lambda make: ro.pgd(make(0.3), ro.L2(0.1), momentum=0.5),
  "noisy_step": lambda make: ro.noisy_step(make(0.3), ro.L2(0.1)),
  "projected": lambda make: ro.projected(make(0.3), optax.sgd(0.1, momentum=0.9)),
  "power_iteration": lambda make: ro.power_iteration(make(0.3)),
  "lbfgs": lambda make: ro.lbfgs(make(0.3), memory_size=2),
  "apgd": lambda make: apgd_steps(make(0.3), 3),
  "apgd_box": lambda make: apgd_steps(make(np.full(BATCH, 0.3), BOX), 3),
}


@pytest.mark.parametrize("name", MAXIMIZERS)
@pytest.mark.parametrize(("dtype", "x64"), [("bfloat16", False), ("float32", True)])
def test_maximizers(dtype, x64, name):
  with jax.enable_x64(x64):
    x, key = jnp.asarray(X, dtype), jax.random.key(0)
    for make, of_net in ((ro.L2, "float32"), (ro.L1, "bfloat16")):
      attack = ro.restarts(ro.ascend(MAXIMIZERS[name](make), 2, keep_best=True), 2)
      delta, info = jax.eval_shape(functools.partial(attack, loss_of(of_net), key), x)
      assert delta.dtype == x.dtype
      assert types_of(info) == {jnp.dtype(of_net)}


def test_ascents_stay_in_the_ball():
  """Frank-Wolfe rounds at every step, the others project last."""
  dtype = "bfloat16"
  x, key, eps = jnp.asarray(X, dtype), jax.random.key(0), float(jnp.finfo(dtype).eps)
  value_fn = loss_of(dtype)
  for name, roundings in (("pgd", 1), ("apgd_box", 1), ("lbfgs", 1), ("frank_wolfe", 4)):
    delta, info = jax.jit(ro.ascend(MAXIMIZERS[name](ro.L1), 4), static_argnums=0)(value_fn, key, x)
    lengths = np.abs(np.asarray(delta, np.float64)).sum(axis=-1)
    assert np.all(lengths <= 0.3 * (1 + roundings * eps)), name
    assert np.mean(value_fn(x + delta) - info.value[0]) > 0.01, name


LOSSES = {
  "cross_entropy": lambda z: losses.cross_entropy(z, Y),
  "one_vs_all": lambda z: losses.one_vs_all(z, Y),
  "independent": lambda z: losses.independent(-jnp.abs(z), Y),
  "margin": lambda z: losses.margin(z, Y),
  "dlr": lambda z: losses.dlr(z, Y),
  "targeted_margin": lambda z: losses.targeted_margin(z, Y, (Y + 1) % CLASSES),
  "targeted_dlr": lambda z: losses.targeted_dlr(z, Y, (Y + 1) % CLASSES),
  "kl_divergence": lambda z: losses.kl_divergence(z, 0 * z),
  "probabilities": lambda z: losses.probabilities(z, "softmax"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
  for dtype, x64 in TYPES:
    with jax.enable_x64(x64):
      z = jnp.asarray(LOGITS, dtype)
      found = LOSSES[name](z)
      assert found.dtype == z.dtype
      if dtype in LOW:  # computed in float32
        expected = LOSSES[name](z.astype(jnp.float32)).astype(dtype)
        np.testing.assert_array_equal(found, expected)
  # NumPy's float64 is float32 to JAX.
  assert LOSSES[name](LOGITS).dtype == jnp.float32
  with pytest.raises(InputError, match="must be floating point, not int"):
    LOSSES[name](jnp.ones((BATCH, CLASSES), jnp.int32))


@pytest.mark.parametrize(("dtype", "x64"), TYPES)
def test_objectives(dtype, x64):
  with jax.enable_x64(x64):
    x, forward = jnp.asarray(X, dtype), lambda x: (net(dtype)(x), {})
    for name in objectives.__all__:
      make = getattr(objectives, name)
      objective = make(ro.L1(0.3)) if name == "gradient_penalty" else make()
      outer = jax.eval_shape(lambda x, o=objective: o.outer(forward, x, x, jnp.asarray(Y))[0], x)
      assert outer.dtype == x.dtype, name


def attacks(make):
  u, everywhere = make(np.float64(0.3), BOX), make(np.inf, BOX)
  apgd = ro.apgd(u, 3, keep_best=True)
  return {
    "apgd": white_box.ascent(apgd, losses.cross_entropy),
    "apgd_t": white_box.targeted_ascent(apgd, losses.targeted_dlr, 0),
    "fab": fab(u, num_steps=3, target_rank=0),
    "fab_minimal": fab_minimal(make(5.0, BOX), num_steps=3, num_restarts=2),
    "deepfool": deepfool(everywhere, num_steps=3),
    "fast_minimum_norm": fast_minimum_norm(everywhere, num_steps=3),
    "szegedy": szegedy(ro.L2(np.inf, BOX), num_steps=2, num_constants=2),
    "square": square(u, num_queries=3),
    "transfer": transfer([net("float32"), net("bfloat16")], fab(u, num_steps=3)),
  }


def run(attack, dtype):
  keys = jax.random.split(jax.random.key(0), BATCH)
  return lambda x: attack(keys, net(dtype), x, jnp.asarray(Y))


@pytest.mark.parametrize(
  ("make", "of_net", "of_images", "x64"),
  [
    (ro.LInf, "bfloat16", "float32", False),
    (ro.L2, "float32", "float16", False),
    (ro.L1, "bfloat16", "float64", True),
  ],
)
def test_attacks_take_logits_of_any_type(make, of_net, of_images, x64):
  with jax.enable_x64(x64):
    x = jnp.asarray(X, of_images)
    for name, attack in attacks(make).items():
      found = jax.eval_shape(run(attack, of_net), x)
      assert types_of(found) == {x.dtype}, name


@pytest.mark.parametrize("of_images", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_what_fooled_is_what_is_returned(of_images):
  x = jnp.asarray(X, of_images)
  for name in ("apgd", "fab_minimal"):
    delta, fooled = jax.jit(run(attacks(ro.L2)[name], "bfloat16"))(x)
    again = ~losses.correct(net("bfloat16")(x + delta), Y)
    np.testing.assert_array_equal(again, fooled, name)
    assert fooled.any()


def test_integer_logits_are_one_sentence():
  x, keys = jnp.asarray(X, jnp.float32), jax.random.split(jax.random.key(0), BATCH)
  integers = lambda x: jnp.round(net("float32")(x)).astype(jnp.int32)  # noqa: E731
  for attack in attacks(ro.L2).values():
    with pytest.raises(InputError, match="logits must be floating point, not int32"):
      jax.eval_shape(lambda x, attack=attack: attack(keys, integers, x, jnp.asarray(Y)), x)
  for whole in (ro.autoattack, trust.report):
    with pytest.raises(InputError, match="logits must be floating point, not int32"):
      whole(integers, X, Y, u=ro.L2(0.1, (0.0, 1.0)))
  with pytest.raises(InputError, match="logits must be floating point, not int32"):
    smoothing.certify_smoothed(keys, integers, x, 0.1)


def test_certificates_and_types():
  x, keys = jnp.asarray(X, jnp.bfloat16), jax.random.split(jax.random.key(0), BATCH)
  with pytest.raises(InputError, match="needs images and weights in float32, but was given bfl"):
    smoothing.certify_smoothed(keys, net("bfloat16"), x, 0.1)
  wide = x.astype(jnp.float32)
  counts = smoothing.class_counts(keys, net("bfloat16"), wide, 0.1, 10)
  np.testing.assert_array_equal(jnp.sum(counts, axis=-1), 10)
  with jax.enable_x64(True):
    for of_net in (np.float32, np.float64):
      first = jnp.asarray(W1, of_net)
      stack = lambda x, first=first: jax.nn.relu(x @ first) @ jnp.asarray(W2)  # noqa: E731
      found = jax.eval_shape(
        functools.partial(bounds.margins, stack, u=ro.L2(0.1)), wide, jnp.asarray(Y)
      )
      assert found.bounds.dtype == jnp.float64


def test_the_rounding_of_few_bits_is_no_fault_of_the_net():
  logits = np.asarray(jnp.asarray(LOGITS, jnp.bfloat16))
  again = np.nextafter(logits, logits.dtype.type(0))
  assert trust_checks.repeatable(logits, again).passed
  assert not trust_checks.repeatable(logits.astype(np.float32), again.astype(np.float32)).passed
  # Probabilities sum to 1 up to eps / 2, and are no logits.
  many = jax.nn.softmax(jnp.asarray(np.linspace(-1, 1, 6 * 40).reshape(6, 40), jnp.bfloat16))
  assert np.max(np.abs(np.asarray(many, float).sum(axis=1) - 1)) > 1e-3
  assert not trust_checks.are_logits(np.asarray(many)).passed


def test_the_radius_of_an_evaluation_may_have_any_type():
  for radius in (0.1, np.float64(0.1), np.array(0.1), jnp.array(0.1)):
    verdict = ro.autoattack(net("float32"), X, Y, ro.L2(radius, BOX), version=())
    assert verdict.clean_accuracy == 1


def digits_net(train_x, train_y):
  """Random features and their least squares: some 95 % right, with no loop."""
  rng = np.random.default_rng(1)
  w, b = rng.normal(size=(64, 300)) / 4, rng.normal(size=300) / 2
  features = np.maximum((train_x - 0.3) @ w + b, 0)
  normal = features.T @ features + 10 * np.eye(300)
  head = np.linalg.solve(normal, features.T @ (np.eye(10)[train_y] - 0.1))

  def logits(dtype):
    parts = [jnp.asarray(part, dtype) for part in (w, b, 10 * head)]
    return lambda x: jax.nn.relu((x.astype(dtype) - 0.3) @ parts[0] + parts[1]) @ parts[2]

  return logits


REDUCED = (phases.apgd_ce(10), phases.apgd_t(10, 1))


@pytest.mark.slow
def test_the_ensemble_on_another_version_of_a_net():
  digits = pytest.importorskip("sklearn.datasets").load_digits()
  x, y = (digits.data / 16).astype(np.float32), digits.target
  make = digits_net(x[:1000], y[:1000])
  given = {"u": ro.LInf(0.04, BOX), "version": REDUCED, "batch_size": 300}
  of_float32, of_dtype = (
    ro.autoattack(make(t), x[1000:1300], y[1000:1300], **given) for t in ("float32", "bfloat16")
  )
  assert 0.2 < of_float32.robust_accuracy < 0.9
  assert abs(of_float32.robust_accuracy - of_dtype.robust_accuracy) <= 0.02
  assert abs(of_float32.clean_accuracy - of_dtype.clean_accuracy) <= 0.02
