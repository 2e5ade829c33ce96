"""A verdict file survives the disk, and every untrue claim in one is found."""

import functools
import json
import re

import chex
import jax
import numpy as np
import pytest

import robust_opt as ro
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, phases, verification
from robust_opt.evaluation import verdict as files
from robust_opt.files import write_sealed
from robust_opt.sets.build import build_set, config_sha256

SHAPE, RADIUS = (3, 3, 1), 0.25
CLASSES = 4


@functools.cache
def problem():
  """(net, x, y) of a linear model that is right on most."""
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(9, CLASSES)).astype(np.float32)
  x = rng.random((40, *SHAPE)).astype(np.float32)
  net = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
  y = np.asarray(net(x)).argmax(axis=1).astype(np.int32)
  y[::8] = (y[::8] + 1) % CLASSES
  return net, x, y


@functools.cache
def attacked():
  net, x, y = problem()
  version = (phases.apgd_ce(10), phases.square_phase(20))
  found = ro.autoattack(net, x, y, ro.L2(RADIUS, (0.0, 1.0)), version=version, batch_size=16)
  assert 0.1 < found.robust_accuracy < 0.8
  return found


def claim(**changed):
  _, x, y = problem()
  return files.Claim(
    set=files.ball_config("l2", RADIUS),
    version="standard",
    seed=0,
    batch_size=16,
    source={"workdir": "here"},
    net_sha256="net",
    data_sha256=files.data_sha256(x, y),
    device="1 x cpu",
  )._replace(**changed)


def saved(path, found=None, **changed):
  _, x, y = problem()
  files.save(path, attacked() if found is None else found, claim(**changed), x, y)
  return path


def verified(path, **changed):
  net, x, y = problem()
  given = {"logits_fn": net, "x": x, "y": y, "net_sha256": "net"} | changed
  return verification.verify(files.load(path), **given)


def test_what_is_true_is_found_true(tmp_path):
  path = saved(tmp_path / "verdict.npz")
  assert verified(path) == []
  stored = files.load(path)
  assert stored.claim == claim()
  np.testing.assert_array_equal(stored.verdict.broken_by, attacked().broken_by)
  np.testing.assert_array_equal(stored.verdict.images, attacked().images[stored.broken_ids])
  assert stored.verdict.images.dtype == np.float32
  assert stored.robust_accuracy == attacked().robust_accuracy
  assert np.all(stored.norms <= RADIUS * (1 + 1e-6))


@pytest.mark.parametrize("ball", [ro.LInf, ro.L2, ro.L1])
def test_lengths(ball):
  delta = np.random.default_rng(0).normal(size=(5, *SHAPE))
  expected = [np.linalg.norm(d.ravel(), ball.order) for d in delta]
  np.testing.assert_allclose(ro.sets.lengths(ball, delta), expected, rtol=1e-12)
  assert ro.sets.lengths(ball, delta[:0]).shape == (0,)


def test_a_file_that_states_norm_and_radius_is_read(tmp_path):
  """As verdict files of version 0.1 do."""
  path = saved(tmp_path / "verdict.npz")
  old = claim()._asdict() | {"norm": "l2", "radius": RADIUS}
  del old["set"], old["set_sha256"]
  rewrite(path, claim=np.array(json.dumps(old)))
  assert files.load(path).claim == claim()
  assert verified(path) == []


STRUCTURED = {"name": "GroupL21", "radius": 0.4, "groups": {"name": "patches", "side": 2}}


@pytest.mark.slow
def test_a_verdict_over_any_set_with_a_projection(tmp_path):
  """And over a plane, off which float32 rounds the images."""
  net, x, y = problem()
  basis = np.random.default_rng(3).normal(size=(4, *SHAPE)).astype(np.float32)
  np.save(tmp_path / "basis.npy", basis)
  plane = {"name": "Tangent", "radius": 0.4, "basis": str(tmp_path / "basis.npy")}
  version = (phases.pgd_phase("pgd", ro.losses.margin, 10, relative_step=0.2),)
  for config in (STRUCTURED, plane):
    found = ro.autoattack(net, x, y, build_set(config), version=version, batch_size=16)
    assert 0.1 < found.robust_accuracy < found.clean_accuracy
    path = saved(tmp_path / "verdict.npz", found, set=config, set_sha256=config_sha256(config))
    assert verified(path) == []
    assert files.load(path).norms.max() <= 1 + files.GAUGE_TOLERANCE
    images = found.images.copy()
    images[broken(found)] += 0.5
    further = saved(tmp_path / "further.npz", found._replace(images=images), set=config)
    assert any("has gauge" in problem for problem in verified(further))
  np.save(tmp_path / "basis.npy", 2 * basis[:2])
  assert any("arrays of its set have changed" in problem for problem in verified(path))


def broken(found, place=0):
  return np.flatnonzero(found.broken_by > 0)[place]


def image_changed(change):
  """A verdict of which the first adversarial image is another."""
  found = attacked()
  images = found.images.copy()
  images[broken(found)] = change(images[broken(found)])
  return found._replace(images=images)


def with_entry(name, place, value):
  found = attacked()
  array = getattr(found, name).copy()
  array[place(found)] = value(found)
  return found._replace(**{name: array})


def standing(found):
  return np.flatnonzero(found.broken_by == autoattack.ROBUST)[0]


