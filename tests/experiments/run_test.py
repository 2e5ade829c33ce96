"""Whole experiments on the digits: they make nets robust, and leave what they promise."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from main_test import SMALL, run_main
from PIL import Image
from rounding import rounding

import robust_opt as ro
from robust_opt import losses, models
from robust_opt.evaluation import accuracy as evaluation
from robust_opt.experiments import assembly, attacks, build, engine, metrics, run, summary, target
from robust_opt.experiments import config as config_lib
from robust_opt.experiments.checkpoint import Checkpoints
from robust_opt.training import TrainMetrics, init_state, sharding

RADIUS = 0.15


def small_config(num_steps=1, epochs=2):
  config = config_lib.digits()
  config.data.mean, config.data.std = (), ()
  config_lib.choose(config, "model", "MLP", widths=(64,))
  config.set.radius = RADIUS
  if num_steps == 0:
    config_lib.choose(config, "attack", "none")
  if num_steps > 1:
    kwargs = {"num_steps": num_steps, "relative_step": 0.1, "random_start": False}
    config_lib.choose(config, "attack", "pgd", **kwargs)
  config.training.epochs = epochs
  config.data.train_examples = 1000
  config.data.test_examples = 150
  config.evaluation.sweep = (0.0, 1.0, 3.0)
  config.evaluation.batch_size = 64
  return config


def fresh_state(config, parts, seed):
  net = build.model(config, parts.splits.train)
  params, model_state = models.init(net, jax.random.key(seed), (8, 8, 1))
  state = init_state(params, model_state, build.optimizer(config, parts.plan.num_steps))
  return sharding.replicate(state, sharding.data_mesh())


@pytest.mark.slow
def test_robust_training_makes_nets_robust_over_several_seeds():
  """Against the step that it was trained on, and against 20 steps that it was not."""
  epochs = 8
  robust, standard, pgd = (assembly.assemble(small_config(steps, epochs)) for steps in (1, 0, 20))
  nets = [(parts, parts.compile(parts.plan.num_steps)) for parts in (robust, standard)]
  for seed in (0, 1):
    under_attack = []
    for parts, scan in nets:
      state, losses = fresh_state(small_config(), parts, seed), []
      for _ in range(epochs):
        state, told = scan(state)
        losses.append(np.asarray(told.loss).mean())
      assert losses[-1] < 0.6 * losses[0]
      one_step, twenty = (
        of.evaluate(state, robust.test, ro.LInf(RADIUS), of.attack.evaluate) for of in (robust, pgd)
      )
      clean = one_step.clean_correct.mean()
      under_attack.append(np.array([one_step.robust_correct.mean(), twenty.robust_correct.mean()]))
      assert under_attack[-1][1] <= under_attack[-1][0] + 0.01 <= clean + 0.02
      assert parts is standard or clean > 0.85
    assert np.all(under_attack[0] > under_attack[1] + 0.15)


@pytest.mark.parametrize(
  ("per_epoch", "most", "expected"),
  [
    (300, 100, 100),
    (40, 100, 40),
    (90, 40, 30),
    (41, 10, 10),  # a prime: no divisor but 1, so the last scan of an epoch is shorter
    (100, 1, 1),
  ],
)
def test_scan_length(per_epoch, most, expected):
  assert run.scan_length(per_epoch, most) == expected


# A run whose scan and evaluation only say what they are told to: what is made of it.


def outcome(data, clean, robust, zeros=0):
  """An Evaluation with so many of the data correct, and so many without a gradient."""
  place = np.arange(len(data.labels))
  return evaluation.Evaluation(place < clean, place < robust, place < zeros)


def scan_without_training(num_steps):
  return lambda state: (
    state.replace(step=state.step + num_steps),
    TrainMetrics(np.ones(num_steps), np.zeros(num_steps, np.int32)),
  )


@pytest.fixture(scope="module")
def parts():
  return assembly.assemble(small_config(epochs=3))


def test_the_best_is_chosen_by_heldout_robust_accuracy(parts, tmp_path):
  """By PGD: clean and one-step accuracy rise on. The test set is never looked at."""
  config, asked = small_config(epochs=3), []
  config.checkpoint.every_epochs = 3
  config.evaluation.checkpoint = "best"

  def evaluate(state, data, u, attack):
    asked.append(data)
    epoch = int(state.step) // parts.plan.num_steps
    if data is parts.watched:
      return outcome(data, clean=100, robust={1: 20, 2: 40, 3: 30}[epoch])
    return outcome(data, clean=50 + 10 * epoch, robust=40 + 10 * epoch)

  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
  stub = parts._replace(config=config, compile=scan_without_training, evaluate=evaluate)
  with run.RunLog(stub, tmp_path, parts.state, 3 * parts.plan.num_steps) as log:
    engine.train(stub, parts.state, tmp_path, checkpoints, run._plan(stub), log)
  assert checkpoints.best_step() == 2 * parts.plan.num_steps
  assert int(checkpoints.restore(parts.state, "best").step) == 2 * parts.plan.num_steps
  checkpoints.close()
  assert len(asked) == 6
  assert not any(data is parts.test for data in asked)
  images = parts.splits.train.images, parts.splits.heldout.images
  original = build.datasets.load("digits", "train").images[:1000]
  pixels = [{image.tobytes() for image in part} for part in (*images, original)]
  assert pixels[1] <= pixels[2]  # what is held out comes from the training set
  assert len(images[0]) + len(images[1]) == 1000


def test_zero_gradients_are_reported(parts, tmp_path):
  """In the log of training and of the held-out examples, and beside every accuracy."""
  config = small_config()

  def evaluate(state, data, u, attack):
    return outcome(data, clean=90, robust=60, zeros=7 if data is parts.heldout else 11)

  stub = parts._replace(config=config, evaluate=evaluate)
  log = run.RunLog(stub, tmp_path, parts.state, total=0)
  logged = log.describe(TrainMetrics(np.ones(4), np.arange(4)), seconds=1.0)
  assert logged["train/zero_gradients"] == 0 + 1 + 2 + 3
  assert log.measure(parts.state)[0]["heldout/zero_gradients"] == 7
  _, *attacked = summary.evaluate_and_describe(stub, parts.state)["results"]
  assert [(row["correct"], row["total"], row["zero_gradients"]) for row in attacked] == 3 * [
    (60, 150, 11)
  ]


def test_a_norm_of_radius_0_is_left_out(parts):
  """But never the norm that is trained over, whose clean half is the clean accuracy."""
  config = small_config()
  config.evaluation.radii.l1 = 0.0
  asked = []

  def evaluate(state, data, u, attack):
    asked.append(u)
    return outcome(data, clean=90, robust=60, zeros=0)

  stub = parts._replace(config=config, set=ro.LInf(0.0), evaluate=evaluate)
  found = summary.evaluate_and_describe(stub, parts.state)
  assert [row["set"] and row["set"]["name"] for row in found["results"]] == [None, "linf", "l2"]
  # Multiples 0 and 1 of a radius are known already.
  assert asked == [ro.LInf(0.0), ro.L2(0.5), ro.L2(1.5)]
  assert found["sweeps"][1]["correct"] == [90, 60, 60]


def test_a_sweep_over_radii_traces_once(parts):
  traced = []

  def attack(u):
    traced.append(u)
    return ro.steepest(u)

  sets = [ro.L2(radius) for radius in (0.0, 0.3, 2.0)]
  results = [parts.evaluate(parts.state, parts.heldout, u, attack) for u in sets]
  assert len(traced) == 1
  assert np.any(results[0].robust_correct != results[2].robust_correct)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_measuring_attacks_reach_the_maximum_in_the_box(norm):
  """Over l_1 too, where most of an attack's steps would be lost on pixels that are saturated."""
  rng = np.random.default_rng(0)
  x, slope = rng.random((8, 12)).astype(np.float32), rng.normal(size=12).astype(np.float32)
  radius = {"linf": 0.3, "l2": 1.0, "l1": 2.0}[norm]
  u = ro.sets.BALLS[norm](radius, config_lib.PIXEL_BOX)
  attack = attacks.pgd(num_steps=100, random_start=False).evaluate(u)
  delta, _ = jax.jit(lambda x: attack(lambda x: x @ slope, None, x))(x)
  best = jax.jit(u.steepest_ascent)(0 * x + slope, x)
  np.testing.assert_allclose(delta @ slope, best @ slope, rtol=rounding(terms=2 * 12 + 8))


