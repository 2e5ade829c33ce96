"""MNIST, one network and budget, every method: --config=configs/mnist.py:NAME.

  python -m robust_opt.main --config=configs/mnist.py:trades --workdir=RUN

The paper's ConvNet over the l_inf ball of radius 0.2 in the pixel box (l_2: 2.0), 12 epochs; an
epoch of standard training takes some 7 seconds on two CPU cores, and of a method as many times
longer as it makes passes. What makes each method that method is its function in
robust_opt/experiments/methods.py. Their results at equal cost are those of
`python -m robust_opt.papers.family` (docs/results/family_mnist.md).

|  NAME              |  paper                                        |  passes  |
|  standard          |                                               |  1       |
|  robust            |  Shaham et al. 2015 (arXiv 1511.05432)        |  2       |
|  strong_adversary  |  Huang et al. 2015 (arXiv 1511.03034)         |  2       |
|  goodfellow        |  Goodfellow et al. 2015 (arXiv 1412.6572)     |  3       |
|  szegedy           |  Szegedy et al. 2014 (arXiv 1312.6199)        |  22      |
|  virtual           |  Miyato et al. 2015 (arXiv 1507.00677)        |  4       |
|  gradient_penalty  |  Drucker and LeCun 1992                       |  2       |
|  operator_norm     |  Szegedy et al. 2014, section 4.3             |  1       |
|  layer_jacobian    |  Gu and Rigazio 2015 (arXiv 1412.5068)        |  2       |
|  manifold_tangent  |  Rifai et al. 2011                            |  2       |
|  layerwise         |  after Nokland 2015 (arXiv 1510.04189)        |  2       |
|  recall            |  ours                                         |  1       |
|  alternate         |  ours                                         |  1.5     |
|  half_precision    |  ours                                         |  2       |
|  fast              |  Wong et al. 2020 (arXiv 2001.03994)          |  2       |
|  grad_align        |  Andriushchenko, Flammarion (2007.02617)      |  7       |
|  n_fgsm            |  de Jorge et al. 2022 (arXiv 2202.01181)      |  2       |
|  free              |  Shafahi et al. 2019 (arXiv 1904.12843)       |  4       |
|  pgd               |  Madry et al. 2018 (arXiv 1706.06083)         |  8       |
|  trades            |  Zhang et al. 2019 (arXiv 1901.08573)         |  9       |
|  mart              |  Wang et al. 2020 (ICLR)                      |  9       |
|  awp               |  Wu et al. 2020 (arXiv 2004.05884)            |  9       |
|  average           |  Chen et al. 2021 (ICLR)                      |  8       |
|  curriculum        |  after Cai et al. 2018 (arXiv 1805.04807)     |  8       |
|  ibp               |  Gowal et al. 2018 (arXiv 1810.12715)         |  3       |
|  mtl_ibp           |  De Palma et al. 2023 (arXiv 2305.13991)      |  10      |
|  sabr              |  Mueller et al. 2022 (arXiv 2210.04871)       |  10      |
|  few_labels        |  virtual with 100 labels, 6 epochs            |  4       |

few_labels is virtual adversarial training as the semi-supervised method that it is: the other
54,900 images train the network to be smooth around them. On the 100 labeled images alone:

  ... --config=configs/mnist.py:few_labels --config.objective.name=robust
      --config.attack.name=none --config.training.epochs=300
"""

from ml_collections import ConfigDict

from robust_opt.errors import InputError
from robust_opt.experiments import methods
from robust_opt.experiments.config import mnist_methods


def get_config(name: str = "robust") -> ConfigDict:
  config = mnist_methods()
  if name == "few_labels":
    methods.virtual(config)
    config.data.labels, config.training.epochs = 100, 6
  elif name in methods.ALL:
    methods.ALL[name].apply(config)
  else:
    known = ", ".join([*methods.ALL, "few_labels"])
    raise InputError(f"configs/mnist.py:NAME must have one of {known}, but had {name!r}")
  return config
