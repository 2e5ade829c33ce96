r"""Trains a robust network, measures how robust it is, and leaves a work directory.

  python -m robust_opt.main

trains on the digits that scikit-learn bundles, in half a minute. Any config, any key of it:

  python -m robust_opt.main --config=configs/mnist_linf.py --workdir=runs/mnist_linf \
    --config.training.epochs=5 --config.set.radius=0.1

The keys, with their meanings and defaults, are in robust_opt/experiments/config.py; radii are in
pixels of [0, 1]. The same command on the same --workdir resumes a run that was stopped, to the same
bits. On several hosts start it once a host, with --coordinator.
"""

import logging as python_logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from robust_opt.errors import InputError, RunError
from robust_opt.experiments import metrics, overrides
from robust_opt.experiments import run as run_lib

_CONFIG = overrides.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", "", "Where results go, or went; a new temporary one if empty."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", "", "host:port of process 0, or 'auto' to read the cluster's environment."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator=host:port.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator=host:port, from 0.")


def main(argv: Sequence[str]) -> None:
  """Runs one experiment and prints its table."""
  config = overrides.config_of(_CONFIG.value, argv[1:])
  _connect()
  workdir = Path(_WORKDIR.value or _new_temporary())
  if not _WORKDIR.value:
    logging.info("Pass --workdir=%s to resume this run if it is stopped.", workdir)
  summary = run_lib.run(config, workdir)
  if jax.process_index() == 0:
    metrics.print_table(metrics.result_table(summary))
    print(f"Everything about this run is in {workdir}")


def _new_temporary() -> str:
  """The name of a work directory that is made only when the input has proved good."""
  name = f"robust_opt_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}"
  return os.path.join(tempfile.gettempdir(), name)


def _connect() -> None:
  """Joins the processes of one run, if there are several."""
  coordinator, count, place = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  if not coordinator:
    if (count, place) != (None, None):
      raise InputError("--num_processes and --process_id need --coordinator=host:port, or auto.")
    return
  if not _WORKDIR.value:
    raise InputError(f"--coordinator={coordinator} needs --workdir, a directory that all share.")
  if coordinator == "auto":
    jax.distributed.initialize()
    return
  if count is None or place is None:
    raise InputError(
      f"--coordinator={coordinator} needs --num_processes and --process_id too, but they were "
      f"{count} and {place}."
    )
  if not (0 <= place < count and re.fullmatch(r".+:\d+", coordinator)):
    raise InputError(
      f"--coordinator must be host:port and --process_id one of 0 ... --num_processes - 1, but "
      f"they were {coordinator}, {place} and {count}."
    )
  jax.distributed.initialize(coordinator, count, place)


def _main_or_sentence(argv: Sequence[str]) -> None:
  """A RunError, or another failure of a disk, ends with a sentence and a code, not a traceback."""
  logging.get_absl_handler().addFilter(_worth_reading)
  try:
    main(argv)
  except RunError as error:
    sys.exit(_say(error, error.exit_code))
  except OSError as error:
    sys.exit(_say(error, 1))


def _worth_reading(record: python_logging.LogRecord) -> bool:
  """Others tell of every file they touch, and log with a traceback what they raise as well."""
  if record.pathname.startswith(str(Path(__file__).parent)):
    return True
  if record.levelno < python_logging.WARNING or record.exc_info:
    return False
  return not record.getMessage().startswith("OpenCV is not installed")  # we decode by Pillow


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    return overrides.parse(argv)
  except InputError as error:
    sys.exit(_say(error, error.exit_code))
  except SystemExit:  # absl has printed the help that was asked for, and calls that a failure
    sys.exit(0)


def _say(error: Exception, code: int) -> int:
  print(f"robust_opt: {error}", file=sys.stderr)
  return code


def run() -> None:
  """What `python -m robust_opt.main` runs."""
  app.run(_main_or_sentence, flags_parser=_parse_flags)


if __name__ == "__main__":
  run()
