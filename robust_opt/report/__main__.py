"""Runs `python -m robust_opt.report`; see robust_opt.report.page."""

from absl import app

from robust_opt import commands
from robust_opt.report.page import __doc__ as description
from robust_opt.report.page import define_flags, main

__doc__ = description  # for --help

if __name__ == "__main__":
  define_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
