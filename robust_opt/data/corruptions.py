"""Common corruptions of images at severities 1 to 5: noise, blur, brightness, compression, ...

  x = corrupt("shot_noise", images, severity=3, key=jax.random.key(0))     # uint8 [N, H, W, C]
  every = generated(images, labels, jax.random.key(0))
  x = every.images("contrast", 5)

Eleven of those of Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common
corruptions and perturbations" (arXiv 1903.12261), with the strengths of CIFAR-10-C, which are meant
for images of 32x32. Noise and rounding are our own, so errors are not those on the published files,
which `stored` reads.
"""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt import extras
from robust_opt.data.archives import read_npy
from robust_opt.errors import InputError
from robust_opt.keys import keys_of
from robust_opt.types import Array

SEVERITIES = (1, 2, 3, 4, 5)
# The mean corruption error is over these 15; the other corruptions are for validation.
BENCHMARK = (
  *("gaussian_noise", "shot_noise", "impulse_noise"),
  *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
  *("snow", "frost", "fog", "brightness"),
  *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
_BATCH = 1000


def gaussian_noise(keys: Array, x: Array, scale: Array) -> Array:
  """x + scale * n, n standard normal."""
  return x + scale * _normal(keys, x)


def shot_noise(keys: Array, x: Array, photons: Array) -> Array:
  """Poisson(photons * x) / photons."""
  counts = jax.vmap(lambda key, rate: jax.random.poisson(key, rate, rate.shape))(keys, photons * x)
  return counts / photons


def impulse_noise(keys: Array, x: Array, amount: Array) -> Array:
  """A share `amount` of all values becomes 0 or 1, evenly."""
  u = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(keys)
  return jnp.where(u < amount / 2, 0.0, jnp.where(u < amount, 1.0, x))


def speckle_noise(keys: Array, x: Array, scale: Array) -> Array:
  """x + scale * x * n, n standard normal."""
  return x + scale * x * _normal(keys, x)


def gaussian_blur(keys: Array, x: Array, sigma: Array) -> Array:
  """A Gaussian of standard deviation sigma <= 1, in pixels."""
  del keys
  return _filtered(x, _gaussian(sigma, 4), "edge")


def defocus_blur(keys: Array, x: Array, strength: Array) -> Array:
  """A disk of radius strength[0] < 2 pixels, whose edge a Gaussian of strength[1] smooths."""
  del keys
  radius, alias = strength
  squares = jnp.arange(-1, 2) ** 2
  disk = (squares[:, None] + squares <= radius**2).astype(x.dtype)
  smooth = _gaussian(alias, 1)
  kernel = jax.scipy.signal.convolve2d(disk / disk.sum(), smooth, mode="full")
  return _filtered(x, kernel, "reflect")


def brightness(keys: Array, x: Array, amount: Array) -> Array:
  """Adds to the value of HSV, at the same hue and saturation."""
  del keys
  value = x.max(axis=-1, keepdims=True)
  brighter = jnp.minimum(value + amount, 1.0)
  return jnp.where(value > 0, x * brighter / jnp.where(value > 0, value, 1.0), brighter)


def saturate(keys: Array, x: Array, strength: Array) -> Array:
  """The saturation s of HSV becomes strength[0] * s + strength[1]; gray counts as red."""
  del keys
  value, low = x.max(axis=-1, keepdims=True), x.min(axis=-1, keepdims=True)
  positive = jnp.where(value > 0, value, 1.0)
  s = (value - low) / positive
  changed = jnp.clip(strength[0] * s + strength[1], 0.0, 1.0)
  red = jnp.array([0.0, 1.0, 1.0])
  loss = jnp.where(s > 0, (value - x) / jnp.where(s > 0, s, 1.0), value * red)
  return value - changed * loss


def contrast(keys: Array, x: Array, factor: Array) -> Array:
  """Distances to the mean of each channel, times the factor."""
  del keys
  mean = x.mean(axis=(1, 2), keepdims=True)
  return mean + factor * (x - mean)


def pixelate(images: np.ndarray, factor: float) -> np.ndarray:
  """Resized by the factor and back, each pixel by the mean over its area."""
  from PIL import Image

  def one(image: Any) -> Any:
    small = tuple(max(1, int(side * factor)) for side in image.size)
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

  return _by_pillow(one, images)


def jpeg_compression(images: np.ndarray, quality: int) -> np.ndarray:
  """Written as JPEG of that quality, and read."""
  from PIL import Image

  def one(image: Any) -> Any:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)

  return _by_pillow(one, images)


class Corruption(NamedTuple):
  """A corruption and its strength at each severity."""

  function: Callable[..., Any]  # (keys, x in [0, 1], strength), or of Pillow (uint8, strength)
  strengths: Sequence[Any]
  by_pillow: bool = False


CORRUPTIONS = {
  "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
  "shot_noise": Corruption(shot_noise, (500.0, 250.0, 100.0, 75.0, 50.0)),
  "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
  "speckle_noise": Corruption(speckle_noise, (0.06, 0.10, 0.12, 0.16, 0.20)),
  "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
  "defocus_blur": Corruption(
    defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
  ),
  "brightness": Corruption(brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
  "saturate": Corruption(saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))),
  "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
  "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), by_pillow=True),
  "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40), by_pillow=True),
}


