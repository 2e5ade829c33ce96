"""MNIST, manifold tangents: one step along the manifold of the data.

Rifai, Dauphin, Vincent, Bengio and Muller 2011, as Shaham et al. 2015 read it. The planes come from
a contractive auto-encoder, or with --config.uncertainty.tangents=local_pca from the neighbors.

  python -m robust_opt.main --config=configs/mnist_manifold_tangent.py --workdir=RUN

Among all methods, at equal cost: python -m robust_opt.papers.family.
"""

from ml_collections import ConfigDict

from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config() -> ConfigDict:
  config = mnist_methods()
  methods.manifold_tangent(config)
  return config
