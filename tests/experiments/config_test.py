"""The configs, the papers' values in them, and the sentences that refuse the rest."""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from robust_opt import models
from robust_opt.errors import InputError
from robust_opt.experiments import assembly, build, config, updates
from robust_opt.objectives import RobustObjective

FOLDER = Path(__file__).parents[2] / "configs"
# The nets of Shaham et al.; other methods and variants have names of their own.
NAMES = [f"{d}_{u}" for d in ("cifar", "digits", "mnist") for u in ("l1", "l2", "linf", "standard")]
FILES = [FOLDER / f"{name}.py" for name in NAMES]
METHODS = sorted(set(FOLDER.glob("*.py")) - set(FILES) - set(FOLDER.glob("*_variant.py")))


IMAGES = np.zeros((30, 8, 8, 1), np.uint8)


def module(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  loaded = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(loaded)
  return loaded


def load(name):
  return module(FOLDER / f"{name}.py").get_config()


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_other_methods_are_valid_and_say_how_to_run_them(path):
  loaded = module(path)
  config_ = loaded.get_config()
  config.validate(config_)
  assert f"python -m robust_opt.main --config=configs/{path.name} " in loaded.__doc__
  assert isinstance(updates.objective(config_), RobustObjective)
  build.optimizer(config_, steps_per_epoch=10)
  updates.training_attack(config_, models.MLP(), IMAGES, steps_per_epoch=10)


def test_the_recipe_of_madry_et_al():
  c = module(FOLDER / "mnist_madry.py").get_config()
  assert c.uncertainty.name == "linf"
  assert c.uncertainty.radius == 0.3
  assert c.attack.num_steps == 40
  assert c.attack.relative_step * c.uncertainty.radius == pytest.approx(0.01)
  assert c.attack.random_start
  assert c.uncertainty.box
  steps = c.training.epochs * (55_000 // c.training.batch_size)
  assert 99_000 < steps < 101_000
  assert (c.optimizer.name, c.optimizer.learning_rate, c.training.batch_size) == ("adam", 1e-4, 50)


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"name": "robust", "beta": 2.0}, "does not fit robust.*beta"),
    ({"name": "mart", "beta": -1.0}, "beta .* was -1.0"),
    ({"name": "virtual"}, "flat at the clean example.*power_iteration"),
    ({"name": "mixture", "alpha": 2.0}, "alpha .* was 2.0"),
    ({"name": "robust", "loss": "correct"}, "one of cross_entropy, one_vs_all, .* was 'correct'"),
    ({"name": "mart", "loss": "one_vs_all"}, "does not fit mart.*loss"),
    ({"name": "losses"}, "one of gradient_penalty, mart, .* was 'losses'"),
  ],
)
def test_objectives_that_cannot_be_built(given, words):
  config_ = config.digits()
  config_.objective = ConfigDict(given)
  with pytest.raises(InputError, match=words):
    updates.objective(config_)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"attack.name": "power_iteration"}, "must be trades or virtual, but was 'robust'"),
    ({"attack.name": "n_fgsm", "attack.num_steps": 2}, "num_steps must be 1, but was 2"),
    ({"attack.name": "random_signs", "attack.num_steps": 2}, "num_steps must be 1, but was 2"),
    ({"objective.name": "gradient_penalty"}, "must be 0, but were 1 and 0.0"),
    (
      {"objective.name": "gradient_penalty", "attack.num_steps": 0, "uncertainty.warmup": 0.5},
      "must be 0, but were 0 and 0.5",
    ),
    (
      {"objective.name": "trades", "attack.num_steps": 0, "attack.random_start": True},
      "one step or more",
    ),
    ({"attack.name": "free", "uncertainty.warmup": 0.5}, "uncertainty.warmup must be 0.0"),
    ({"attack.name": "free", "training.weight_perturbation": 0.1}, "must be 0.0, but was 0.1"),
    ({"attack.name": "free", "objective.name": "mart"}, "must be robust, but was 'mart'"),
    ({"attack.name": "recall", "attack.num_steps": 2}, "attack.num_steps must be 1, but was 2"),
    ({"attack.name": "recall", "training.augment": ("flip",)}, "training.augment must be ()"),
    ({"attack.name": "recall", "penalty.weight": 1.0}, "penalty.weight must be 0.0, but was 1.0"),
    ({"attack.name": "recall", "uncertainty.name": "l1"}, "must be linf or l2, but was l1"),
    ({"attack.name": "random_signs", "uncertainty.name": "l1"}, "must be linf or l2, but was l1"),
    (
      {"attack.name": "recall", "objective.loss": "hinge"},
      "one of cross_entropy, .*'hinge'",
    ),
    ({"attack.name": "free", "objective.alpha": 0.5}, "config.objective does not fit robust"),
    (
      {
        "penalty.name": "gradient_alignment",
        "penalty.weight": 1.0,
        "dataset.labels": 100,
        "objective.name": "virtual",
        "attack.name": "power_iteration",
      },
      "needs the labels of all examples, but --config.dataset.labels=100",
    ),
    ({"attack.name": "free", "attack.every": 2}, "attack.every must be 1, but was 2"),
    ({"uncertainty.tangents": "local_pca"}, "uncertainty.name must be l2, but was 'linf'"),
    (
      {"uncertainty.tangents": "local_pca", "uncertainty.name": "l2", "attack.num_steps": 7},
      "attack.num_steps must be 1, but was 7",
    ),
    ({"uncertainty.hidden_radius": 0.1, "attack.num_steps": 3}, "num_steps must be 1, but was 3"),
    ({"attack.dtype": "bfloat16"}, "attribute dtype, which SoftmaxRegression has not"),
  ],
)
def test_what_does_not_fit_together_is_refused(changes, words):
  config_ = config.digits()
  with config_.unlocked():
    config_.update_from_flattened_dict(changes)
  config.validate(config_)
  net, optimizer = models.SoftmaxRegression(), build.optimizer(config_, 5)
  with pytest.raises(InputError, match=words):
    updates.make(config_, net, optimizer, IMAGES, 5)