def corrupt(name: str, images: np.ndarray, severity: int, key: Array) -> np.ndarray:
  """Corrupted images, uint8 [N, H, W, C].

  Args:
    name: one of CORRUPTIONS.
    images: [N, H, W, C], of 1 or 3 channels, uint8 or float in [0, 1].
    severity: 1 to 5.
    key: the noise of image i depends on (key, i) only, and is the same at every severity.

  Raises:
    InputError: another name, severity or shape, or pixels outside [0, 1].
    MissingExtraError: pixelate and jpeg_compression need Pillow, of the extra `data`.
  """
  if name not in CORRUPTIONS:
    raise InputError(f"A corruption is one of {', '.join(CORRUPTIONS)}, but was {name!r}.")
  if severity not in SEVERITIES:
    raise InputError(f"A severity is 1, 2, 3, 4 or 5, but was {severity!r}.")
  if np.ndim(images) != 4 or images.shape[-1] not in (1, 3):
    raise InputError(
      f"Corruptions need images [N, H, W, C] of 1 or 3 channels, but got {list(np.shape(images))}."
    )
  if images.dtype != np.uint8 and not (np.min(images) >= 0 and np.max(images) <= 1):
    raise InputError(
      f"Corruptions need pixels in [0, 1], but got {np.min(images)} to {np.max(images)}."
    )
  function, strengths, by_pillow = CORRUPTIONS[name]
  strength = strengths[severity - 1]
  if by_pillow:
    return function(_in_8_bits(images), strength)
  parts = []
  for start in range(0, len(images), _BATCH):
    part = images[start : start + _BATCH]
    keys = keys_of(key, jnp.arange(start, start + len(part)))
    x = part / np.float32(255 if images.dtype == np.uint8 else 1)
    changed = _clipped(function, keys, jnp.float32(x), jnp.asarray(strength, jnp.float32))
    parts.append(_in_8_bits(np.asarray(changed)))
  return np.concatenate(parts)


class Corrupted(NamedTuple):
  """Corrupted images with their labels, generated or read when they are asked for."""

  names: tuple[str, ...]
  labels: np.ndarray  # [N], the same at every severity
  images: Callable[[str, int], np.ndarray]  # (name, severity) -> uint8 [N, H, W, C]


def generated(images: np.ndarray, labels: np.ndarray, key: Array) -> Corrupted:
  """CORRUPTIONS of images as `corrupt` takes them; of gray ones without `saturate`."""
  names = tuple(name for name in CORRUPTIONS if name != "saturate" or images.shape[-1] == 3)
  return Corrupted(names, labels, lambda name, severity: corrupt(name, images, severity, key))


def stored(folder: Path, examples: int = 0) -> Corrupted:
  """Files as of CIFAR-10-C: labels.npy, and NAME.npy of uint8 [5 N, H, W, C], by severity.

  Args:
    folder: of the files.
    examples: the first so many of each severity; 0: all.

  Raises:
    InputError: no such files, or files of another layout.
  """
  labels = read_npy(folder / "labels.npy")
  names = tuple(sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels"))
  if not names:
    raise InputError(f"{folder} must hold corruptions such as gaussian_noise.npy, but has none.")
  files = {name: read_npy(folder / f"{name}.npy") for name in names}
  count, rest = divmod(len(labels), len(SEVERITIES))
  by_severity = labels.reshape(-1, count) if not rest else labels[None]
  if rest or not count or (by_severity != by_severity[0]).any():
    raise InputError(f"{folder}/labels.npy must have the same labels at each of 5 severities.")
  for name, array in files.items():
    if array.ndim != 4 or array.dtype != np.uint8 or len(array) != len(labels):
      raise InputError(
        f"{folder}/{name}.npy must be uint8 [{len(labels)}, H, W, C], an image for each label, "
        f"but is {array.dtype} {list(array.shape)}."
      )
  taken = min(examples, count) or count

  def images(name: str, severity: int) -> np.ndarray:
    start = (severity - 1) * count
    return np.asarray(files[name][start : start + taken])

  return Corrupted(names, by_severity[0, :taken].astype(np.int32), images)


@functools.partial(jax.jit, static_argnums=0)
def _clipped(function: Callable[..., Array], keys: Array, x: Array, strength: Array) -> Array:
  return jnp.clip(function(keys, x, strength), 0.0, 1.0)


def _in_8_bits(images: np.ndarray) -> np.ndarray:
  return images if images.dtype == np.uint8 else np.rint(255 * images).astype(np.uint8)


def _normal(keys: Array, x: Array) -> Array:
  return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)


def _gaussian(sigma: Array, radius: int) -> Array:
  """[2 radius + 1, 2 radius + 1], of sum 1."""
  weights = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1) / sigma) ** 2)
  weights /= weights.sum()
  return weights[:, None] * weights


def _filtered(x: Array, kernel: Array, mode: str) -> Array:
  """Each channel of [B, H, W, C] by a kernel [K, K], of odd K, with padding of that mode."""
  half = kernel.shape[0] // 2
  padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)), mode=mode)
  channels = x.shape[-1]
  kernels = jnp.broadcast_to(kernel[..., None, None], (*kernel.shape, 1, channels))
  return jax.lax.conv_general_dilated(
    padded,
    kernels,
    (1, 1),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=channels,
    precision=jax.lax.Precision.HIGHEST,
  )


def _by_pillow(change: Callable[[Any], Any], images: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, C], each as a picture of Pillow."""
  extras.require("data", "PIL")
  from PIL import Image

  def one(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(change(picture), np.uint8).reshape(image.shape)

  return np.stack([one(image) for image in images])
