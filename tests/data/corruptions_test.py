"""Common corruptions: closed forms, severities, and files in the layout of CIFAR-10-C."""

import colorsys
import functools

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_image

from robust_opt.data import corruptions
from robust_opt.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from robust_opt.errors import InputError

KEY = jax.random.key(0)
HALF_LEVEL = 0.5 / 255 + 1e-6  # results are rounded to 8 bits


@functools.cache
def photos():
  """uint8 [12, 32, 32, 3]: parts of two photographs."""
  parts = []
  for name in ("china.jpg", "flower.jpg"):
    small = np.asarray(Image.fromarray(load_sample_image(name)).resize((96, 64), Image.BOX))
    parts.append(small.reshape(2, 32, 3, 32, 3).swapaxes(1, 2).reshape(6, 32, 32, 3))
  return np.concatenate(parts)


@functools.cache
def corrupted(name):
  """[5, 12, 32, 32, 3] in [0, 1], of all severities."""
  return np.stack([corrupt(name, photos(), s, KEY) for s in SEVERITIES]) / 255


def clean():
  return photos() / 255


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "saturate"])
def test_severities_grow(name):
  distances = np.sqrt(((corrupted(name) - clean()) ** 2).sum(axis=(2, 3, 4))).mean(axis=1)
  assert distances[0] > 0
  assert (np.diff(distances) > 0).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_does_not_depend_on_those_after_it_nor_on_its_type(name):
  others = np.concatenate([photos()[:4], 255 - photos()[4:]])
  first = corrupt(name, others / np.float32(255), 3, KEY)[:4]
  assert first.dtype == np.uint8
  assert np.abs(first - 255 * corrupted(name)[2][:4]).max() < 1.5  # 255 * (x / 255) may round


