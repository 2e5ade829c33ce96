"""SSIM, the structural similarity of two images: how visible a perturbation is, roughly.

  ssim(images, x)              # both [B, *S], pixels in [0, 1] -> [B], 1 where they are equal
  mean_ssim(images, x, axis)   # None for images that are smaller than a window

Source: Wang, Bovik, Sheikh and Simoncelli 2004, equation 13 and section III.C: a Gaussian window of
11 x 11 pixels with sigma 1.5, K_1 = 0.01, K_2 = 0.03; the mean over all windows within the image
and over the channels, as scikit-image has it with gaussian_weights and population covariances.
"""

import math

import numpy as np

from robust_opt import layout
from robust_opt.errors import InputError
from robust_opt.layout import ChannelAxis

WINDOW, SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_AT_A_TIME = 64


def ssim(a: np.ndarray, b: np.ndarray, channel_axis: ChannelAxis = layout.AUTO) -> np.ndarray:
  """The similarity of images a and b [B, *S], pixels in [0, 1]: [B] float64, at most 1.

  Args:
    a, b: images of two axes besides batch and channels, each at least WINDOW long.
    channel_axis: of one image: see `robust_opt.layout.resolve`.

  Raises:
    InputError: they are not such images.
  """
  axis = layout.resolve(channel_axis, a.shape[1:])
  if a.shape != b.shape or not _has_windows(a.shape[1:], axis):
    raise InputError(
      f"SSIM compares images of the same shape, of at least {WINDOW} x {WINDOW} pixels, with two "
      f"axes besides the channels (axis {axis}), but these have {a.shape} and {b.shape}."
    )
  # [B, C, H, W], in float64: variances are differences.
  a, b = (np.moveaxis(layout.to_last(np.asarray(v, np.float64), axis), -1, 1) for v in (a, b))
  rows, columns = map(_windows, a.shape[2:])

  def mean(values: np.ndarray) -> np.ndarray:
    return np.asarray(rows @ values @ columns.T)

  mean_a, mean_b = mean(a), mean(b)
  luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
  variances = mean(a**2) - mean_a**2 + mean(b**2) - mean_b**2
  covariance = mean(a * b) - mean_a * mean_b
  structure = (2 * covariance + _C2) / (variances + _C2)
  return np.mean(luminance * structure, axis=(1, 2, 3))


def mean_ssim(images: np.ndarray, x: np.ndarray, channel_axis: int | None) -> float | None:
  """Over all pairs of images and x [K, *S]; None without pairs, or of images that have no SSIM."""
  if not len(x) or not _has_windows(x.shape[1:], channel_axis):
    return None
  parts = (slice(start, start + _AT_A_TIME) for start in range(0, len(x), _AT_A_TIME))
  return math.fsum(np.sum(ssim(images[part], x[part], channel_axis)) for part in parts) / len(x)


def _has_windows(shape: tuple[int, ...], axis: int | None) -> bool:
  sides = [size for place, size in enumerate(shape) if place != axis]
  return len(sides) == 2 and min(sides) >= WINDOW


def _windows(size: int) -> np.ndarray:
  """The weights of every window within `size` pixels, [size - WINDOW + 1, size]."""
  weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
  starts = np.arange(size - WINDOW + 1)[:, None]
  windows = np.zeros((len(starts), size))
  np.put_along_axis(windows, starts + np.arange(WINDOW), weights / weights.sum(), axis=1)
  return windows