def test_measuring_attacks_keep_the_best_iterate_not_the_last():
  attack = attacks.pgd(num_steps=6, relative_step=1.0, random_start=False)  # to and fro
  x = np.random.default_rng(0).random((20, 6)).astype(np.float32)

  def value_fn(x):
    return ro.Scored(x.sum(-1), np.sin(20 * np.arange(1, 7)) @ jax.numpy.cos(9 * x).T)

  delta, info = jax.jit(lambda x: attack.evaluate(ro.LInf(0.3))(value_fn, None, x))(x)
  ours, last = value_fn(x + delta).score, info.score[-1]
  assert np.all(ours >= info.score.max(axis=0) - 1e-4)
  assert np.mean(ours > last + 0.1) > 0.3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(config, work directory, summary) of one short run; scans that do not divide the epoch."""
  workdir = tmp_path_factory.mktemp("runs") / "new" / "robust"
  config = small_config(epochs=2)
  config.data.train_examples = 1032
  config.training.steps_per_scan = 11  # of 29, a prime
  config.evaluation.checkpoint = "best"
  config.training.augment = ("crop",)
  return config, workdir, run.run(config, workdir)


def strict(text):
  def refuse(constant):
    raise ValueError(f"{constant} is no JSON")

  return json.loads(text, parse_constant=refuse)


def test_work_directory_holds_what_it_promises(finished):
  config, workdir, summary = finished
  promised = {"config.json", "inputs.json", "metrics.jsonl", "summary.json"}
  promised |= {"tensorboard", "checkpoints"}
  pictures = {"curves.png", "accuracy.png", "examples.png"}
  assert {path.name for path in workdir.iterdir()} == promised | pictures
  assert strict((workdir / "config.json").read_text()) == config_lib.as_dict(config)
  assert strict((workdir / "summary.json").read_text()) == json.loads(json.dumps(summary))
  for name in pictures:
    with Image.open(workdir / name) as image:
      assert image.format == "PNG"
      image.load()
      assert min(image.size) > 100
      assert len(np.unique(np.asarray(image.convert("L")))) > 10  # something is drawn


def test_metrics_are_strict_json_with_every_step_once(finished):
  _, workdir, _ = finished
  steps = [11, 22, 29, 40, 51, 58]
  records = [strict(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [r["step"] for r in records] == steps
  assert [r["epoch"] for r in records] == pytest.approx([step / 29 for step in steps])
  for record in records:
    assert all(math.isfinite(v) for v in record.values())
    at_end = record["step"] % 29 == 0
    assert ("heldout/robust_accuracy" in record) == at_end
    assert 0 <= record["train/zero_gradients"] <= 11 * 32


def test_counts_of_the_summary_add_up(finished):
  config, _, summary = finished
  clean, own, *others = summary["results"]
  assert clean["set"] is clean["attack"] is clean["zero_gradients"] is None
  radii = {"linf": RADIUS, "l2": 0.5, "l1": 1.0}
  sets = [{"name": norm, "radius": radius} for norm, radius in radii.items()]
  assert [row["set"] for row in (own, *others)] == sets
  assert [row["trained_on"] for row in summary["results"]] == [False, True, False, False]
  assert own["attack"] == {"num_steps": 1}
  assert {row["total"] for row in summary["results"]} == {150}
  assert own["correct"] <= clean["correct"] <= 150
  for row, sweep in zip((own, *others), summary["sweeps"], strict=True):
    radius = row["set"]["radius"]
    assert sweep["norm"] == row["set"]["name"]
    assert sweep["radii"] == pytest.approx([0.0, radius, 3 * radius])
    assert sweep["correct"][0] == clean["correct"]  # radius 0 is the clean example
    assert sweep["correct"][1] == row["correct"]
    assert sweep["correct"][0] >= sweep["correct"][1] >= sweep["correct"][2]
    assert sweep["total"] == 150
  assert summary["train_examples"] + summary["heldout_examples"] == 1032
  assert summary["step"] == summary["best_checkpoint"]["step"]  # the config asks for the best
  assert summary["step"] in (29, 58)
  assert 0 <= summary["best_checkpoint"]["heldout_robust"] <= 1
  assert len(summary["params_sha256"]) == len(summary["data_sha256"]["train"]) == 64
  assert summary["config"] == config_lib.as_dict(config)
  assert summary["seconds_since_last_start"] > 0
  assert summary["peak_memory_mb"] > 50


# Overfitting, which is watched on held-out data.


def collapsing(parts):
  """A run ever more robust to one step, and to PGD no more from the third epoch on."""

  def evaluate(state, data, u, attack):
    epoch = int(state.step) // parts.plan.num_steps
    if data is parts.watched:
      return outcome(data, clean=100, robust={1: 30, 2: 50, 3: 2, 4: 1}[epoch])
    return outcome(data, clean=90, robust=60 + 5 * epoch)

  return parts._replace(compile=scan_without_training, evaluate=evaluate)


@pytest.mark.parametrize("what", ["say", "stop"])
def test_catastrophic_overfitting_is_said_and_may_stop_the_run(parts, tmp_path, monkeypatch, what):
  config, said = small_config(epochs=4), []
  config.training.on_overfitting = what
  monkeypatch.setattr(metrics.ProgressDisplay, "say", lambda self, text: said.append(text))
  monkeypatch.setattr(run, "assemble", lambda config: collapsing(parts)._replace(config=config))
  monkeypatch.setattr(run, "draw", lambda *args: None)
  summary = run.run(config, tmp_path / "run")
  (sentence,) = said
  assert sentence.startswith("Catastrophic overfitting: ")
  assert summary["overfitting"]["kind"] == "catastrophic"
  epoch = {"say": 4, "stop": 2}[what]  # where it stops, the best checkpoint is reported on
  assert summary["step"] == epoch * parts.plan.num_steps
  assert summary["best_checkpoint"]["step"] == 2 * parts.plan.num_steps
  assert summary["checkpoint"] == {"say": "last", "stop": "best"}[what]
  assert target._reported(tmp_path / "run") == summary["checkpoint"]
  records = metrics.read_metrics(tmp_path / "run" / "metrics.jsonl")
  last = {"say": 4, "stop": 3}[what] * parts.plan.num_steps
  assert records[-1]["step"] == last
  assert records[-1]["heldout/pgd_accuracy"] < 0.03 < records[-1]["heldout/single_step_accuracy"]


# Training that does not begin.


@pytest.mark.slow
def test_a_run_that_stays_at_chance_says_so(tmp_path, monkeypatch, capfd, caplog):
  stays = [*SMALL, "--config.optimizer.learning_rate=1e-9", "--config.training.epochs=4"]
  assert run_main(monkeypatch, *stays, f"--workdir={tmp_path / 'say'}") == 0
  warnings = [r.getMessage() for r in caplog.records if "not learning" in r.getMessage()]
  (warning,) = warnings  # once; after one epoch the loss was that of the initial network
  assert "after epoch 2 " in warning
  assert "--config.attack.warmup=0.3" in warning
  assert "--config.optimizer.learning_rate" in warning
  *_, closing, _, _, _ = capfd.readouterr().out.splitlines()
  assert closing.startswith("The network is not learning: after epoch 4 ")
  found = strict((tmp_path / "say" / "summary.json").read_text())["not_learning"]
  assert (found["kind"], found["epoch"], found["num_examples"]) == ("chance", 4, 20)
  stop = [*stays, "--config.training.on_no_progress=stop", f"--workdir={tmp_path / 'stop'}"]
  for _ in range(2):  # the same command again says the same
    assert run_main(monkeypatch, *stop) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("robust_opt: The network is not learning: after epoch 2 ")
  assert not (tmp_path / "stop" / "summary.json").exists()


def test_standard_training_is_not_told_to_grow_a_radius(tmp_path, monkeypatch, capfd):
  stays = [*SMALL, "--config.optimizer.learning_rate=1e-9", "--config.attack.name=none"]
  assert run_main(monkeypatch, *stays, f"--workdir={tmp_path / 'run'}") == 0
  *_, closing, _, _, _ = capfd.readouterr().out.splitlines()
  assert "The network is not learning" in closing
  assert "warmup" not in closing


def test_a_run_that_learns_is_not_warned(finished):
  config, workdir, summary_ = finished
  assert summary_["not_learning"] is None
  assert metrics.closing_lines(summary_) == []
  experiment = assembly.assemble(config)
  with run.RunLog(experiment, workdir, experiment.state.replace(step=58), total=58) as log:
    assert log.not_learning == [None, None]


@pytest.mark.parametrize("num_steps", [1, 3])
def test_what_is_watched_is_the_other_attack(num_steps):
  x, y = jnp.full((4, 6), 0.5), jnp.arange(4) % 3
  w = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)

  def value(z):
    return losses.cross_entropy(jnp.sin(9 * z @ w), y)

  attack = attacks.not_trained_on(attacks.pgd(num_steps), ro.LInf(0.2))
  _, info = jax.eval_shape(lambda x: attack(value, jax.random.key(0), x), x)
  assert len(info.value) == {1: 10, 3: 1}[num_steps]


def test_standard_training_is_not_watched():
  config = small_config(0)
  assert assembly.assemble(config).watched is None
  config = small_config(1)
  config.training.watch_examples = 0
  assert assembly.assemble(config).watched is None