def test_schedules_of_free_training_count_its_replays():
  """Or a cosine would be at its end after a fourth of the training."""
  config_ = config.digits()
  config_.attack.name, config_.attack.num_steps = "free", 4
  config_.optimizer.schedule, config_.optimizer.learning_rate = "cosine", 1.0
  config_.optimizer.kwargs = ConfigDict({"momentum": 0.0})
  config_.training.epochs = 2
  optimizer, params = build.optimizer(config_, 5), {"w": jnp.ones(())}
  state, rates = optimizer.init(params), []
  for _ in range(2 * 5 * 4):
    updates, state = optimizer.update({"w": jnp.ones(())}, state, params)
    rates.append(-float(updates["w"]))
  assert rates[0] == 1.0
  assert rates[20] == pytest.approx(0.5)
  assert 0 < rates[-1] < 0.01


def test_averages_and_stops_that_could_not_be_are_refused():
  config_ = config.mnist()
  config_.dataset.name = "digits"
  config_.update_from_flattened_dict(
    {"training.on_overfitting": "stop", "training.watch_examples": 0, "training.batch_size": 96}
  )
  config_.model = ConfigDict({"name": "SoftmaxRegression", "mean": (0.0,), "std": (1.0,)})
  with pytest.raises(InputError, match="on_overfitting=stop needs"):
    assembly.assemble(config_)
  config_.training.watch_examples, config_.attack.num_steps = 100, 0
  with pytest.raises(InputError, match=r"on_overfitting=stop needs .* an adversary"):
    assembly.assemble(config_)


def test_a_net_begins_on_any_number_of_devices_but_trains_on_a_divisor(monkeypatch):
  """Who only loads a net splits no training batch."""
  config_ = config.digits()
  config_.training.batch_size = 100
  monkeypatch.setattr(assembly.jax, "device_count", lambda: 8)
  train = build.splits(config_).train
  assert int(assembly.initial_run(config_, train).state.step) == 0
  with pytest.raises(InputError, match="must be a multiple of the 8 devices, but was 100"):
    assembly.assemble(config_)


