"""Results are reused for the same ingredients only: each that changes is refused, and named."""

import dataclasses
import functools
import importlib
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from robust_opt import construct
from robust_opt.data import datasets
from robust_opt.data.constructed import Settings
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, identity
from robust_opt.experiments import build, config, target, workdir
from robust_opt.experiments import run as experiment
from robust_opt.papers import family, ilyas2019
from robust_opt.papers.goodfellow2015 import study as goodfellow2015
from robust_opt.papers.shaham2015 import study as shaham2015
from robust_opt.studies import evaluation as evaluation_study
from robust_opt.studies import options as study_options
from robust_opt.studies import study as study_lib

pytestmark = pytest.mark.usefixtures("no_pictures")

RNG = np.random.default_rng(0)
X = RNG.random((12, 6)).astype(np.float32)
W = RNG.normal(size=(6, 3)).astype(np.float32)


# A network


def closure(weights, scale=1.0):
  return lambda x: scale * x @ weights


def partial(weights, scale=1.0):
  return jax.tree_util.Partial(closure_of_arguments(scale), weights)


def closure_of_arguments(scale):
  return lambda weights, x: scale * x @ weights


def inner_jit(weights, scale=1.0):
  return jax.jit(lambda x: scale * x @ weights)


def loop(weights, scale=1.0):
  return lambda x: jax.lax.map(lambda row: scale * row @ weights, x)


def module(weights, scale=1.0):
  net = nnx.Linear(6, 3, rngs=nnx.Rngs(0))
  net.kernel[...] = scale * jnp.asarray(weights)
  return net


def callback(weights, scale=1.0):
  """As a bridge to another framework calls it: neither code nor arrays are in the jaxpr."""

  def logits_fn(x):
    shape = jax.ShapeDtypeStruct((*x.shape[:1], 3), jnp.float32)
    answer = lambda x: np.asarray(scale * np.asarray(x) @ weights, np.float32)  # noqa: E731
    return jax.pure_callback(answer, shape, x)

  return logits_fn


NETS = [closure, partial, inner_jit, loop, module, callback]


def agree(a, b):
  return all(identity.same(key, a[key], b[key]) for key in a)


@pytest.mark.parametrize("make", NETS)
def test_a_network_made_again_is_the_same_and_any_change_makes_another(make):
  net = identity.of_net(make(W), X)
  assert json.loads(json.dumps(net)) == net
  assert agree(net, identity.of_net(make(W.copy()), X))
  other = W.copy()
  other[0, 0] += 0.5
  assert not agree(net, identity.of_net(make(other), X))
  assert not agree(net, identity.of_net(make(W, scale=1.5), X))


def rounded(slope):
  """Pixels rounded to 8 bits, whose backward pass pretends a slope."""

  @jax.custom_vjp
  def round_pixels(x):
    return jnp.round(255 * x) / 255

  round_pixels.defvjp(lambda x: (round_pixels(x), None), lambda _, g: (slope * g,))
  return lambda x: round_pixels(x) @ W


def test_another_gradient_is_another_network():
  one, other = (identity.of_net(rounded(slope), X) for slope in (1.0, 2.0))
  assert one["logits"] == other["logits"]
  assert not agree(one, other)
  assert agree(one, identity.of_net(rounded(1.0), X))


def test_a_definition_stands_for_the_code():
  one, other = (identity.of_net(partial(W), X, definition=text) for text in ("a", "b"))
  assert one["code"] != other["code"]
  assert one["arrays"] == other["arrays"] != identity.of_net(partial(-W), X, "a")["arrays"]


def test_logits_agree_up_to_rounding():
  logits = identity.of_net(closure(W), X)["logits"]
  for factor, agrees in ((1 + 1e-6, True), (1 + 1e-3, False), (np.nan, False)):
    other = [[factor * value for value in row] for row in logits]
    assert identity.same("net.logits", logits, other) == agrees
  assert not identity.same("net.logits", logits, logits[1:])
  assert not identity.same("radius", 0.1, 0.1 * (1 + 1e-6))


# An evaluation

SOURCE = """
import jax
import numpy as np
weights = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
def logits_fn(x):
  return (x - 0.5) @ weights
def other(x):
  return (x - 0.5) @ weights
def apply(weights, x):
  return (x - 0.5) @ weights
partial = jax.tree_util.Partial(apply, weights)
@jax.custom_vjp
def bridge(x):
  def answer(x):
    return ((np.asarray(x) - 0.5) @ weights).astype(np.float32)
  return jax.pure_callback(answer, jax.ShapeDtypeStruct((x.shape[0], 3), np.float32), x)
bridge.defvjp(lambda x: (bridge(x), x), lambda x, _: (x,))
"""


