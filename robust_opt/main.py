"""Trains a robust network, measures how robust it is, and leaves a work directory.

  python -m robust_opt.main                       # the digits that scikit-learn bundles
  python -m robust_opt.main --config=configs/mnist_linf.py --workdir=runs/mnist_linf \
      --config.training.epochs=5 --config.uncertainty.radius=0.1

Radii are in pixels of [0, 1]. The same command on the same --workdir resumes a run that was
stopped. On several hosts start it once a host, with --coordinator.
"""

import logging as python_logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from robust_opt import config as config_lib
from robust_opt import experiment, metrics, overrides
from robust_opt.errors import InputError, RunError

_CONFIG = config_flags.DEFINE_config_file("config", help_string="A config file, as in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Where results go; a new temporary one if empty.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", "", "host:port of process 0, or 'auto' to read the cluster's environment."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator=host:port.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator=host:port, from 0.")


def main(argv: Sequence[str]) -> None:
  """Runs one experiment and prints its table."""
  if len(argv) > 1:
    raise InputError(f"Every argument must be a --flag=value, but one was {argv[1]!r}.")
  _connect()
  workdir = Path(_WORKDIR.value or tempfile.mkdtemp(prefix="robust_opt_"))
  summary = experiment.run(_CONFIG.value, workdir)
  if jax.process_index() == 0:
    metrics.print_table(metrics.result_table(summary))
    print(f"Everything about this run is in {workdir}")


def _connect() -> None:
  """Joins the processes of one run, if there are several."""
  if _COORDINATOR.value == "auto":
    jax.distributed.initialize()
  elif _COORDINATOR.value:
    if _NUM_PROCESSES.value is None or _PROCESS_ID.value is None:
      raise InputError(
        f"--coordinator={_COORDINATOR.value} needs --num_processes and --process_id too, "
        f"but they were {_NUM_PROCESSES.value} and {_PROCESS_ID.value}."
      )
    jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)


def _main_or_sentence(argv: Sequence[str]) -> None:
  """A RunError, or a disk that is full, ends with its sentence and its code, not a traceback."""
  # Others tell of every file that they touch and every backend that is absent.
  package = str(Path(__file__).parent)
  logging.get_absl_handler().addFilter(
    lambda record: record.pathname.startswith(package) or record.levelno >= python_logging.WARNING
  )
  try:
    main(argv)
  except RunError as error:
    sys.exit(_say(error, error.exit_code))
  except OSError as error:
    sys.exit(_say(error, 1))


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    return overrides.parse(argv)
  except InputError as error:
    sys.exit(_say(error, error.exit_code))


def _say(error: Exception, code: int) -> int:
  print(f"robust_opt: {error}", file=sys.stderr)
  return code


def run() -> None:
  """The console entry point."""
  overrides.default_config(sys.argv, Path(config_lib.__file__))
  app.run(_main_or_sentence, flags_parser=_parse_flags)


if __name__ == "__main__":
  run()