def test_noise_has_its_moments():
  gray = np.full_like(photos(), 128)
  level, count = 128 / 255, gray.size
  bound = 5 / np.sqrt(count)
  for s, scale in zip((1, 5), (0.04, 0.10)):
    for name, std in (("gaussian_noise", scale), ("speckle_noise", (0.06, 0.20)[s // 5] * level)):
      noise = corrupt(name, gray, s, KEY) / 255 - level
      assert abs(noise.mean()) < bound * std + HALF_LEVEL
      assert noise.std() == pytest.approx(std, rel=0.02)
    photons = (500, 50)[s // 5]
    shot = corrupt("shot_noise", gray, s, KEY) / 255
    assert shot.var() == pytest.approx(level / photons, rel=0.05)
    impulse, amount = corrupt("impulse_noise", gray, s, KEY), (0.01, 0.07)[s // 5]
    for value in (0, 255):
      assert (impulse == value).mean() == pytest.approx(amount / 2, abs=5 * np.sqrt(amount / count))
    assert np.isin(impulse, (0, 128, 255)).all()


def in_hsv(change, images):
  """By the standard library, pixel for pixel."""
  flat = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in images.reshape(-1, 3)]
  return np.reshape(flat, images.shape)


@pytest.mark.parametrize("severity", [2, 4, 5])
def test_brightness_and_saturation_are_those_of_hsv(severity):
  images = clean()[:2, ::4, ::4].copy()
  images[0, :3, 0] = np.array([[0, 0, 0], [0.4, 0.4, 0.4], [1, 1, 1]])  # of no hue
  add = (0.05, 0.10, 0.15, 0.20, 0.30)[severity - 1]
  brighter = in_hsv(lambda h, s, v: (h, s, min(v + add, 1)), images)
  got = corrupt("brightness", images, severity, KEY) / 255
  np.testing.assert_allclose(got, brighter, atol=HALF_LEVEL)
  times, plus = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
  colored = in_hsv(lambda h, s, v: (h, min(times * s + plus, 1), v), images)
  got = corrupt("saturate", images, severity, KEY) / 255
  np.testing.assert_allclose(got, colored, atol=HALF_LEVEL)


def test_contrast_scales_distances_to_the_mean_of_each_channel():
  mean = clean().mean(axis=(1, 2), keepdims=True)
  expected = mean + 0.4 * (clean() - mean)
  np.testing.assert_allclose(corrupted("contrast")[2], expected, atol=HALF_LEVEL)


def test_blurs_are_those_of_scipy():
  for severity, sigma in ((1, 0.4), (5, 1.0)):
    expected = ndimage.gaussian_filter(clean(), (0, sigma, sigma, 0), mode="nearest", truncate=6)
    got = corrupted("gaussian_blur")[severity - 1]
    np.testing.assert_allclose(got, expected, atol=HALF_LEVEL + 1e-4)  # truncated at 4 pixels
  cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
  for severity, disk, alias in (
    (1, np.ones((1, 1)), 0.4),
    (4, cross, 0.2),
    (5, np.ones((3, 3)) / 9, 0.1),
  ):
    weights = np.exp(-0.5 * (np.arange(-1, 2) / alias) ** 2)
    smooth = np.outer(weights, weights) / weights.sum() ** 2
    expected = ndimage.convolve(clean(), smooth[None, :, :, None], mode="mirror")
    expected = ndimage.convolve(expected, disk[None, :, :, None], mode="mirror")
    got = corrupted("defocus_blur")[severity - 1]
    inner = (slice(None), slice(3, -3), slice(3, -3))  # two steps pad twice
    np.testing.assert_allclose(got[inner], expected[inner], atol=HALF_LEVEL + 1e-5)


def test_pixelate_of_a_constant_and_of_halves():
  flat = np.full((1, 32, 32, 3), 77, np.uint8)
  np.testing.assert_array_equal(corrupt("pixelate", flat, 5, KEY), flat)
  assert len(np.unique(corrupt("pixelate", photos()[:1], 5, KEY)[0, :, :, 0], axis=0)) == 20


def test_gray_images_have_all_but_saturation():
  digits = np.rint(load_digits().images[:5, ..., None] * (255 / 16)).astype(np.uint8)
  every = corruptions.generated(digits, np.arange(5), KEY)
  assert set(every.names) == CORRUPTIONS.keys() - {"saturate"}
  for name in ("contrast", "brightness", "pixelate", "jpeg_compression"):
    np.testing.assert_array_equal(every.images(name, 5), corrupt(name, digits, 5, KEY))


@pytest.mark.parametrize(
  ("name", "images", "severity", "message"),
  [
    ("fog", np.zeros((1, 4, 4, 3)), 1, "is one of gaussian_noise, .*, but was 'fog'"),
    ("contrast", np.zeros((1, 4, 4, 3)), 0, "1, 2, 3, 4 or 5, but was 0"),
    ("contrast", np.zeros((1, 3, 4, 4)), 1, r"of 1 or 3 channels, but got \[1, 3, 4, 4\]"),
    ("contrast", np.full((1, 4, 4, 3), 255.0), 1, r"pixels in \[0, 1\], but got 255"),
  ],
)
def test_what_cannot_be_corrupted(name, images, severity, message):
  with pytest.raises(InputError, match=message):
    corrupt(name, images, severity, KEY)


# Files


def write(folder, labels=(0, 1, 2), names=("fog", "spatter")):
  folder.mkdir()
  count = 5 * len(labels)
  np.save(folder / "labels.npy", np.tile(labels, 5))
  for name in names:
    levels = np.arange(count, dtype=np.uint8)[:, None, None, None]
    np.save(folder / f"{name}.npy", np.broadcast_to(levels, (count, 4, 4, 3)))
  return folder


def test_files_are_read_by_severity(tmp_path):
  stored = corruptions.stored(write(tmp_path / "c"), examples=2)
  assert stored.names == ("fog", "spatter")
  assert stored.labels.tolist() == [0, 1]
  assert stored.images("fog", 4)[:, 0, 0, 0].tolist() == [9, 10]  # images 9 to 11 are of severity 4
  assert len(corruptions.stored(tmp_path / "c").images("fog", 5)) == 3


def damage(folder, name, change):
  np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda c: (c / "labels.npy").unlink(), r"labels\.npy cannot be read"),
    (lambda c: [path.unlink() for path in c.glob("[fs]*.npy")], "such as gaussian_noise.npy"),
    (lambda c: damage(c, "labels", lambda a: a[:-1]), "same labels at each of 5 severities"),
    (lambda c: damage(c, "labels", np.sort), "same labels at each of 5 severities"),
    (
      lambda c: damage(c, "fog", lambda a: a / 255),
      r"fog\.npy must be uint8 \[15, H, W, C\].*float",
    ),
    (lambda c: damage(c, "fog", lambda a: a[:10]), r"an image for each label, but is uint8 \[10,"),
  ],
)
def test_other_layouts(spoil, message, tmp_path):
  folder = write(tmp_path / "c")
  spoil(folder)
  with pytest.raises(InputError, match=message):
    corruptions.stored(folder)
