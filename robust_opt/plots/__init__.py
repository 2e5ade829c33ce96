"""Figures of runs, studies and papers."""