def test_no_tangent_planes_are_learnt_for_who_only_loads_a_net(monkeypatch):
  config_ = config.digits()
  config_.uncertainty.name, config_.uncertainty.tangents = "l2", "autoencoder"

  def fit(*_):
    raise AssertionError("it takes minutes")

  monkeypatch.setattr(updates.tangents, "fit", fit)
  assembly.initial_run(config_, build.splits(config_).train)
  with pytest.raises(AssertionError, match="minutes"):
    assembly.assemble(config_)


def test_the_adversary_in_words():
  config_ = config.digits()
  assert config.adversary(config_) == "l_inf 0.1"
  config_.uncertainty.hidden_radius = 0.02
  assert config.adversary(config_) == "l_inf 0.1 and hidden layers by 0.02"
  config_.uncertainty.hidden_radius = 0.0
  config_.uncertainty.name, config_.uncertainty.tangents = "l2", "local_pca"
  assert config.adversary(config_) == "l_2 0.1 along tangent planes"
  config_.attack.num_steps = 0
  assert config.adversary(config_) == ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_is_valid_and_says_how_to_run_it(path):
  loaded = module(path)
  config_ = loaded.get_config()
  config.validate(config_)
  command = f"python -m robust_opt.main --config=configs/{path.name} "
  assert command in loaded.__doc__
  name, kind = path.stem.split("_")
  assert config_.dataset.name == {"cifar": "cifar10"}.get(name, name)
  if kind == "standard":
    assert config_.attack.num_steps == 0
  else:
    assert (config_.attack.num_steps, config_.uncertainty.name) == (1, kind)
    # The run's own radius is the one that the other nets of the table are measured at.
    assert config_.uncertainty.radius == config_.evaluation.radii[kind]
  assert config_.model.name in models.__all__
  assert updates.objective(config_) is not None
  build.optimizer(config_, steps_per_epoch=10)


@pytest.mark.parametrize(
  ("name", "radius"),
  [
    # In standardised units: MNIST 0.2, 2 and 2; CIFAR-10 l_2 0.2 (the others scaled along).
    ("mnist_linf", 0.2 * 0.2752),
    ("mnist_l2", 2 * 0.2752),
    ("mnist_l1", 2 * 0.2752),
    ("cifar_linf", 0.02 * 0.2435),
    ("cifar_l2", 0.2 * 0.2435),
    ("cifar_l1", 0.2 * 0.2435),
  ],
)
def test_radii_of_the_papers_in_pixels(name, radius):
  assert load(name).uncertainty.radius == pytest.approx(radius, rel=1e-12)
  assert load(name).uncertainty.box is False  # the authors did not clip


def test_recipe_of_the_authors_mnist_code():
  for kind in ("standard", "linf", "l2", "l1"):
    config_ = load(f"mnist_{kind}")
    assert (config_.seed, config_.training.epochs, config_.training.batch_size) == (1, 120, 100)
    assert config_.training.shuffle is False
    assert config_.training.augment == ()
    assert config_.model.name == "MnistCNN"
    assert config_.model.input_batch_norm is False
    assert (config_.model.mean, config_.model.std) == ((0.1000,), (0.2752,))
    optimizer = config_.optimizer
    assert (optimizer.name, optimizer.kwargs.to_dict()) == ("sgd", {"momentum": 0.9})
    assert optimizer.learning_rate == 1e-2 * (1 - 0.9) or optimizer.learning_rate == 1e-3
    assert (optimizer.schedule, optimizer.inverse_time_rate) == ("inverse_time", 5e-6)
    assert optimizer.weight_decay == 1e-3
    assert config_.attack.train_mode is False


