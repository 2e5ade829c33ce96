"""Exact answers: robust linear models, Gaussian models, linear explanations."""
