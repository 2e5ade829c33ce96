"""Measures an accelerator: training throughput, seeds, AutoAttack, beside PyTorch."""
