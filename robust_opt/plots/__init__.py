"""Figures of runs, studies and papers."""

from robust_opt import extras

extras.require("run", "matplotlib")
