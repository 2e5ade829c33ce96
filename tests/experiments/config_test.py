"""The configs, the papers' values in them, and the sentences that refuse the rest."""

import json
import re
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import robust_opt as ro
from robust_opt import models
from robust_opt.errors import InputError
from robust_opt.experiments import (
  assembly,
  attacks,
  build,
  combinations,
  config,
  overrides,
  sections,
)
from robust_opt.experiments.config import choose

FOLDER = Path(__file__).parents[2] / "configs"
# The nets of Shaham et al.; other methods and variants are families.
KINDS = ("l1", "l2", "linf", "standard")
FILES = sorted(FOLDER.glob("*.py"))
SHAPE = (8, 8, 1)


def load(name):
  return overrides.load(str(FOLDER / f"{name}.py"))


def changed(*items):
  """The digits' config, so overridden."""
  config_ = config.digits()
  overrides.apply_all(config_, items)
  return config_


# Sections


@pytest.mark.parametrize("section", sections.SECTIONS)
def test_every_name_of_a_section_has_its_own_keys_and_no_others(section):
  config_ = config.digits()
  for name in sections.SECTIONS[section].choices:
    keys = sections.keys_of(section, name)
    given = {"learning_rate": 0.1} if section == "optimizer" else {}
    choose(config_, section, name, **given)
    shown = set(config_[section]) - {"name"}
    assert shown <= set(keys)
    missing = {key for key in keys if keys[key] is sections.REQUIRED} - shown
    if missing:
      with pytest.raises(InputError, match=f"{section}.name={name} needs --config.{section}"):
        sections.check_section(config_, section)
    with pytest.raises(InputError, match=f"{section}.no_such is unknown: .*name={name} takes"):
      overrides.apply(config_, {f"{section}.no_such": "1"})


@pytest.mark.parametrize(
  ("items", "expected"),
  [
    (
      ["attack.num_steps=9", "attack.name=pgd"],
      {"name": "pgd", "num_steps": 9, "relative_step": 0.25, "random_start": True} | attacks.ASCENT,
    ),
    (["attack.name=none"], {"name": "none", "warmup": 0.0}),
    (["attack.every=2"], {"name": "steepest"} | attacks.ASCENT | {"every": 2}),
    (["attack.name=free", "attack.num_replays=3"], {"name": "free", "num_replays": 3}),
  ],
)
def test_a_new_name_resets_its_section_in_any_order(items, expected):
  assert changed(*items).attack.to_dict() == expected


def own_schedule(peak, total, factor=0.5):
  return lambda step: peak * factor ** (step / total)


def own_data(split):
  train = build.datasets.load("digits", split)
  return train._replace(images=train.images[:200], labels=train.labels[:200])


class OwnNet(models.SoftmaxRegression):
  scale: float = 1.0


OWN = "tests_config_own"


@pytest.fixture
def own_module(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, OWN, sys.modules[__name__])


@pytest.mark.usefixtures("own_module")
def test_objects_of_the_user_s_own():
  config_ = changed(
    f"model.name={OWN}:OwnNet",
    "model.scale=2.0",
    f"schedule.name={OWN}:own_schedule",
    "schedule.factor=0.25",
    f"data.name={OWN}:own_data",
    f"objective.loss={OWN}:own_loss",
    "optimizer.learning_rate=1.0",
  )
  config.validate(config_)
  splits = build.splits(config_)
  assert len(splits.train.labels) == 180
  assert build.model(config_, splits.train).scale == 2.0
  assert build.schedule(config_, 1)(30) == pytest.approx(0.25)
  objective = build.objective(config_, ro.LInf(0.1), 1)
  value, _ = objective.outer(lambda x: (x, {}), jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.zeros(2))
  np.testing.assert_array_equal(value, 3.0)
  with pytest.raises(InputError, match=r"no_such:Net cannot be imported"):
    overrides.apply(config_, {"model.name": "no_such:Net"})


