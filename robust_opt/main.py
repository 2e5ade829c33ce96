r"""Trains a robust network, evaluates it, and writes a work directory.

  python -m robust_opt.main

trains on the digits that scikit-learn bundles, in half a minute. With a config and overrides:

  python -m robust_opt.main --config=configs/mnist_linf.py --workdir=runs/mnist_linf \
    --config.training.epochs=5 --config.set.radius=0.1

The keys, with their meanings and defaults, are in robust_opt/experiments/config.py; radii are in
pixels of [0, 1]. The same command on the same --workdir resumes a stopped run, with bit-identical
results. On several hosts start it once per host, with --coordinator.
"""

import logging as python_logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from robust_opt import commands
from robust_opt.experiments import config as config_lib
from robust_opt.experiments import metrics, overrides
from robust_opt.experiments import run as run_lib

# --config.key=value are no flags, but arguments of overrides.config_of.
_CONFIG = flags.DEFINE_string(
  "config",
  config_lib.__file__,
  "A config file, as in configs/, or file.py:argument of its get_config; and "
  "--config.key=value for every key of it.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "", "New or of the run to resume; empty: a new temporary one."
)
commands.define_process_flags()


def main(argv: Sequence[str]) -> None:
  """Runs one experiment and prints its table."""
  config = overrides.config_of(_CONFIG.value, argv[1:])
  commands.connect(shared=bool(_WORKDIR.value))
  workdir = Path(_WORKDIR.value or _new_temporary())
  if not _WORKDIR.value:
    logging.info("Pass --workdir=%s to resume this run if it is stopped.", workdir)
  summary = run_lib.run(config, workdir)
  if jax.process_index() == 0:
    metrics.print_table(metrics.result_table(summary))
    headline = metrics.headline(summary)
    metrics.print_sentences(headline.sentence, headline.warning)
    for line in [*metrics.closing_lines(summary), *metrics.next_steps(workdir, summary)]:
      print(line)


def _new_temporary() -> str:
  """The name of a work directory, which is created after the input has been validated."""
  name = f"robust_opt_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}"
  return os.path.join(tempfile.gettempdir(), name)


def is_shown(record: python_logging.LogRecord) -> bool:
  """Log records of this package, and warnings of others without an exception."""
  if record.pathname.startswith(str(Path(__file__).parent)):
    return True
  if record.levelno < python_logging.WARNING or record.exc_info:
    return False
  return not record.getMessage().startswith("OpenCV is not installed")  # Pillow decodes


def parse(argv: Sequence[str]) -> list[str]:
  """Parses absl's flags; returns the name of the program and the overrides of the config."""
  rest, items = overrides.split(argv)
  return [*commands.parse(rest), *items]


command = commands.with_sentences(main, is_shown)

if __name__ == "__main__":
  app.run(command, flags_parser=parse)
