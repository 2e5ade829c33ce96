"""Which sections of a config go together: `check` refuses those that would not do what they say."""

from ml_collections import ConfigDict

from robust_opt import losses
from robust_opt.data import pipeline
from robust_opt.errors import InputError
from robust_opt.experiments import attacks, sections


def check(config: ConfigDict) -> None:
  """Raises an InputError for sections that do not fit together."""
  kind, name = config.attack.name, config.objective.name
  flat = name in ("trades", "virtual")
  if flat and not sections.make(config, "attack").random:
    raise InputError(
      f"--config.objective.name={name} ascends a divergence that is flat at the clean example: "
      f"--config.attack.name must be power_iteration, n_fgsm, or pgd with "
      f"--config.attack.random_start=True, but was {kind}."
    )
  if kind == "power_iteration" and not flat:
    raise InputError(
      f"--config.attack.name=power_iteration ascends what is flat at the clean example: "
      f"--config.objective.name must be trades or virtual, but was {name}."
    )
  if name == "gradient_penalty" and kind != "none":
    raise InputError(
      f"--config.objective.name=gradient_penalty has no attack: --config.attack.name must be none, "
      f"but was {kind}."
    )
  if kind == "none" and config.attack.get("warmup", 0.0) and name != "ibp":
    raise InputError(
      f"--config.attack.warmup={config.attack.warmup} lets the set of an adversary grow: without "
      f"one, --config.attack.name=none, --config.objective.name must be ibp, but was {name}."
    )
  needed: dict[str, object] = {}
  if kind in (*attacks.ONE_PASS, "layerwise"):
    needed |= {"objective.name": "robust", "penalty.name": "none"}
  if kind in attacks.ONE_PASS:
    needed |= {"weights.perturbation": 0.0}
  if kind == "recall":
    # A flipped image would recall another's directions; extra images have none.
    needed |= {"training.augment": (), "data.extra": ""}
  for key, value in needed.items():
    section, _, own = key.partition(".")
    if config[section][own] != value:
      raise InputError(
        f"--config.attack.name={kind} needs --config.{key}={value}, but it was "
        f"{config[section][own]}."
      )
  _check_labels(config)
  if config.penalty.name == "gradient_alignment" and config.data.labels and name == "virtual":
    raise InputError(
      f"--config.penalty.name=gradient_alignment needs the labels of all examples, but "
      f"--config.data.labels={config.data.labels} keeps that many."
    )


def _check_labels(config: ConfigDict) -> None:
  """Raises an InputError where soft labels would reach a loss of classes."""
  training, loss = config.training, config.objective.get("loss", "cross_entropy")
  mixed = any(name in pipeline.MIXTURES for name in training.augment)
  if not mixed and not training.label_smoothing:
    return
  key = "augment" if mixed else "label_smoothing"
  words = f"--config.training.{key}={training[key]} makes soft labels, for which --config.objective"
  if config.objective.name in ("mart", "virtual", "ibp"):
    raise InputError(
      f"{words}.name must be another than mart, virtual and ibp, but was {config.objective.name}."
    )
  if loss in losses.KINDS and loss != "cross_entropy":
    raise InputError(f"{words}.loss must be cross_entropy, but was {loss}.")