def test_recipe_of_the_authors_cifar_code():
  for kind in ("standard", "linf", "l2", "l1"):
    config_ = load(f"cifar_{kind}")
    assert (config_.training.epochs, config_.training.batch_size) == (300, 128)
    assert config_.training.augment == ()  # flips were disabled
    assert (config_.model.name, config_.model.dropout, config_.model.width) == ("VGG", True, 1.0)
    optimizer = config_.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (0.1, 5e-4)
    assert (optimizer.schedule, optimizer.halving_epochs) == ("halving", 25.0)
    assert optimizer.kwargs.momentum == 0.9
    assert config_.attack.train_mode is True


def test_default_config_is_the_digits():
  assert (
    config.differences(config.as_dict(config.get_config()), config.as_dict(config.digits())) == []
  )
  config.validate(config.get_config())


@pytest.mark.parametrize("name", NAMES)
def test_as_dict_is_json(name):
  plain = config.as_dict(load(name))
  assert json.loads(json.dumps(plain, allow_nan=False)) == plain
  assert plain["evaluation"]["sweep"] == list(load(name).evaluation.sweep)


def test_configs_of_a_data_set_differ_in_the_attack_alone():
  plain = {kind: config.as_dict(load(f"mnist_{kind}")) for kind in ("standard", "linf", "l2", "l1")}
  for kind in ("linf", "l2", "l1"):
    changed = {line.split(":")[0] for line in config.differences(plain["standard"], plain[kind])}
    assert changed <= {"attack.num_steps", "uncertainty.name", "uncertainty.radius"}
    assert "attack.num_steps" in changed


def test_differences_name_what_changed_and_ignore_places():
  old, new = config.as_dict(config.digits()), config.digits()
  new.dataset.data_dir, new.dataset.cache_dir = "/elsewhere", "/tmp/cache"
  new.dataset.train_files = "/elsewhere/set"
  assert config.differences(old, config.as_dict(new)) == []
  new.uncertainty.radius, new.seed = 0.2, 3
  new.evaluation.sweep = (0.0, 1.0)
  lines = config.differences(old, config.as_dict(new))
  assert lines[1:] == ["seed: 0 -> 3", "uncertainty.radius: 0.1 -> 0.2"]
  assert lines[0].startswith("evaluation.sweep: [0.0, 0.25,")
  assert lines[0].endswith("-> [0.0, 1.0]")
  extra = config.as_dict(config.digits())
  extra["model"]["width"] = 2
  assert config.differences(old, extra) == ["model.width: (absent) -> 2"]
  assert config.differences(extra, old) == ["model.width: 2 -> (absent)"]


