"""Runs the study of robust_opt.papers.goodfellow2015.study, which describes it."""

from robust_opt import commands
from robust_opt.papers.goodfellow2015 import study

__doc__ = study.__doc__  # for --help

if __name__ == "__main__":
  commands.run_study(study.Options, study.PRESETS, study.run)
