"""Extra training images, such as synthetic ones, which are a fraction of every batch.

  more = read(config, train)                     # of config.data.extra
  data, plan = appended(train, more), mixed(config, plan, more)

The file has images and labels, as the .npz files of Gowal et al. 2021, "Improving robustness using
generated data" (arXiv 2110.09468), and of Wang et al. 2023, "Better diffusion models further
improve adversarial training" (arXiv 2302.04638), have them; labels are those of a generator or of a
trained network. Rebuffi et al. 2021 (arXiv 2103.01946) take 0.7 of a batch from it. An epoch is
counted in images of the training set, so that the number of updates does not depend on the file.
"""

import numpy as np
from ml_collections import ConfigDict

from robust_opt.data import archives, datasets
from robust_opt.data.datasets import Dataset
from robust_opt.errors import InputError
from robust_opt.training import EpochPlan


def read(config: ConfigDict, train: Dataset) -> Dataset:
  """The images of config.data.extra.

  Raises:
    InputError: no labels, other labels than those of `train`, or images of another kind.
  """
  words = f"--config.data.extra={config.data.extra}"
  if not isinstance(train.images, np.ndarray):
    raise InputError(f"{words} needs a training set of arrays: {config.data.name} is a folder.")
  try:
    arrays = archives.read_arrays(config.data.extra, "train")
    extra = datasets.from_arrays(*arrays, train.num_classes, config.data.extra)
  except InputError as error:
    raise InputError(
      f"{words} must have images and labels ({error}); images without labels can have those that "
      "a trained network predicts, ro.load_run(WORKDIR).predict(images)."
    ) from error
  own, other = (f"{x.dtype} {list(x.shape[1:])}" for x in (train.images, extra.images))
  if own != other:
    raise InputError(f"{words} has images {other}, but those of {config.data.name} are {own}.")
  return extra


def mixed(config: ConfigDict, plan: EpochPlan, extra: Dataset | None) -> EpochPlan:
  """The plan with extra images in every batch; an InputError if that leaves no others, or none."""
  if extra is None:
    return plan
  size, fraction = plan.batch_size, config.data.extra_fraction
  count, available = round(fraction * size), len(extra.labels)
  if not 0 < count < size or count > available:
    raise InputError(
      f"--config.data.extra_fraction={fraction} is {count} of {size} images, but every batch must "
      f"have some of the {available} extra images and some others."
    )
  return plan._replace(num_extra=available, extra_per_batch=count)


def appended(train: Dataset, extra: Dataset | None) -> Dataset:
  """The training set, followed by the extra images."""
  if extra is None:
    return train
  return train._replace(
    images=np.concatenate([train.images, extra.images]),
    labels=np.concatenate([train.labels, extra.labels]),
  )