def test_arrays_named_in_a_file_are_no_object_of_a_module(tmp_path):
  images = np.arange(40 * 16, dtype=np.uint8).reshape(40, 4, 4)
  np.savez(tmp_path / "own.npz", pictures=images, kinds=np.arange(40) % 4)
  config_ = changed(f"data.name={tmp_path}/own.npz:pictures,kinds", "training.batch_size=8")
  splits = build.splits(config_)
  assert len(splits.test.labels) == 8
  assert {*splits.train.images[:, 0, 0, 0]} < {*images[:, 0, 0]}


def own_loss(logits, y):
  return logits.sum(-1)


# Optimizers


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_adam_can_be_named_with_every_config(path):
  config_ = overrides.load(str(path))
  name, rate = config_.optimizer.name, config_.optimizer.learning_rate
  overrides.apply(config_, {"optimizer.name": "adam"})
  assert config_.optimizer.learning_rate == (rate if name == "adam" else 1e-3)
  assert not {"momentum", "dampening"} & set(config_.optimizer)
  config.validate(config_)
  leaves = build.optimizer(config_, 10).init({"w": jnp.ones((2, 2))})
  assert any(isinstance(state, optax.ScaleByAdamState) for state in leaves[1])


@pytest.mark.parametrize(
  ("names", "rate"),
  [
    (["adam"], 1e-3),
    (["dampened_sgd"], 0.02),  # that of the config
    (["adam", "lion"], 1e-3),
    (["adam", "sgd"], 1e-2),
    ([f"{__name__}:own_sgd"], 0.02),
  ],
)
def test_a_new_optimizer_has_the_usual_learning_rate_of_its_kind(names, rate, monkeypatch):
  monkeypatch.setattr(sections, "import_object", lambda name: own_sgd)
  config_ = changed()
  for name in names:
    overrides.apply(config_, {"optimizer.name": name})
  assert config_.optimizer.learning_rate == rate
  overrides.apply(config_, {"optimizer.learning_rate": "0.5", "optimizer.name": "yogi"})
  assert config_.optimizer.learning_rate == 0.5


def test_the_log_says_the_learning_rate_of_a_new_optimizer(caplog):
  with caplog.at_level("INFO", logger="absl"):
    overrides.config_of(config.__file__, ["--config.optimizer.name=adam"])
  assert "optimizer.name=adam trains at --config.optimizer.learning_rate=0.001." in caplog.text


def own_sgd(learning_rate):
  return optax.sgd(learning_rate)


def test_a_learning_rate_of_its_own_is_not_replaced(monkeypatch):
  own = lambda learning_rate=1.0, beta=0.5: optax.sgd(learning_rate, beta)  # noqa: E731
  monkeypatch.setitem(sections.SECTIONS["optimizer"].choices, "own", own)
  config_ = changed("optimizer.name=own")
  assert config_.optimizer.to_dict() == {"name": "own", "learning_rate": 1.0, "beta": 0.5}


@pytest.mark.filterwarnings("ignore")  # some are deprecated by optax, or will need a key
@pytest.mark.parametrize("name", sections.SECTIONS["optimizer"].choices)
def test_every_optimizer_that_can_be_named_makes_an_update(name):
  config_ = changed(f"optimizer.name={name}")
  config.validate(config_)
  params = {"w": jnp.ones((2, 2))}
  optimizer = build.optimizer(config_, 10)
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  assert jnp.all(jnp.isfinite(updates["w"]))


def own_line_search(learning_rate):
  return optax.chain(optax.sgd(learning_rate), optax.scale_by_polyak())


def own_rate():
  return optax.sgd(0.25)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("name", ["lbfgs", "polyak_sgd", f"{OWN}:own_line_search"])
def test_optimizers_that_need_the_loss_are_refused(name):
  with pytest.raises(InputError, match=rf"optimizer.name={name} needs the loss"):
    config.validate(changed(f"optimizer.name={name}"))


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("name", ["sm3", f"{OWN}:own_rate"])
def test_schedules_that_would_have_no_effect_are_refused(name):
  config.validate(changed(f"optimizer.name={name}"))
  with pytest.raises(InputError, match=r"schedule.name must be constant, but was cosine"):
    config.validate(changed(f"optimizer.name={name}", "schedule.name=cosine"))


# Sets