UNTRUE = {
  "too far": (lambda: image_changed(lambda i: np.clip(i + 0.3, 0, 1)), "has norm .* at most 0.25"),
  "outside the box": (lambda: image_changed(lambda i: i - 2), "leave \\[0, 1\\]"),
  "not finite": (lambda: image_changed(lambda i: i * np.nan), "are not finite"),
  "not misclassified": (
    lambda: image_changed(lambda _: problem()[1][broken(attacked())]),
    "The net is right on 1 of its adversarial images",
  ),
  "broken, but the clean image": (
    lambda: with_entry("broken_by", standing, lambda _: 1),
    "The net is right on 1 of its adversarial images",
  ),
  "another prediction": (
    lambda: with_entry("prediction", standing, lambda f: f.prediction[standing(f)] + 1),
    "classifies 1 clean images differently",
  ),
  "right, but called wrong": (
    lambda: with_entry("broken_by", standing, lambda _: 0),
    "misstates whether the net is right on 1",
  ),
  "wrong, but standing": (
    lambda: with_entry("broken_by", lambda f: np.flatnonzero(f.broken_by == 0)[0], lambda _: -1),
    "misstates whether the net is right on 1",
  ),
  "an attack without a name": (
    lambda: with_entry("broken_by", broken, lambda _: 7),
    "by an attack that it does not list",
  ),
  "a part of the set": (
    lambda: attacked()._replace(
      **{n: getattr(attacked(), n)[:-1] for n in ("prediction", "broken_by")}
    ),
    "covers 39 examples",
  ),
}


@pytest.mark.parametrize("case", list(UNTRUE))
def test_an_untrue_verdict_is_found_out(case, tmp_path):
  make, words = UNTRUE[case]
  found = make()
  problems = verified(saved(tmp_path / "verdict.npz", found))
  assert any(re.search(words, problem) for problem in problems), problems


def test_another_net_or_data_set_is_found_out(tmp_path):
  net, x, y = problem()
  path = saved(tmp_path / "verdict.npz")
  assert any("another net" in p for p in verified(path, net_sha256="other"))
  assert any("other images" in p for p in verified(path, x=np.clip(x + 1e-3, 0, 1)))
  assert any("labels" in p for p in verified(path, y=(y + 1) % CLASSES))
  assert any("right on" in p for p in verified(path, logits_fn=lambda x: -net(x)))


def rewrite(path, **changed):
  """The file with other arrays, and a SHA-256 that fits them."""
  with np.load(path) as file:
    arrays = {name: file[name] for name in file.files if name != "sha256"} | changed
  write_sealed(path, arrays)


@pytest.mark.parametrize(
  ("name", "change", "words"),
  [
    ("robust_accuracy", lambda _: np.array(0.99), "states a robust accuracy of 0.99"),
    ("norms", lambda a: 0.9 * a, "norms that it states"),
    ("images", lambda a: a[1:], "but holds"),
  ],
)
def test_what_a_file_states_is_recounted(name, change, words, tmp_path):
  path = saved(tmp_path / "verdict.npz")
  with np.load(path) as file:
    rewrite(path, **{name: change(file[name])})
  assert any(words in problem for problem in verified(path))


@pytest.mark.parametrize(
  ("name", "change", "words"),
  [
    (
      "prediction",
      lambda a: a[1:],
      r"Its predictions have the shape \(39,\) and the type int32, but must have \(40,\)",
    ),
    ("labels", lambda a: a[None], r"Its labels have the shape \(1, 40\)"),
    ("broken_ids", lambda a: a[:, None], "Its ids of broken examples have the shape"),
    ("norms", lambda a: a[1:], "Its norms have the shape"),
    ("broken_by", lambda a: a[0], "It covers 1 examples of shape"),
    ("images", lambda a: a.reshape(-1), r"It covers 40 examples of shape \(\)"),
    ("names", lambda a: a[:0], "It names no attack"),
    ("images", lambda a: a.astype(str), "Its images have .* but must have .* and floating"),
    ("broken_by", lambda a: a.astype(str), "Its attacks have .* but must have .* and integer"),
  ],
)
def test_arrays_that_do_not_fit_together_are_named(name, change, words, tmp_path):
  path = saved(tmp_path / "verdict.npz")
  with np.load(path) as file:
    rewrite(path, **{name: change(file[name])})
  (problem,) = verified(path)
  assert re.search(words, problem), problem


def test_what_is_no_verdict_is_refused(tmp_path):
  """What is no sealed file: files_test."""
  write_sealed(tmp_path / "another_kind.npz", {"x": np.zeros(3)})
  rewrite(saved(tmp_path / "another_claim.npz"), claim=np.array('{"norm": "l2"}'))
  for name in ("absent", "another_kind", "another_claim"):
    with pytest.raises(InputError, match="not a readable verdict"):
      files.load(tmp_path / f"{name}.npz")


def test_an_evaluation_that_broke_nothing(tmp_path):
  net, x, _ = problem()
  y = np.asarray(net(x)).argmax(axis=1).astype(np.int32)
  nothing = autoattack.Verdict(("clean", "apgd-ce"), y, np.full(40, -1, np.int32), x.copy())
  path = tmp_path / "verdict.npz"
  files.save(path, nothing, claim(data_sha256=files.data_sha256(x, y)), x, y)
  assert verification.verify(files.load(path), net, x, y, "net") == []
  chex.assert_shape(files.load(path).verdict.images, (0, *SHAPE))