def fake_attack(logits_fn, x, y, u, **_):
  """Nothing is broken."""
  del logits_fn, u
  return autoattack.Verdict(("clean", "none"), y, np.full(len(y), -1, np.int32), np.asarray(x))


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
  """(source code, x, y, **options) -> whether the attack was run, in one output folder."""
  monkeypatch.setattr(sys, "dont_write_bytecode", True)

  def run(source=SOURCE, x=X, y=None, model="logits_fn", where="here", output="found", **changed):
    folder = tmp_path / where
    folder.mkdir(exist_ok=True)
    (folder / "net_of_identity_test.py").write_text(source)
    np.savez(folder / "data.npz", x=x, y=np.zeros(len(x), np.int32) if y is None else y)
    monkeypatch.chdir(folder)
    sys.modules.pop("net_of_identity_test", None)
    importlib.invalidate_caches()
    attacked = []
    monkeypatch.setattr(
      autoattack, "autoattack", lambda *a, **k: attacked.append(1) or fake_attack(*a, **k)
    )
    given = {"norm": "linf", "radius": 0.1, "version": "quick", "batch_size": 64, "trust": False}
    options = evaluation_study.Options(
      {"model": f"net_of_identity_test:{model}", "data": str(folder / "data.npz")},
      **given | {"output": tmp_path / output} | changed,
    )
    evaluation_study.run(options)
    return bool(attacked)

  yield run
  sys.modules.pop("net_of_identity_test", None)


def test_the_same_evaluation_is_found_again_wherever_its_ingredients_lie(evaluation):
  assert evaluation()
  assert not evaluation()
  assert not evaluation(where="there")
  assert not evaluation(source=SOURCE + "\n# a comment, and a function more\ndef f(): pass\n")


MENDED = SOURCE.replace("x - 0.5", "2 * x - 1").replace("np.asarray(x) - 0.5", "np.asarray(x) - 1")
RETRAINED = SOURCE.replace("default_rng(0)", "default_rng(1)")


@pytest.mark.parametrize(
  ("first", "changed", "words"),
  [
    ({}, {"model": "other"}, r"net\.name: \w+:logits_fn -> \w+:other"),
    ({}, {"source": MENDED}, r"net\.code"),
    ({}, {"source": RETRAINED}, r"net\.arrays"),
    ({"model": "partial"}, {"model": "partial", "source": MENDED}, r"net\.code"),
    ({"model": "partial"}, {"model": "partial", "source": RETRAINED}, r"net\.arrays"),
    ({"model": "bridge"}, {"model": "bridge", "source": MENDED}, r"net\.logits"),
    ({"model": "bridge"}, {"model": "bridge", "source": RETRAINED}, r"net\.logits"),
    ({}, {"x": 0.9 * X}, "data_sha256"),
    ({}, {"y": np.ones(12, np.int32)}, "data_sha256"),
    ({}, {"examples": 10}, "data_sha256"),
    ({}, {"norm": "l2"}, r"set\.name: LInf -> L2"),
    ({}, {"radius": 0.1000001}, r"set\.radius: 0\.1 -> 0\.1000001"),
    ({}, {"version": "standard"}, "version: quick -> standard"),
    ({}, {"seed": 1}, "seed: 0 -> 1"),
    ({}, {"batch_size": 128}, "batch_size: 64 -> 128"),
  ],
)
def test_an_evaluation_of_anything_else_is_refused(evaluation, first, changed, words):
  evaluation(**first)
  with pytest.raises(InputError, match=rf"holds another study.*{words}"):
    evaluation(**first | changed)


def test_an_evaluation_by_other_code_is_refused(evaluation, monkeypatch):
  evaluation()
  with monkeypatch.context() as patch:
    patch.setattr(study_lib, "REVISION", study_lib.REVISION + 1)
    with pytest.raises(InputError, match="revision: "):
      evaluation()
  monkeypatch.setattr(evaluation_study.jax, "__version__", "0.0.1")
  with pytest.raises(InputError, match=r"jax: .* -> 0\.0\.1"):
    evaluation()


def test_an_evaluation_goes_on_where_logits_round_otherwise(evaluation, tmp_path):
  evaluation()
  path = tmp_path / "found" / "study.json"
  stored = json.loads(path.read_text())
  for factor, refused in ((1 + 1e-6, False), (1.01, True)):
    changed = [[factor * value for value in row] for row in stored["net"]["logits"]]
    path.write_text(json.dumps(stored | {"net": stored["net"] | {"logits": changed}}))
    if refused:
      with pytest.raises(InputError, match=r"net\.logits"):
        evaluation()
    else:
      assert not evaluation()


