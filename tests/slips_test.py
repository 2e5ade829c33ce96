"""Likely slips in calls of the library: one sentence that says what to write, never a TypeError."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import robust_opt as ro

RNG = np.random.default_rng(0)
X, Y = RNG.random((4, 6)).astype(np.float32), np.arange(4) % 3
W = RNG.normal(size=(6, 3)).astype(np.float32)
U, KEY, SGD = ro.LInf(0.1), jax.random.key(0), optax.sgd(0.1)
STEEPEST, PGD = ro.steepest(U), ro.pgd(U, ro.LInf(0.01))


def loss(params, x, y):
  return ro.losses.cross_entropy(x @ params, y)


def apply(params, model_state, x, *, train, key):
  return x @ params, model_state


def value_fn(x):
  return loss(W, x, Y)


def robust(loss=loss, attack=STEEPEST, x=X, **kwargs):
  return ro.robustify(loss, attack, **kwargs)(W, x, Y)


def update(apply=apply, optimizer=SGD, objective=None, attack=STEEPEST, batch=None):
  step = ro.make_train_step(apply, optimizer, objective or ro.robust(), attack)
  state = ro.init_state(jnp.asarray(W), {}, SGD)
  return step(state, batch or ro.Batch(X, Y, np.arange(4)), KEY)


def with_aux(params, x, y):
  return loss(params, x, y), {}


IMAGES = {"image": X, "mask": np.ones((4, 6), np.int32)}
SLIPS = {
  # robustify: its loss
  "a set for the loss": (lambda: ro.robustify(U, loss), r"^loss must be a function, .* an LInf"),
  "swapped": (lambda: ro.robustify(STEEPEST, loss), r"an attack: write ro.robustify.loss, att"),
  "no loss": (lambda: ro.robustify(None, STEEPEST), "^loss must .* but was None"),
  "a value": (lambda: ro.robustify(jnp.ones(3), STEEPEST), r"was an array of float32 .* \(3,\)"),
  "a pair": (lambda: robust(with_aux), r"one value for each of the 4 .* a tuple; .* has_aux=True"),
  "no pair": (lambda: robust(has_aux=True), r"must return \(loss, auxiliary data\)"),
  "logits": (lambda: robust(lambda w, x, y: x @ w), r"one value for each .* shape \(4, 3\)"),
  "one per class": (lambda: robust(lambda w, x, y: (x @ w).sum(0)), r"of the shape \(3,\)"),
  "errors": (lambda: robust(lambda w, x, y: (x @ w).argmax(-1) != y), "returned bool of the sh"),
  "nothing": (lambda: robust(lambda w, x, y: None), "but returned None"),
  "a dict": (lambda: robust(lambda w, x, y: {"loss": 0.0}), "but returned a dict"),
  # robustify: its attack
  "a set for the attack": (
    lambda: robust(attack=U),
    r"was an LInf: pass ro.steepest.*ro.LInf.0.1",
  ),
  "a class": (lambda: robust(attack=ro.LInf), r"the class LInf: pass ro.steepest\(ro.LInf\(radius"),
  "a maximizer": (lambda: robust(attack=PGD), r"pass ro\.ascend\(maximizer, num_steps"),
  "a radius": (lambda: robust(attack=0.1), "the number 0.1: pass the result of ro.steepest"),
  "a norm": (lambda: robust(attack="linf"), "the string 'linf': pass the result of"),
  "not called": (lambda: robust(attack=ro.steepest), "the function steepest: pass the result"),
  "pgd not called": (lambda: robust(attack=ro.pgd), r"^pgd takes a set, as in ro.LInf\(radius"),
  "a schedule": (
    lambda: robust(attack=ro.ScheduledAttack(lambda step: STEEPEST)),
    "a Sched.*: only ro.make_train_step takes one",
  ),
  # robustify: its examples
  "uint8": (
    lambda: robust(x=X.astype(np.uint8)),
    r"^The .* are uint8 .*astype\(jnp.float32\) / 255",
  ),
  "images in a dict": (lambda: robust(x=IMAGES), "are a dict; name the .* leaf='image'\\.$"),
  "two arrays": (lambda: robust(x=(X, X)), "are a tuple; .*leaf='0', one of 0, 1"),
  "a list": (lambda: robust(x=X.tolist()), "are a list; pass the array .* of its own"),
  "another leaf": (lambda: robust(x=IMAGES, leaf="x"), "no leaf='x'; it can be image, mask"),
  "integers": (lambda: robust(x=IMAGES, leaf="mask"), "^leaf='mask' .* floating .* int32"),
  "a leaf of one array": (lambda: robust(leaf="x"), "it can be None, since they are one array"),
  "argnum": (lambda: robust(argnum="x"), "^argnum must be the position .* string 'x'"),
  "no key": (lambda: robust(attack=ro.ascend(PGD, 1)), r"needs a key, as in jax.random.key\(0"),
  "a seed": (
    lambda: ro.robustify(loss, ro.ascend(PGD, 1))(W, X, Y, attack_key=0),
    "needs a key, .* but it was 0",
  ),
  # attacks
  "ascend a set": (lambda: ro.ascend(U, 3), r"^maximizer must .*ro\.pgd\(.* was an LInf"),
  "ascend a loss": (lambda: ro.ascend(loss, STEEPEST), "^maximizer must .* the function loss"),
  "ascend swapped": (lambda: ro.ascend(3, PGD), "^maximizer must .* the number 3"),
  "half a step": (lambda: ro.ascend(PGD, 1.5), "^num_steps must be an integer >= 0, but was 1.5"),
  "a set of steps": (lambda: ro.apgd(U, U), "^num_steps must be an integer >= 0, but was an LInf"),
  "restarts of a set": (lambda: ro.restarts(U, 3), "^attack must .* was an LInf"),
  "restarts swapped": (lambda: ro.restarts(3, STEEPEST), "^attack must .* the number 3"),
  "half a restart": (lambda: ro.restarts(STEEPEST, 1.5), "^num_restarts must be an integer"),
  "apgd over a norm": (lambda: ro.apgd("linf", 3), "^apgd takes ro.LInf.* not the string 'linf'"),
  "images as function": (lambda: STEEPEST(X, None, value_fn), "^value_fn must be a function"),
  "the loss itself": (lambda: STEEPEST(loss, None, X), "the function loss takes other arguments"),
  "integer images": (lambda: STEEPEST(value_fn, None, X.astype(int)), "^The examples .* are int64"),
  # sets
  **{
    f"{maximizer.__name__} of {u!r}": (lambda maximizer=maximizer, u=u: maximizer(u), words)
    for maximizer in (ro.steepest, ro.frank_wolfe, ro.lbfgs, ro.noise, ro.power_iteration)
    for u, words in (
      (0.2, f"^{maximizer.__name__} takes a set, as in ro.LInf.0.2., but was given the number 0.2"),
      ("l2", f"^{maximizer.__name__} takes a set, as in ro.L2.radius., .* the string 'l2'"),
      (ro.L1, f"^{maximizer.__name__} takes a set, as in ro.L1.radius., .* the class L1"),
    )
  },
  "pgd of a radius": (lambda: ro.pgd(0.1, 0.01), r"^pgd takes a set, as in ro.LInf\(0.1\)"),
  "a step size": (lambda: ro.pgd(U, 0.01), r"^The step of pgd takes a set, as in ro.LInf\(0.01\)"),
  "a step's class": (lambda: ro.pgd(U, ro.LInf), "^The step of pgd takes a set, .* class LInf"),
  "scheduled sizes": (
    lambda: ro.ascend(ro.pgd(U, lambda t: 0.01, random_start=False), 1)(value_fn, None, X),
    r"^The step of pgd takes a set, as in ro.LInf\(0.01\)",
  ),
  "steps of pgd": (
    lambda: ro.pgd(U, U, 40),
    r"^random_start .* ro.ascend\(maximizer, num_steps=40",
  ),
  "noisy_step": (lambda: ro.noisy_step(U, 0.1), r"^The step of noisy_step takes a set"),
  "projected by a rate": (lambda: ro.projected(U, 0.1), r"^optimizer must be one of optax, as in"),
  "projected swapped": (lambda: ro.projected(SGD, U), "^projected takes a set"),
  "a radius that is a norm": (lambda: ro.LInf("linf"), "^radius must be a number, .* 'linf'"),
  "a radius that is a box": (lambda: ro.LInf((0.0, 1.0)), "^radius must be .* was a tuple"),
  "a box that is a number": (lambda: ro.LInf(0.1, 1.0), r"^box must be \(low, high\)"),
  "a mask around a radius": (lambda: ro.sets.Masked(0.1, X > 0), "^Masked takes a set"),
  "a ramp of a radius": (lambda: ro.ramp(0.1, 0, 10), r"takes a set, as in ro.LInf\(0.1\)"),
  # objectives and training
  "an objective of a set": (lambda: ro.robust(U), r"^loss must be a function, \(outputs"),
  "a loss by name": (lambda: ro.mixture(0.5, "cross_entropy"), "the string 'cross_entropy'"),
  "a weight": (lambda: ro.trades(U), "^beta is a weight .* was an LInf"),
  "a loss of params": (lambda: ro.robust(loss), "the function loss takes other arguments"),
  "a penalty of a radius": (lambda: ro.gradient_penalty(0.1), "^gradient_penalty takes a set"),
  "train a set": (lambda: update(attack=U), "^attack must .* an LInf"),
  "train a class": (lambda: update(attack=ro.L2), r"pass ro.steepest\(ro.L2\(radius"),
  "an attack as schedule": (
    lambda: update(attack=ro.ScheduledAttack(STEEPEST)),
    r"ro.ScheduledAttack\(lambda step: attack\)",
  ),
  "a schedule of sets": (lambda: update(attack=ro.ScheduledAttack(lambda t: U)), "was an LInf"),
  "an objective not called": (lambda: update(objective=ro.robust), r"as from ro.robust\(\)"),
  "a loss as objective": (
    lambda: update(objective=loss),
    r"ro.robust\(loss\), but was the f.* loss",
  ),
  "an optimizer not called": (
    lambda: update(optimizer=optax.sgd),
    "^optimizer .* the function sgd",
  ),
  "a learning rate": (lambda: update(optimizer=0.1), r"as in optax.sgd\(0.1\), .* number 0.1"),
  "a net of x": (
    lambda: update(lambda w, x: x @ w),
    r"^apply must be a function, \(params, model_",
  ),
  "a net of logits": (
    lambda: update(lambda w, s, x, *, train, key: x @ w),
    r"^apply must return \(logits, model_state\), .* an array of float32 of the shape \(4, 3\)",
  ),
  "a batch of two": (lambda: update(batch=(X, Y)), r"must be ro.Batch\(x, y, ids\), but was a tup"),
  "a plan of steps": (lambda: ro.make_scan(update, 100), r"as in ro.EpochPlan\(num_examples"),
  # evaluation
  "an attack for one of a radius": (
    lambda: ro.make_evaluate(apply, ro.robust(), STEEPEST, 4),
    "^make_attack must be a function, such as lambda r: .* takes other arguments",
  ),
  "a set for the attacks": (
    lambda: ro.make_evaluate(apply, ro.robust(), U, 4),
    "^make_attack must be .* but was an LInf",
  ),
  "no net": (
    lambda: ro.autoattack(W, X, Y, ro.LInf(0.1, (0.0, 1.0))),
    "^logits_fn must be a function, .* but was an array of float32",
  ),
  "labels before images": (
    lambda: ro.autoattack(lambda x: x @ W, Y, X, ro.LInf(0.1, (0.0, 1.0))),
    r"Images come before labels, .* \(4,\) and \(4, 6\): swap them",
  ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_one_sentence_that_says_what_to_write(slip):
  make, words = SLIPS[slip]
  with pytest.raises(ro.InputError, match=words):
    make()


def test_what_is_right_passes():
  pgd = ro.ascend(ro.pgd(U, lambda t: ro.L2(0.1), random_start=False), np.int64(1))
  for right in (
    lambda: robust(x=jnp.asarray(X)),
    lambda: robust(with_aux, has_aux=True),
    lambda: robust(attack=pgd),
    lambda: update(attack=ro.ScheduledAttack(lambda step: STEEPEST)),
  ):
    jax.eval_shape(right)