@pytest.mark.parametrize(
  ("items", "mean"),
  [
    (["data.name=mnist"], ()),
    (["data.mean=(0.5,)", "data.name=mnist", "data.std=(0.2,)"], (0.5,)),
    (["data.name=digits"], (config.DIGITS_MEAN,)),
    (["data.holdout=0.2"], (config.DIGITS_MEAN,)),
  ],
)
def test_moments_of_the_pixels_belong_to_their_data_set(items, mean):
  config_ = changed(*items)
  config.validate(config_)
  assert config_.data.mean == mean
  assert bool(config_.data.std) == bool(mean)


def test_the_moments_of_another_data_set_are_measured():
  other = changed("data.name=fashion_mnist")
  images = np.linspace(0, 255, 2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
  train = build.datasets.Dataset(images, np.array([0, 1]), 2, "other", "train")
  net = build.model(other, train)
  np.testing.assert_allclose((net.mean, net.std), build.pixel_statistics(images))


@pytest.mark.parametrize("items", [["data.mean=()"], ["data.name=mnist", "data.std=(0.2,)"]])
def test_one_moment_without_the_other_is_refused(items):
  with pytest.raises(InputError, match=r"data.mean and --config.data.std must both be given"):
    config.validate(changed(*items))


@pytest.mark.parametrize(
  ("items", "expected"),
  [
    (["set.radius=0.3", "set.box=(0, 1)"], ro.LInf(0.3, (0, 1))),
    (["set.name=L2", "set.radius=1"], ro.L2(1.0)),
    (
      ["set.name=GroupL21", "set.radius=0.5", "set.groups.name=patches", "set.groups.side=4"],
      ro.sets.GroupL21(0.5, ro.sets.patches(4)),
    ),
    (["set.name=L0", "set.k=3"], ro.sets.L0(3)),
    (["set.name=LInfL2", "set.radius_inf=0.1", "set.radius_2=1.0"], ro.sets.LInfL2(0.1, 1.0)),
  ],
)
def test_sets_on_the_command_line(items, expected):
  config_ = changed(*items)
  config.validate(config_)
  assert build.own_set(config_, np.zeros((2, *SHAPE))) == expected
  step = attacks.step_set(expected, 0.25)
  assert type(step) is (ro.L2 if isinstance(expected, ro.L2) else type(expected))


@pytest.mark.parametrize("name", ["L2", "l2", "'l2'"])
def test_a_ball_by_its_name_has_the_radius_of_its_norm(name):
  assert changed(f"set.name={name}").set.to_dict() == {"name": "L2", "radius": 0.5, "box": None}
  given = changed(f"set.name={name}", "set.radius=0.25")
  assert build.own_set(given, np.zeros((2, *SHAPE))) == ro.L2(0.25)
  for same in ("linf", "LINF", "LInf"):
    assert changed(f"set.name={same}", "set.box=(0, 1)").set.radius == 0.1


def test_a_ball_without_a_radius_is_refused():
  config_ = config.digits()
  config_.evaluation.radii.l2 = 0.0
  overrides.apply(config_, {"set.name": "L2"})
  with pytest.raises(InputError, match=r"--config.set.name=L2 needs --config.set.radius"):
    config.validate(config_)


def test_no_tangent_planes_are_learned_for_who_only_loads_a_net(monkeypatch):
  planes = ["set.name=TangentAt", "set.radius=0.5", "set.basis_of.name=local_pca"]
  config_ = changed(*planes, "set.basis_of.rank=3")
  config.validate(config_)

  def fit(*_):
    raise AssertionError("it takes minutes")

  monkeypatch.setattr(build.tangents, "fit", fit)
  assembly.initial_run(config_, build.splits(config_).train)
  with pytest.raises(AssertionError, match="minutes"):
    assembly.assemble(config_)


def test_the_adversary_in_words():
  assert config.adversary(config.digits()) == "l_inf 0.1"
  layerwise = changed("attack.name=layerwise", "attack.hidden_radius=0.02")
  assert config.adversary(layerwise) == "l_inf 0.1 and hidden layers by 0.02"
  assert config.adversary(changed("set.name=GroupL21", "set.radius=0.5")) == "GroupL21 0.5"
  assert config.adversary(changed("attack.name=none")) == ""


# What does not fit together


class Bare(nn.Module):
  """As a user may write it."""

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(10)(x.reshape(len(x), -1))


@pytest.mark.parametrize(
  ("items", "words"),
  [
    (["attack.name=power_iteration"], "must be trades or virtual, but was robust"),
    (["objective.name=virtual"], "flat at the clean example.*power_iteration"),
    (["objective.name=trades", "attack.name=none"], "but was none"),
    (["objective.name=gradient_penalty"], "attack.name must be none, but was steepest"),
    (["attack.name=free", "weights.perturbation=0.1"], "perturbation=0.0, but it was 0.1"),
    (["attack.name=free", "objective.name=mart"], "objective.name=robust, but it was mart"),
    (["attack.name=recall", "training.augment=('flip',)"], "needs --config.training.augment="),
    (["attack.name=recall", "penalty.name=operator_norm", "penalty.weight=1"], "penalty.name=none"),
    (["attack.name=recall", "set.name=L1", "set.radius=1"], "another than L1"),
    (["attack.name=random_signs", "set.name=L1", "set.radius=1"], "another than L1"),
    (
      [
        *("penalty.name=gradient_alignment", "penalty.weight=1", "data.labels=100"),
        *("objective.name=virtual", "attack.name=power_iteration"),
      ],
      "needs the labels of all examples, but --config.data.labels=100",
    ),
    (
      ["training.label_smoothing=0.1", "attack.name=pgd", "objective.name=mart"],
      "label_smoothing=0.1 makes soft labels, .*another than mart, virtual and ibp, but was mart",
    ),
    (
      ["training.augment=('flip', 'cutmix')", "objective.loss=one_vs_all"],
      "augment=.*cutmix.* makes soft labels, .*must be cross_entropy, but was one_vs_all",
    ),
    (["attack.name=liet", "objective.name=trades"], "flat at the clean example"),
    (["attack.dtype=bfloat16"], "attribute dtype, which Bare does not have"),
  ],
)
def test_what_does_not_fit_together_is_refused(items, words):
  config_ = changed(*items)
  config.validate(config_)
  net, optimizer = Bare(), build.optimizer(config_, 5)
  u = build.own_set(config_, np.zeros((2, *SHAPE)))
  with pytest.raises(InputError, match=words):
    build.update(config_, net, optimizer, u, SHAPE, 5)


def test_schedules_of_free_training_count_its_replays():
  """Or a cosine would be at its end after a fourth of the training."""
  config_ = changed("attack.name=free", "schedule.name=cosine", "training.epochs=2")
  choose(config_, "optimizer", "sgd", learning_rate=1.0)
  optimizer, params = build.optimizer(config_, 5), {"w": jnp.ones(())}
  state, rates = optimizer.init(params), []
  for _ in range(2 * 5 * 4):
    changes, state = optimizer.update({"w": jnp.ones(())}, state, params)
    rates.append(-float(changes["w"]))
  assert rates[0] == 1.0
  assert rates[20] == pytest.approx(0.5)
  assert 0 < rates[-1] < 0.01


def test_stops_that_could_not_be_are_refused():
  stop = ("training.on_overfitting=stop", "training.batch_size=96")
  with pytest.raises(InputError, match="on_overfitting=stop needs"):
    assembly.assemble(changed(*stop, "training.watch_examples=0"))
  with pytest.raises(InputError, match=r"on_overfitting=stop needs .* an adversary"):
    assembly.assemble(changed(*stop, "attack.name=none"))


def test_a_net_begins_on_any_number_of_devices_but_trains_on_a_divisor(monkeypatch):
  """Who only loads a net splits no training batch."""
  config_ = changed("training.batch_size=100")
  monkeypatch.setattr(assembly.jax, "device_count", lambda: 8)
  train = build.splits(config_).train
  assert int(assembly.initial_run(config_, train).state.step) == 0
  with pytest.raises(InputError, match="must be a multiple of the 8 devices, but was 100"):
    assembly.assemble(config_)


# The files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_is_valid_and_says_how_to_run_it(path):
  config_ = overrides.load(str(path))
  config.validate(config_)
  combinations.check(config_)
  words = overrides.module_of(str(path)).__doc__
  assert re.search(rf"python -m robust_opt.main --config=configs/{path.name}(:\w+)? ", words)
  build.optimizer(config_, steps_per_epoch=10)
  plain = config.as_dict(config_)
  assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.parametrize("data", ["cifar", "digits", "mnist"])
def test_configs_of_a_data_set_differ_in_the_attack_and_the_set_alone(data):
  plain = {kind: config.as_dict(load(f"{data}_{kind}")) for kind in KINDS}
  assert plain["standard"]["attack"] == {"name": "none"}
  for kind in KINDS[:3]:
    keys = {line.split(":")[0] for line in config.differences(plain["standard"], plain[kind])}
    assert all(key.startswith(("attack.", "set.", "evaluation.radii.")) for key in keys)
    # The run's own radius is the one that the other nets of the table are measured at.
    other = plain["standard" if kind != "linf" else "l2"]["evaluation"]["radii"]
    assert plain[kind]["set"]["radius"] == other[kind]
    assert plain[kind]["set"]["name"].lower() == kind


@pytest.mark.parametrize(
  ("name", "radius"),
  [
    # In standardized units: MNIST 0.2, 2 and 2; CIFAR-10 l_2 0.2 (the others scaled along).
    ("mnist_linf", 0.2 * 0.2752),
    ("mnist_l2", 2 * 0.2752),
    ("mnist_l1", 2 * 0.2752),
    ("cifar_linf", 0.02 * 0.2435),
    ("cifar_l2", 0.2 * 0.2435),
    ("cifar_l1", 0.2 * 0.2435),
  ],
)
def test_radii_of_the_papers_in_pixels(name, radius):
  assert load(name).set.radius == pytest.approx(radius, rel=1e-12)
  assert load(name).set.box is None  # the authors did not clip


def test_recipe_of_the_authors_mnist_code():
  c = load("mnist_linf")
  assert (c.seed, c.training.epochs, c.training.batch_size) == (1, 120, 100)
  assert (c.training.shuffle, c.training.augment) == (False, ())
  assert (c.model.name, c.model.input_batch_norm) == ("MnistCNN", False)
  assert (c.data.mean, c.data.std) == ((0.1000,), (0.2752,))
  optimizer = (c.optimizer.name, c.optimizer.learning_rate, c.optimizer.momentum)
  assert optimizer == ("sgd", 1e-3, 0.9)
  assert c.schedule.to_dict() == {"name": "inverse_time", "rate": 5e-6}
  assert (c.weights.decay, c.attack.train_mode) == (1e-3, False)


def test_recipe_of_the_authors_cifar_code():
  c = load("cifar_l2")
  assert (c.training.epochs, c.training.batch_size, c.training.augment) == (300, 128, ())
  assert (c.model.name, c.model.dropout, c.model.width) == ("VGG", True, 1.0)
  optimizer = (c.optimizer.name, c.optimizer.learning_rate, c.optimizer.momentum)
  assert optimizer == ("sgd", 0.1, 0.9)
  assert c.schedule.to_dict() == {"name": "halving", "epochs": 25.0}
  assert (c.weights.decay, c.attack.train_mode) == (5e-4, True)


def test_the_recipe_of_madry_et_al():
  c = load("mnist_madry")
  assert build.own_set(c, np.zeros((2, 28, 28, 1))) == ro.LInf(0.3, (0.0, 1.0))
  assert (c.attack.num_steps, c.attack.random_start) == (40, True)
  assert c.attack.relative_step * c.set.radius == pytest.approx(0.01)
  assert 99_000 < c.training.epochs * (55_000 // c.training.batch_size) < 101_000
  assert (c.optimizer.name, c.optimizer.learning_rate, c.training.batch_size) == ("adam", 1e-4, 50)


def test_differences_name_what_changed_and_ignore_places():
  old, new = config.as_dict(config.digits()), config.digits()
  new.data.data_dir, new.data.cache_dir = "/elsewhere", "/tmp/cache"
  new.data.train_files = "/elsewhere/set"
  assert config.differences(old, config.as_dict(new)) == []
  new.set.radius, new.seed = 0.2, 3
  new.evaluation.sweep = (0.0, 1.0)
  lines = config.differences(old, config.as_dict(new))
  assert lines[1:] == ["seed: 0 -> 3", "set.radius: 0.1 -> 0.2"]
  assert lines[0].startswith("evaluation.sweep: [0.0, 0.25,")
  assert lines[0].endswith("-> [0.0, 1.0]")
  extra = config.as_dict(config.digits())
  extra["model"]["width"] = 2
  assert config.differences(old, extra) == ["model.width: (absent) -> 2"]
  assert config.differences(extra, old) == ["model.width: 2 -> (absent)"]


@pytest.mark.parametrize("name", ["mnist_madry", "cifar_l2"])
def test_the_flags_of_a_config_give_it_again(name):
  expected = config.as_dict(load(name))
  flags = overrides.flags_of(config.flattened(expected))
  assert config.as_dict(overrides.config_of(config.__file__, flags)) == expected


def test_a_config_from_before_a_key_is_the_same_experiment():
  config_ = config.digits()
  assert "on_no_progress" not in config.as_dict(config_)["training"]
  config_.training.on_no_progress = "stop"
  changed_ = config.differences(config.as_dict(config.digits()), config.as_dict(config_))
  assert changed_ == ["training.on_no_progress: (absent) -> stop"]
  read = config.from_dict(config.as_dict(config.digits()))
  config.validate(read)
  assert read.training.on_no_progress == "say"
  assert config.as_dict(read) == config.as_dict(config.digits())


# Values

NAN, INF = float("nan"), float("inf")
BAD = [
  ("seed", (-1, 2**32), "an integer"),
  ("data.mean", ((NAN,), (INF, 0.0, 0.0)), "a tuple of finite numbers"),
  ("data.std", ((0.0,), (-1.0,), (NAN,)), "a tuple of finite numbers > 0"),
  ("data.holdout", (0.0, 1.0, -0.1, NAN), "0 < holdout < 1"),
  ("data.train_start", (-1,), ">= 0 (0: all)"),
  ("data.train_examples", (-1,), ">= 0 (0: all)"),
  ("data.test_examples", (-1,), ">= 0 (0: all)"),
  ("data.labels", (-10,), ">= 0 (0: all)"),
  ("attack.every", (0,), "an integer >= 1"),
  ("attack.warmup", (-0.1, 1.1, NAN), "a share of the training"),
  ("attack.dtype", ("float8", ""), "one of float32, bfloat16, float16"),
  ("optimizer.learning_rate", (0.0, -1.0, NAN, INF), "a finite number > 0"),
  ("weights.decay", (-1e-4, NAN, INF), "a finite number >= 0"),
  ("weights.max_column_norm", (-1.0, NAN, INF), "a finite number >= 0 (0: none)"),
  ("weights.average", (-0.1, 1.0, NAN), "0 <= average < 1"),
  ("weights.perturbation", (-1.0, NAN, INF), "a finite number >= 0 (0: none)"),
  ("training.epochs", (0, -3), "an integer >= 1"),
  ("training.batch_size", (0, -3), "an integer >= 1"),
  ("training.watch_examples", (-1,), "an integer >= 0 (0: none)"),
  ("training.on_overfitting", ("restore", ""), "say or stop"),
  ("training.on_no_progress", ("warn", ""), "say or stop"),
  ("training.steps_per_scan", (0,), "an integer >= 1"),
  ("training.augment", (("flip", "rotate"),), "a tuple of 'flip', 'crop'"),
  ("training.augment", (("mixup", "cutmix"),), "at most one of 'mixup', 'cutmix'"),
  ("training.label_smoothing", (-0.1, 1.0, NAN), "0 <= label_smoothing < 1"),
  ("evaluation.batch_size", (0,), "an integer >= 1"),
  ("evaluation.checkpoint", ("first",), "last or best"),
  ("evaluation.sweep", ((), (0.0, -1.0), (NAN,), (INF,), ("a",)), "finite multiples >= 0"),
  ("evaluation.radii.l2", (-1.0, NAN, INF), "a finite number >= 0, in pixels"),
  ("checkpoint.keep", (0,), "an integer >= 1"),
  ("checkpoint.every_epochs", (0,), "an integer >= 1"),
]


@pytest.mark.parametrize(
  ("key", "value", "allowed"),
  [(key, value, allowed) for key, values, allowed in BAD for value in values],
)
def test_bad_value_is_refused_in_a_sentence(key, value, allowed):
  config_ = config.digits()
  config_.update_from_flattened_dict({key: value})
  with pytest.raises(InputError) as refused:
    config.validate(config_)
  sentence = str(refused.value)
  assert sentence.startswith(f"--config.{key} must be ")
  assert allowed in sentence
  assert sentence.endswith(f"but was {value!r}.")


@pytest.mark.parametrize(
  ("items", "words"),
  [
    (["set.radius=-0.1"], "--config.set does not fit LInf: radius .*-0.1"),
    (["set.name=L0"], "--config.set.name=L0 needs --config.set.k"),
    (["attack.name=pgd", "attack.num_steps=0"], "num_steps must be an integer >= 1"),
    (["attack.name=lbfgs", "attack.num_steps=1"], r"an integer >= 2 \(one: name=steepest\)"),
    (["attack.name=pgd", "attack.relative_step=2.5"], "0 < step <= 2, but was 2.5"),
    (["schedule.name=halving", "schedule.epochs=0.0"], "does not fit halving: epochs"),
    (["schedule.name=piecewise", "schedule.factors=(0.1,)"], "piecewise: boundaries and factors"),
    (["schedule.name=piecewise", "schedule.boundaries=(0.5, 30)"], "before the end .* epoch 30"),
    (["schedule.name=piecewise", "schedule.boundaries=(0.5, -1)"], "piecewise: boundaries"),
    (["schedule.name=warmup_cosine", "schedule.warmup=1.0"], "0 <= warmup < 1, but was 1.0"),
    (["schedule.name=one_cycle", "schedule.div_factor=0.0"], "does not fit one_cycle: div_factor"),
    (["schedule.name=inverse_time", "schedule.rate=-1.0"], "does not fit inverse_time: rate"),
    (["objective.name=mart", "objective.beta=-1"], "does not fit mart: beta .* was -1.0"),
    (["objective.name=mixture", "objective.alpha=2"], "does not fit mixture: alpha .* was 2.0"),
    (["objective.loss=correct"], "one of cross_entropy, one_vs_all, .* was 'correct'"),
    (["set.name=TangentAt", "set.radius=1", "set.basis_of.name=cae"], "autoencoder or local_pca"),
  ],
)
def test_what_is_named_checks_its_own_values(items, words):
  with pytest.raises(InputError, match=words):
    config.validate(changed(*items))


def test_unknown_and_missing_keys_of_a_file():
  config_ = config.digits()
  with config_.unlocked():
    config_.training.epoch = 3
  with pytest.raises(InputError, match=r"has the unknown key training.epoch"):
    config.validate(config_)
  config_ = config.digits()
  with config_.unlocked():
    del config_.training.epochs
  with pytest.raises(InputError, match=r"lacks training.epochs"):
    config.validate(config_)


@pytest.mark.parametrize(
  ("section", "name", "meant"),
  [("schedule", "onecycle", "one_cycle"), ("optimizer", "Adam", "adam"), ("model", "n.A", "n:A")],
)
def test_a_name_that_is_nearly_right_is_answered_with_it(section, name, meant):
  with pytest.raises(InputError, match=rf"was '{name}'\. Did you mean {meant}\?$"):
    sections.find(section, name)


def test_lists_in_a_model_s_config_are_tuples_of_the_module():
  config_ = config.digits()
  config_.data.mean, config_.data.std = (0.3,), (0.4,)
  choose(config_, "model", "MLP", widths=[4, 3])
  net = build.model(config_, build.splits(config_).train)
  assert net == models.MLP(widths=(4, 3), mean=(0.3,), std=(0.4,))
  assert hash(net) == hash(models.MLP(widths=(4, 3), mean=(0.3,), std=(0.4,)))