# A run


def split(name, seed=0):
  rng = np.random.default_rng(seed)
  return datasets.from_arrays(rng.random((4, 3, 3, 1)), rng.integers(0, 2, 4), 2, split=name)


SPLITS = build.Splits(*map(split, build.Splits._fields))


def with_label(dataset):
  labels = dataset.labels.copy()
  labels[0] ^= 1
  return dataset._replace(labels=labels)


def test_a_run_is_found_again_wherever_it_and_its_data_lie(tmp_path, monkeypatch):
  c = config.digits()
  workdir.claim(tmp_path / "run", c, SPLITS)
  shutil.move(tmp_path / "run", tmp_path / "moved")
  (tmp_path / "moved" / "summary.json").write_text('{"found": 1}')
  c.data.data_dir, c.data.train_files = "/elsewhere", "/elsewhere/set"
  monkeypatch.setattr(build, "splits", lambda config: SPLITS)
  assert experiment.run(c, tmp_path / "moved") == {"found": 1}


def claim_with_a_checkpoint(path, config_):
  """Without one, a run starts over."""
  workdir.claim(path, config_, SPLITS)
  (path / "checkpoints" / "00000001").mkdir(parents=True)


@pytest.mark.parametrize("name", build.Splits._fields)
@pytest.mark.parametrize("change", [lambda d: split(d.split, seed=1), with_label])
def test_a_run_on_other_data_is_refused(name, change, tmp_path, monkeypatch):
  """Finished or not."""
  c = config.digits()
  claim_with_a_checkpoint(tmp_path, c)
  other = SPLITS._replace(**{name: change(getattr(SPLITS, name))})
  with pytest.raises(InputError, match=rf"another experiment.*data\.{name}: \w+ -> \w+\.$"):
    workdir.claim(tmp_path, c, other)
  (tmp_path / "summary.json").write_text("{}")
  monkeypatch.setattr(build, "splits", lambda config: other)
  with pytest.raises(InputError, match=rf"data\.{name}"):
    experiment.run(c, tmp_path)


def test_a_run_by_other_code_or_with_damaged_inputs_is_refused(tmp_path, monkeypatch):
  c = config.digits()
  claim_with_a_checkpoint(tmp_path, c)
  with monkeypatch.context() as patch:
    patch.setattr(workdir, "REVISION", study_lib.REVISION + 1)
    with pytest.raises(InputError, match="revision: "):
      workdir.claim(tmp_path, c, SPLITS)
  for content in ("{", "[]"):
    (tmp_path / workdir.INPUTS).write_text(content)
    with pytest.raises(InputError, match=r"inputs\.json cannot be read"):
      workdir.claim(tmp_path, c, SPLITS)
  (tmp_path / workdir.INPUTS).unlink()
  with pytest.raises(InputError, match=r"data\.test: \(absent\) -> "):
    workdir.claim(tmp_path, c, SPLITS)
  # A kill between the two files leaves a directory of ours.
  (tmp_path / workdir.INPUTS).write_text("{}")
  (tmp_path / "config.json").unlink()
  shutil.rmtree(tmp_path / "checkpoints")
  workdir.check(tmp_path, c)


def test_a_network_is_not_loaded_with_other_training_data(tmp_path):
  """Its preprocessing would be another."""
  workdir.claim(tmp_path, config.digits(), SPLITS)
  target._refuse_other_data(tmp_path, SPLITS.train)
  with pytest.raises(InputError, match="was trained on other data"):
    target._refuse_other_data(tmp_path, with_label(SPLITS.train))


# Studies


class Described(Exception):  # noqa: N818
  """What a study depends on, raised where it would begin."""


def describe(*args, **kwargs):
  raise Described(args, kwargs)


def description(monkeypatch, module, given):
  with monkeypatch.context() as patch:
    patch.setattr(module, "Study", describe)
    with pytest.raises(Described) as caught:
      module.run(given)
  return json.loads(json.dumps(caught.value.args[0][1]))


def numbers(module):
  return study_options.values(module.PRESETS["quick", "digits"])


def paper(module, **changed):
  """Options of a study of digits, in small; `changed` may hold numbers of its preset."""
  known = {name: changed.pop(name) for name in numbers(module) if name in changed}
  preset = dataclasses.replace(module.PRESETS["quick", "digits"], **known)
  workdir = study_lib.Path("nowhere")
  return module.Options(dataset="digits", workdir=workdir, preset=preset, **changed)


