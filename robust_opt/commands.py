"""What commands have in common: the flags of evaluations and of studies, a sentence for errors."""

import logging as python_logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags, logging

from robust_opt.errors import InputError, RunError

Numbers = TypeVar("Numbers", bound=Any)  # a NamedTuple of a study


# The flags of subject.load.
SUBJECT = (
  "workdir",
  "model",
  "data",
  "draws",
  "data_dir",
  "cache_dir",
  "train_files",
  "checkpoint",
)


def source() -> dict[str, Any]:
  """What the flags of define_subject_flags say, as subject.load takes it."""
  return {name: flags.FLAGS[name].value or "" for name in SUBJECT}


def define_subject_flags() -> None:
  """The flags of subject.load."""
  flags.DEFINE_string("workdir", "", "Of a finished run of robust_opt.main; or --model and --data.")
  flags.DEFINE_string("model", "", "module:function, x [B, ...] in [0, 1] -> logits [B, C].")
  flags.DEFINE_string("data", "", "An .npz file with x [N, ...] in [0, 1] and y [N].")
  words = "The --model is random, (x, key) -> logits: average so many draws. 0: deterministic."
  flags.DEFINE_integer("draws", 0, words, lower_bound=0)
  flags.DEFINE_string("data_dir", "", "Where prepared sets lie; empty: the run's own.")
  flags.DEFINE_string("cache_dir", "", "Where arrays are cached; empty: the run's own.")
  words = "Where the constructed data that a run learnt from lie; empty: the run's own."
  flags.DEFINE_string("train_files", "", words)
  flags.DEFINE_enum("checkpoint", None, ["last", "best"], "Of the run; not given: its config's.")


def define_study_flags(datasets: Iterable[str]) -> None:
  """The flags that every study of a paper has; those of its numbers are its own."""
  flags.DEFINE_enum("dataset", "digits", sorted(datasets), "What the nets learn.")
  flags.DEFINE_enum("preset", "quick", ["quick", "paper"], "Minutes, or hours.")
  flags.DEFINE_string("workdir", None, "New, or that of the same study.", required=True)
  flags.DEFINE_string("data_dir", "", "Where prepared sets lie; empty: TFDS' default.")
  flags.DEFINE_string("cache_dir", "", "Where arrays are cached; empty: the user's.")


def numbers_of(presets: Mapping[tuple[str, str], Numbers]) -> Numbers:
  """The numbers of the preset for the data set, but those that have a flag of their name."""
  given = flags.FLAGS
  numbers = presets[given.preset, given.dataset]
  values = {name: given[name].value for name in numbers._fields}
  return numbers._replace(**{name: value for name, value in values.items() if value is not None})


def study_of(presets: Mapping[tuple[str, str], Numbers]) -> dict[str, Any]:
  """What the flags of every study say, by the names of its Options."""
  given = flags.FLAGS
  return {
    "dataset": given.dataset,
    "workdir": Path(given.workdir),
    "numbers": numbers_of(presets),
    "data_dir": given.data_dir,
    "cache_dir": given.cache_dir,
  }


def refuse_positional(argv: Sequence[str]) -> None:
  """A value without its flag is a mistake."""
  if len(argv) > 1:
    raise InputError(f"Every argument must be a --flag=value, but one was {argv[1]!r}.")


def with_sentences(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """A RunError, or a failure of a disk, ends with one sentence and a code, not a traceback."""

  def wrapped(argv: list[str]) -> None:
    # Orbax and JAX tell of every file that they touch and every backend that is absent.
    logging.get_absl_handler().addFilter(lambda record: record.levelno >= python_logging.WARNING)
    try:
      main(argv)
    except (RunError, OSError) as error:
      print(f"robust_opt: {error}", file=sys.stderr)
      sys.exit(error.exit_code if isinstance(error, RunError) else 1)

  return wrapped


def parse(argv: Sequence[str]) -> list[str]:
  """absl's flags, an unknown one or a value that does not fit as one sentence."""
  # absl's help lists what the program's own file defines; these are its flags as well.
  for flag in flags.FLAGS.flags_by_module_dict().get(__name__, ()):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  try:
    return flags.FLAGS(list(argv))
  except flags.Error as error:
    print(f"robust_opt: {str(error).splitlines()[0]}", file=sys.stderr)
    sys.exit(InputError.exit_code)
  except SystemExit:  # absl has printed the help that was asked for, and calls that a failure
    sys.exit(0)