NAN, INF = float("nan"), float("inf")
BAD = [
  ("dataset.holdout", (0.0, 1.0, -0.1, NAN), "0 < holdout < 1"),
  ("dataset.train_start", (-1,), "an integer >= 0"),
  ("dataset.train_examples", (-1,), ">= 0 (0: all)"),
  ("dataset.test_examples", (-1,), ">= 0 (0: all)"),
  ("dataset.labels", (-10,), ">= 0 (0: all)"),
  ("uncertainty.tangents", ("cae", ""), "one of none, autoencoder, local_pca"),
  ("uncertainty.tangent_rank", (0,), "an integer >= 1"),
  ("uncertainty.hidden_radius", (-0.1, NAN, INF), "a finite number >= 0 (0: none)"),
  ("attack.every", (0,), "an integer >= 1"),
  ("attack.dtype", ("float8", ""), "one of float32, bfloat16, float16"),
  ("penalty.name", ("l2", ""), "one of operator_norm, layer_jacobian, gradient_alignment"),
  ("penalty.weight", (-1.0, NAN, INF), "a finite number >= 0 (0: none)"),
  ("uncertainty.name", ("l3", ""), "one of linf, l2, l1"),
  ("uncertainty.radius", (-0.1, NAN, INF), "finite number >= 0, in pixels of [0, 1]"),
  ("uncertainty.warmup", (-0.1, 1.1, NAN), "0 <= warmup <= 1"),
  ("attack.name", ("fgsm", "", "core"), "one of pgd, frank_wolfe, lbfgs, power_iteration"),
  ("attack.num_steps", (-1,), "an integer >= 0 (0: standard training)"),
  ("attack.relative_step", (0.0, -1.0, 2.5, NAN), "0 < step <= 2"),
  ("optimizer.learning_rate", (0.0, -1.0, NAN, INF), "a finite number > 0"),
  ("optimizer.schedule", ("linear", ""), "one of constant, inverse_time, halving"),
  ("optimizer.inverse_time_rate", (-1.0, NAN, INF), "a finite number >= 0"),
  ("optimizer.halving_epochs", (0.0, -1.0, NAN, INF), "a finite number of epochs > 0"),
  ("seed", (-1, 2**32), "an integer"),
  ("model.mean", ((NAN,), (INF, 0.0, 0.0)), "a tuple of finite numbers"),
  ("model.std", ((0.0,), (-1.0,), (NAN,)), "a tuple of finite numbers > 0"),
  ("optimizer.weight_decay", (-1e-4, NAN, INF), "a finite number >= 0"),
  ("optimizer.max_column_norm", (-1.0, NAN, INF), "a finite number >= 0 (0: none)"),
  ("training.epochs", (0, -3), "an integer >= 1"),
  ("training.batch_size", (0, -3), "an integer >= 1"),
  ("optimizer.average", (-0.1, 1.0, NAN), "0 <= average < 1"),
  ("training.weight_perturbation", (-1.0, NAN, INF), "a finite number >= 0 (0: none)"),
  ("training.watch_examples", (-1,), "an integer >= 0 (0: none)"),
  ("training.on_overfitting", ("restore", ""), "say or stop"),
  ("training.steps_per_scan", (0,), "an integer >= 1"),
  ("training.augment", (("flip", "rotate"),), "a tuple of 'flip', 'crop'"),
  ("evaluation.batch_size", (0,), "an integer >= 1"),
  ("evaluation.checkpoint", ("first",), "last or best"),
  ("evaluation.sweep", ((), (0.0, -1.0), (NAN,), (INF,), ("a",)), "finite multiples >= 0"),
  ("evaluation.radii.linf", (-1.0, NAN, INF), "a finite number >= 0, in pixels"),
  ("evaluation.radii.l2", (-1.0, NAN, INF), "a finite number >= 0, in pixels"),
  ("evaluation.radii.l1", (-1.0, NAN, INF), "a finite number >= 0, in pixels"),
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


def test_every_rule_is_tried():
  assert {key for key, _, _ in BAD} == set(config._RULES)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("uncertainty.radius", 0.0),
    ("attack.num_steps", 0),
    ("attack.relative_step", 2.0),
    ("dataset.train_examples", 0),
    ("optimizer.weight_decay", 0.0),
    ("training.augment", ()),
    ("training.augment", ("flip", "crop")),
    ("evaluation.sweep", (0.0,)),
    ("evaluation.radii.l1", 0.0),
  ],
)
def test_values_on_the_edge_are_allowed(key, value):
  config_ = config.digits()
  config_.update_from_flattened_dict({key: value})
  config.validate(config_)


@pytest.mark.parametrize("name", NAMES)
def test_config_invents_no_key(name):
  """A key that is misspelt in a file would be set beside the real one, and change nothing."""
  flat = set(config.flattened(config.as_dict(load(name))))
  known = set(config.flattened(config.as_dict(config.base())))
  assert {key for key in flat ^ known if not key.startswith("model.")} == set()
  model = load(name).model.to_dict()
  getattr(models, model.pop("name"))(**model)  # every attribute is the class's own


def test_lists_in_a_model_s_config_are_tuples_of_the_module():
  config_ = config.digits()
  channels = {"mean": [0.3], "std": [0.4]}
  config_.model = ConfigDict({"name": "MLP", "widths": [4, 3], **channels})
  net = build.model(config_, build.splits(config_).train)
  assert net == models.MLP(widths=(4, 3), mean=(0.3,), std=(0.4,))
  assert hash(net) == hash(models.MLP(widths=(4, 3), mean=(0.3,), std=(0.4,)))
