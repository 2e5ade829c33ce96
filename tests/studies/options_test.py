"""Options become flags, and an override wins or is refused."""

import dataclasses
import re

import pytest

from robust_opt.errors import InputError
from robust_opt.experiments import config as config_lib
from robust_opt.studies.options import Options, configured, option, values


@dataclasses.dataclass(frozen=True)
class Preset:
  epochs: int = option("Of every training run.", low=1)


def options(**changed):
  return Options(dataset="digits", workdir=None, preset=Preset(3), **changed)


def settled(*override, **more):
  def settle(config):
    config.training.epochs = 3

  return configured(config_lib.digits(), options(override=override), settle, more)


def test_an_override_wins():
  config = settled("training.batch_size=50", robust_override=["optimizer.learning_rate=0.5"])
  assert (config.training.batch_size, config.optimizer.learning_rate) == (50, 0.5)
  assert config.training.epochs == 3
  assert values(options().preset) == {"epochs": 3}


def test_an_override_that_says_the_same_is_fine():
  assert settled("training.epochs=3").training.epochs == 3


@pytest.mark.parametrize("flag", ["override", "robust_override"])
def test_an_override_that_the_study_undoes_is_refused(flag):
  item = "training.epochs=5"
  given, more = ((item,), {}) if flag == "override" else ((), {flag: (item,)})
  words = f"--{flag}={item} would have no effect: this study itself sets training.epochs, here to 3"
  with pytest.raises(InputError, match=re.escape(words)):
    settled(*given, **more)


@pytest.mark.parametrize("item", ["training.shufle=True", "training.shuffle", "seed=x", "a.b.c=1"])
def test_an_override_that_does_not_fit_is_refused(item):
  with pytest.raises(InputError, match=re.escape(f"--override={item}")):
    settled(item)
