"""CIFAR-10, l_inf 8/255: aims at 50 % under AutoAttack after five minutes on one H100 or H200.

Single-step training from label information, Pan et al. 2025 (ICCV), as configs/cifar.py:liet, but
in bfloat16. Published: 50.11 % after 43.4 minutes of training, ResNet-18, 100 epochs, on the
authors' GPU (log of the FastAT benchmark, arXiv 2604.22853, seed 0).

  python -m benchmarks.cifar_fast --output=runs/cifar_fast

trains for at most five minutes, attacks all test images and writes the result, within nine minutes
in all. Not run yet: it needs an accelerator. Without the attack:

  python -m robust_opt.main --config=configs/cifar_fast.py --workdir=RUN
"""

from pathlib import Path

from ml_collections import ConfigDict

from robust_opt.experiments import overrides


def get_config() -> ConfigDict:
  config = overrides.load(f"{Path(__file__).with_name('cifar.py')}:liet")
  config.training.precision = "bfloat16"
  config.data.holdout = 0.01
  config.training.watch_examples = 0  # evaluations are in float32, which takes longer
  config.evaluation.radii.update(l2=0.0, l1=0.0)
  config.evaluation.checkpoint = "last"
  config.checkpoint.every_epochs = 100
  return config
