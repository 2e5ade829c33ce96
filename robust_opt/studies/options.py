"""What a study is told: every field of its preset and of its options is a flag of its command.

  @dataclasses.dataclass(frozen=True)
  class Preset:
    seeds: int = option("Networks of each kind.", low=1)
    epochs: int = option("Epochs of every training run.", low=1)

  PRESETS = {("quick", "digits"): Preset(1, 6), ("paper", "digits"): Preset(5, 60)}
  options = Options(dataset="digits", workdir=Path("runs/a"), preset=PRESETS["quick", "digits"])
  config = configured(config_lib.digits(), options, settle)

`robust_opt.commands.run_study` makes the command of them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from ml_collections import ConfigDict

from robust_opt.data import datasets
from robust_opt.errors import InputError
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import overrides

PresetT = TypeVar("PresetT")
OVERRIDE = "key=value on the config of {}, e.g. {}; may be repeated."


def option(
  help: str,
  default: Any = dataclasses.MISSING,
  *,
  low: float | None = None,
  choices: Sequence[str] = (),
) -> Any:
  """A field of a preset or of options, with the help of its flag and the values allowed.

  Without its flag it has the default, or the value of the preset.
  """
  metadata = {"help": help, "low": low, "choices": tuple(choices)}
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Generic[PresetT]):
  """What to run and where; a study with more options of its own derives from it."""

  dataset: str  # one that the study has a preset for
  workdir: Path  # a new directory, or that of the same study
  preset: PresetT  # the numbers of the study
  data_dir: str = ""  # where prepared data sets are; empty: TFDS' default
  cache_dir: str = ""  # where arrays are cached; empty: the user's cache directory
  override: tuple[str, ...] = option(
    OVERRIDE.format("every network", "training.batch_size=50"), default=()
  )

  @property
  def places(self) -> dict[str, Any]:
    """data_dir and cache_dir by name."""
    return {"data_dir": self.data_dir, "cache_dir": self.cache_dir}

  @property
  def epochs(self) -> int:
    """Of every training run, for a preset that has them."""
    return values(self.preset)["epochs"]


def values(settings: Any) -> dict[str, Any]:
  """A preset as a dictionary."""
  return dataclasses.asdict(settings)


def description(options: Options[Any]) -> dict[str, Any]:
  """What the results of a study depend on: data set, preset, overrides and a digest of the data."""
  override = {"override": list(options.override)} if options.override else {}
  data = datasets.fingerprints(options.dataset, **options.places)
  return {"dataset": options.dataset, **values(options.preset), **override, "data": data}


def configured(
  config: ConfigDict,
  options: Options[Any],
  settle: Callable[[ConfigDict], None],
  more: Mapping[str, Sequence[str]] = {},
) -> ConfigDict:
  """The config of one network of a study: overridden, then settled, so that no override is lost.

  `config` is changed in place; `settle` sets what makes this network the one that the study names;
  `more` holds further overrides by the name of their flag.

  Raises:
    InputError: an override does not fit the config, or `settle` sets another value.
  """
  config.data.data_dir, config.data.cache_dir = options.data_dir, options.cache_dir
  given = {"override": options.override, **more}
  for flag, items in given.items():
    overrides.apply_all(config, items, flag)
  asked = config_lib.flattened(config.to_dict())
  settle(config)
  settled = config_lib.flattened(config.to_dict())
  for flag, item in [(flag, item) for flag, items in given.items() for item in items]:
    key = item.partition("=")[0]
    value = settled.get(key, "nothing")
    if settled.get(key) != asked.get(key):
      words = f"would have no effect: this study itself sets {key}, here to {value!r}."
      raise InputError(f"--{flag}={item} {words}")
  config_lib.validate(config)
  return config
