"""Runs `python -m robust_opt.papers.shaham2015`; see robust_opt.papers.shaham2015.study."""

from absl import app

from robust_opt import commands
from robust_opt.papers.shaham2015.study import define_flags, main

if __name__ == "__main__":
  define_flags()
  app.run(commands.with_sentences(main), flags_parser=commands.parse)
