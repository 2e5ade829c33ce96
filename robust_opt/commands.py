"""What the commands that evaluate have in common: their flags, and a sentence for an error."""

import logging as python_logging
import sys
from collections.abc import Callable, Sequence

from absl import flags, logging

from robust_opt.errors import InputError, RunError


def define_subject_flags() -> None:
  """The flags of subject.load."""
  flags.DEFINE_string("workdir", "", "Of a finished run of robust_opt.main; or --model and --data.")
  flags.DEFINE_string("model", "", "module:function, x [B, ...] in [0, 1] -> logits [B, C].")
  flags.DEFINE_string("data", "", "An .npz file with x [N, ...] in [0, 1] and y [N].")
  flags.DEFINE_string("data_dir", "", "Where prepared sets lie; empty: the run's own.")
  flags.DEFINE_string("cache_dir", "", "Where arrays are cached; empty: the run's own.")
  flags.DEFINE_enum("checkpoint", "", ["", "last", "best"], "Of the run; empty: its config's.")


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
  try:
    return flags.FLAGS(list(argv))
  except flags.Error as error:
    print(f"robust_opt: {str(error).splitlines()[0]}", file=sys.stderr)
    sys.exit(InputError.exit_code)
  except SystemExit:  # absl has printed the help that was asked for, and calls that a failure
    sys.exit(0)
