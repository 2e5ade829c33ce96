"""SSIM against its definition, window by window, and where it is known."""

import numpy as np
import pytest

import robust_opt as ro
from robust_opt.evaluation import similarity

SHAPE = (3, 13, 12, 2)


def by_hand(a, b):
  """The definition in float64, for images [H, W]."""
  offsets = np.arange(11) - 5
  weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
  weights /= weights.sum()
  values = []
  for row in range(a.shape[0] - 10):
    for column in range(a.shape[1] - 10):
      u, v = (z[row : row + 11, column : column + 11] for z in (a, b))
      mean_u, mean_v = np.sum(weights * u), np.sum(weights * v)
      var_u, var_v = np.sum(weights * (u - mean_u) ** 2), np.sum(weights * (v - mean_v) ** 2)
      both = np.sum(weights * (u - mean_u) * (v - mean_v))
      top = (2 * mean_u * mean_v + 1e-4) * (2 * both + 9e-4)
      values.append(top / ((mean_u**2 + mean_v**2 + 1e-4) * (var_u + var_v + 9e-4)))
  return np.mean(values)


def test_it_is_the_definition_and_1_for_equal_images():
  rng = np.random.default_rng(0)
  a = rng.random(SHAPE).astype(np.float32)
  b = np.clip(a + 0.2 * rng.normal(size=SHAPE), 0, 1).astype(np.float32)
  b[0] = a[0]
  b[1] = 0.25
  expected = [
    np.mean([by_hand(*(z[i, :, :, c].astype(np.float64) for z in (a, b))) for c in range(2)])
    for i in range(3)
  ]
  np.testing.assert_allclose(similarity.ssim(a, b, -1), expected, rtol=1e-9)
  assert expected[1] < 0.1 < 0.5 < expected[2] < 1
  assert similarity.mean_ssim(b, a, 2) == pytest.approx(np.mean(expected))
  # Of constant images only the luminance differs.
  dark, bright = (np.full((1, *SHAPE[1:]), level) for level in (0.2, 0.6))
  exact = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
  np.testing.assert_allclose(similarity.ssim(dark, bright, -1), exact, rtol=1e-9)


def test_images_without_windows():
  small = np.zeros((2, 8, 8, 1), np.float32)
  assert similarity.mean_ssim(small, small, 2) is None
  assert similarity.mean_ssim(small[:0], small[:0], 2) is None
  assert similarity.mean_ssim(np.zeros((2, 30)), np.zeros((2, 30)), None) is None
  with pytest.raises(ro.InputError, match="of at least 11 x 11 pixels"):
    similarity.ssim(small, small)