def construction(**changed):
  given = {"kind": "random", "settings": Settings(), "output": study_lib.Path("nowhere")}
  return construct.Options({"workdir": "run"}, **given | changed)


def every_number(module):
  return [{field: 7} for field in numbers(module)]


STUDIES = {
  family: [{field: 7} for field in ("seeds", "passes", "examples")]
  + [{"version": "standard"}, {"budget": "updates"}, {"override": ("training.batch_size=50",)}],
  goodfellow2015: [*every_number(goodfellow2015), {"override": ("training.batch_size=50",)}],
  ilyas2019: [*every_number(ilyas2019), {"override": ("model.name=MLP",)}],
  shaham2015: [{field: 7} for field in ("seeds", "epochs", "pgd_examples", "points")]
  + [{"override": ("seed=3",)}, {"robust_override": ("training.shuffle=False",)}]
  + [{"matmul_precision": "default"}],
}
# Neither where things lie nor what changes speed alone.
HARMLESS = {shaham2015: [{"vmap_seeds": True}, {"evaluation_batch": 7}, {"epochs_per_call": 7}]}


@pytest.mark.slow
@pytest.mark.parametrize("module", STUDIES, ids=lambda module: module.__name__.split(".")[-1])
def test_a_study_is_described_by_all_that_its_results_depend_on(module, monkeypatch, tmp_path):
  describe_it = functools.partial(description, monkeypatch, module)
  usual = describe_it(paper(module))
  for changed in [{"data_dir": str(tmp_path), "cache_dir": "c"}, *HARMLESS.get(module, [])]:
    assert not config.differences(usual, describe_it(paper(module, **changed))), changed
  for changed in STUDIES[module]:
    assert config.differences(usual, describe_it(paper(module, **changed))), changed
  genuine = datasets.load

  def other_data(name, which, **places):
    found = genuine(name, which, **places)
    return with_label(found) if which == split_name else found

  monkeypatch.setattr(datasets, "load", other_data)
  for split_name in ("train", "test"):
    (line,) = config.differences(usual, describe_it(paper(module)))
    assert line.startswith(f"data.{split_name}: ")


NET = target.TrainedNet(
  *(closure(W), closure(W), SPLITS.train, SPLITS.test, "a", "net", "MLP()", None),
  *({}, {}, None, (), config.digits(), None),
)


@pytest.mark.parametrize(
  ("net", "changed", "words"),
  [
    ({}, {"kind": "deterministic"}, "kind"),
    ({}, {"settings": Settings(radius=1.0)}, "settings.radius"),
    ({}, {"settings": Settings(num_steps=7)}, "settings.num_steps"),
    ({}, {"settings": Settings(step=1.0)}, "settings.step"),
    ({}, {"examples": 3}, "examples"),
    ({}, {"seed": 1}, "seed"),
    ({}, {"shard_size": 2}, "shard_size"),
    ({"sha256": "b"}, {}, "net_sha256"),
    ({"definition": "MLP(1)"}, {}, "net_definition"),
    ({"train": with_label(SPLITS.train)}, {}, "data_sha256"),
  ],
)
def test_a_constructed_set_is_described_by_all_that_it_depends_on(net, changed, words, monkeypatch):
  def describe_it(net, options):
    monkeypatch.setattr(target, "load_run", lambda workdir: net)
    return description(monkeypatch, construct, options)

  usual = describe_it(NET, construction())
  elsewhere = construction(output=study_lib.Path("elsewhere"))
  assert describe_it(NET, elsewhere) == usual
  (line,) = config.differences(usual, describe_it(NET._replace(**net), construction(**changed)))
  assert line.startswith(f"{words}: ")


DIGESTS = {"train": "a", "test": "b"}


@pytest.mark.parametrize(
  "changed",
  [
    {"name": "pgd"},
    {"seed": 2},
    {"digests": DIGESTS | {"train": "c"}},
    {"digests": DIGESTS | {"test": "c"}},
    *(
      {"options": paper(family, **numbers)} for numbers in STUDIES[family] if "seeds" not in numbers
    ),
  ],
)
def test_a_known_network_is_known_for_the_same_ingredients_only(changed):
  given = {"options": paper(family), "name": "robust", "seed": 1, "digests": DIGESTS}
  usual = family.identity(**given)
  places = given | {"options": paper(family, data_dir="d", cache_dir="c")}
  assert family.identity(**places) == usual
  assert family.identity(**given | changed) != usual
