"""Arrays in, arrays out: checks, splits, the embedded digits and the cache. No TFDS, no network."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from robust_opt.data import datasets, published, tfds
from robust_opt.errors import InputError

NAN = float("nan")


def example_set(num_examples=20, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (num_examples, 5, 4, 3), np.uint8)
  return datasets.from_arrays(images, np.arange(num_examples) % 10, 10)


@pytest.fixture
def warned(monkeypatch):
  """What is logged as a warning, as a list that fills."""
  lines = []
  monkeypatch.setattr(datasets.logging, "warning", lambda text, *args: lines.append(text % args))
  return lines


@pytest.fixture
def source(monkeypatch):
  """Replaces the download of 'mnist' by arrays; the list counts how often they were asked for."""
  calls = []

  def read_arrays(name, split, cache, data_dir):
    calls.append((name, split, cache))
    dataset = example_set(seed=len(split))
    return tfds.Arrays(dataset.images, dataset.labels, 10)

  monkeypatch.setattr(published, "read_arrays", read_arrays)
  return calls


@pytest.fixture
def places(tmp_path):
  """Folders for `load`: nothing is prepared, nothing is cached."""
  (tmp_path / "sets").mkdir()
  return {"data_dir": str(tmp_path / "sets"), "cache_dir": str(tmp_path / "cache")}


def cache_file(places):
  (path,) = Path(places["cache_dir"]).glob("*.npz")
  return path


# from_arrays


def test_from_arrays_keeps_uint8_and_makes_int32_labels():
  images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)
  dataset = datasets.from_arrays(images, [2, 0], name="mine", split="test")
  assert dataset.images.dtype == np.uint8
  np.testing.assert_array_equal(dataset.images, images)
  assert dataset.labels.dtype == np.int32
  assert dataset.labels.tolist() == [2, 0]
  assert dataset[2:] == (3, "mine", "test", ())


def test_from_arrays_makes_float32_of_floats_and_a_channel_of_rank_3():
  images = np.linspace(0, 1, 24).reshape(2, 3, 4)
  dataset = datasets.from_arrays(images, np.array([0, 1], np.uint8), num_classes=5)
  assert dataset.images.shape == (2, 3, 4, 1)
  assert dataset.images.dtype == np.float32
  np.testing.assert_array_equal(dataset.images[..., 0], images.astype(np.float32))
  assert dataset.num_classes == 5


GOOD = np.zeros((2, 3, 4, 1), np.uint8)


@pytest.mark.parametrize(
  ("images", "labels", "num_classes", "message"),
  [
    (GOOD[0, 0], [0], None, r"images has shape \[4, 1\]"),
    (GOOD[:, :0], [0, 1], None, r"images has shape \[2, 0, 4, 1\]"),
    (GOOD.astype(complex), [0, 1], None, "images has type complex128"),
    (GOOD.astype(np.int32) - 1, [0, 1], None, "pixels from -1 to -1"),
    (GOOD + 255.0, [0, 1], None, "pixels from 255.0 to 255.0"),
    (GOOD + NAN, [0, 1], None, "pixels from nan"),
    ([[1], [2, 3]], [0, 1], None, "images is not an array"),
    (GOOD, [0], None, r"labels has shape \[1\]: allowed is \[2\]"),
    (GOOD, [[0, 2]], None, r"labels has shape \[1, 2\]"),
    (GOOD, [0.5, 1.0], None, "labels has type float64"),
    (GOOD, [-1, 1], None, "labels go from -1 to 1"),
    (GOOD, [0, 3], 3, r"labels go from 0 to 3: allowed is \[0, 3\)"),
  ],
)
def test_from_arrays_refuses(images, labels, num_classes, message):
  with pytest.raises(InputError, match=message):
    datasets.from_arrays(images, labels, num_classes)


# holdout, fingerprint


def numbered(num_examples):
  """A set whose labels tell the examples apart."""
  images = np.arange(num_examples, dtype=np.uint8)[:, None, None]
  return datasets.from_arrays(images, np.arange(num_examples))


@pytest.mark.parametrize("fraction", [0, 0.25, 0.99])
def test_holdout_is_disjoint_exhaustive_and_in_order(fraction):
  dataset = numbered(100)
  rest, held = datasets.holdout(dataset, fraction, seed=3)
  assert len(held.labels) == round(100 * fraction)
  assert sorted([*rest.labels, *held.labels]) == list(range(100))
  for part in (rest, held):
    assert (np.diff(part.labels) > 0).all()
    np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
    assert part.num_classes == 100
  assert (rest.split, held.split) == ("train", "holdout")


def test_holdout_depends_on_the_seed_alone():
  draws = [datasets.holdout(numbered(100), 0.3, seed)[1].labels.tolist() for seed in (0, 0, 1)]
  assert draws[0] == draws[1] != draws[2]
  # PCG64's raw numbers are promised to stay: the same for every version of NumPy.
  raw = np.random.PCG64(0).random_raw(100)
  assert draws[0] == sorted(np.argsort(raw)[:30])
  assert draws[0][:5] == [1, 2, 3, 11, 13]


def test_few_labels_are_equally_many_a_class_and_never_made_up():
  """By the seed alone."""
  count = 50
  dataset = datasets.load("digits", "train")
  alone = datasets.few_labels(dataset, count, 0, keep_others=False)
  np.testing.assert_array_equal(np.bincount(alone.labels), count // 10)
  label_of = {image.tobytes(): label for image, label in zip(dataset.images, dataset.labels)}
  assert all(label_of[i.tobytes()] == y for i, y in zip(alone.images, alone.labels))
  both = datasets.few_labels(dataset, count, 0, keep_others=True)
  known = both.labels >= 0
  assert 0.25 <= known.mean() < 0.3
  np.testing.assert_array_equal(both.labels[~known], -1)
  unique = np.unique(both.images[known].reshape(known.sum(), -1), axis=0)
  assert len(unique) == len(np.unique(alone.images.reshape(count, -1), axis=0))
  assert (~known).sum() == len(dataset.labels) - count
  again, other = (datasets.few_labels(dataset, count, seed, False).images for seed in (0, 1))
  np.testing.assert_array_equal(again, alone.images)
  assert np.any(other != again)


@pytest.mark.parametrize("count", [15, 100_000])
def test_few_labels_refuses(count):
  with pytest.raises(InputError, match=f"labels={count} is not allowed: a multiple of the 10"):
    datasets.few_labels(datasets.load("digits", "train"), count, 0, False)


@pytest.mark.parametrize(
  ("fraction", "seed", "message"),
  [
    (1, 0, "fraction=1 is not allowed"),
    (NAN, 0, "fraction=nan"),
    (0.99, 0, "fraction=0.99 of 10 examples holds out 10"),
    (0.5, -1, "seed=-1"),
  ],
)
def test_holdout_refuses(fraction, seed, message):
  with pytest.raises(InputError, match=message):
    datasets.holdout(numbered(10), fraction, seed)


def test_fingerprint_sees_content_not_layout():
  dataset = example_set()
  mark = datasets.fingerprint(dataset)
  assert len(mark) == 64
  turned = np.asfortranarray(dataset.images)
  assert datasets.fingerprint(dataset._replace(images=turned, name="other")) == mark
  assert datasets.fingerprint(dataset._replace(labels=dataset.labels.astype(">i4"))) == mark
  changed = dataset.images.copy()
  changed[-1, -1, -1, -1] ^= 1
  others = [
    dataset._replace(images=changed),
    dataset._replace(labels=dataset.labels[::-1]),
    dataset._replace(labels=dataset.labels.astype(np.int64)),
    dataset._replace(images=dataset.images.reshape(20, 4, 5, 3)),
  ]
  assert len({mark, *map(datasets.fingerprint, others)}) == 5


# digits


def test_digits_are_all_of_scikit_learns_in_a_fixed_split():
  train, test = datasets.load("digits", "train"), datasets.load("digits", "test")
  assert train.images.shape == (1437, 8, 8, 1)
  assert test.images.shape == (360, 8, 8, 1)
  scans = load_digits()
  expected = np.round(scans.images * 255 / 16).astype(np.uint8)
  pairs = sorted((x.tobytes(), int(y)) for x, y in zip(expected, scans.target))
  both = [(x.tobytes(), int(y)) for part in (train, test) for x, y in zip(*part[:2])]
  assert sorted(both) == pairs
  assert {train.images.max(), test.images.max()} == {255}
  # As many of every class as its share.
  in_train, in_test = np.bincount(train.labels), np.bincount(test.labels)
  share = 360 / 1797 * (in_train + in_test)
  assert (abs(in_test - share) < 1).all()
  # The split is fixed.
  marks = [datasets.fingerprint(part)[:16] for part in (train, test)]
  assert marks == ["2286918e9b8117ce", "ab78d3601ed5a13f"]


@pytest.mark.parametrize(
  ("name", "split", "message"),
  [
    ("digits", "validation", "'digits' has no split 'validation': it has train, test"),
    ("../secret", "train", "data.name='../secret' is not the name"),
    ("mnist", "test", r"data\.data_dir='.*/nowhere' is not a folder"),
  ],
)
def test_load_refuses(name, split, message, tmp_path):
  with pytest.raises(InputError, match=message):
    datasets.load(name, split, data_dir=str(tmp_path / "nowhere"))


def test_examples_to_evaluate_on_by_name_are_the_test_set_as_pixels(source, places):
  x, y, _ = datasets.read_examples("digits")
  test = datasets.load("digits", "test")
  np.testing.assert_array_equal(x, test.images / np.float32(255))
  np.testing.assert_array_equal(y, test.labels)
  assert len(datasets.read_examples("mnist", **places).y) == 20
  assert [call[:2] for call in source] == [("mnist", "test")]


# the cache


@pytest.mark.parametrize("full", [False, True])
def test_a_cache_that_cannot_be_written_is_done_without(full, source, places, warned, monkeypatch):
  def no_space(_):
    raise OSError(28, "No space left on device")

  if full:
    monkeypatch.setattr(os, "fsync", no_space)
  else:
    Path(places["cache_dir"]).write_text("in the way")
  assert len(datasets.load("mnist", "train", **places).labels) == 20
  assert "cannot be written" in warned[0]
  assert ("No space left" in warned[0]) == full
  assert not list(Path(places["cache_dir"]).parent.rglob("*.npz"))


def assert_same(one, other):
  assert one[2:] == other[2:]
  assert datasets.fingerprint(one) == datasets.fingerprint(other)


def test_cache_serves_the_second_load(source, places):
  first = datasets.load("mnist", "train", **places)
  second = datasets.load("mnist", "train", download=False, **places)
  assert len(source) == 1
  assert_same(first, second)
  assert second.images.flags.writeable
  datasets.load("mnist", "test", **places)
  assert len(source) == 2


def test_cache_is_found_without_importing_tfds(source, places):
  datasets.load("mnist", "train", **places)
  code = (
    "import sys; from robust_opt.data import datasets\n"
    f"datasets.load('mnist', 'train', download=False, **{places!r})\n"
    "assert 'tensorflow_datasets' not in sys.modules\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_default_folders_follow_the_environment(source, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
  datasets.load("mnist", "train")
  (call,) = source
  assert call[2] == tmp_path / "xdg" / "robust_opt"
  assert cache_file({"cache_dir": tmp_path / "xdg" / "robust_opt"})
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  datasets.load("mnist", "train")
  assert cache_file({"cache_dir": tmp_path / "home" / ".cache" / "robust_opt"})


def flip_a_pixel(content, path):
  # Without the archive's own check: a file whose parts agree but whose content is another.
  with np.load(io.BytesIO(content)) as stored:
    fields = dict(stored)
  fields["images"][0, 0, 0, 0] ^= 1
  np.savez(path, **fields)


def pickled(content, path):
  del content
  np.savez(path, images=np.array([{}], object), fingerprint="", num_classes=1)


@pytest.mark.parametrize(
  "damage",
  [
    lambda content, path: path.write_bytes(content[: len(content) // 2]),
    lambda content, path: path.write_bytes(content.replace(b"images", b"imagos")),
    flip_a_pixel,
    pickled,
  ],
  ids=["half", "name", "content", "pickle"],
)
def test_damaged_cache_is_rebuilt(damage, source, places, warned):
  first = datasets.load("mnist", "train", **places)
  path = cache_file(places)
  damage(path.read_bytes(), path)
  assert_same(datasets.load("mnist", "train", **places), first)
  assert len(source) == 2
  assert len(warned) == 1
  assert "will be rebuilt" in warned[0]
  assert_same(datasets.load("mnist", "train", **places), first)
  assert len(source) == 2


def test_no_flipped_bit_is_ever_believed(tmp_path, warned):
  dataset = datasets.from_arrays(np.zeros((3, 2, 2, 1), np.uint8), [0, 1, 2])
  path = tmp_path / "set.npz"
  datasets._write_cache(path, dataset)
  content = bytearray(path.read_bytes())
  for place in range(content.index(b"PK\1\2"), len(content)):  # the archive's directory
    for bit in (1, 64):
      content[place] ^= bit
      path.write_bytes(content)
      content[place] ^= bit
      # Some bits of an archive mean nothing (dates, say): what is read must be what was written.
      stored = datasets._read_cache(path, "arrays", "train")
      if stored is not None:
        assert_same(stored, dataset)
  assert len(warned) > 100


def test_two_prepared_folders_do_not_mix(tmp_path, monkeypatch):
  calls = []

  def read_prepared(folder, name, split):
    calls.append(folder)
    return tfds.Arrays(np.full((3, 2, 2, 1), len(calls), np.uint8), np.arange(3), 10)

  monkeypatch.setattr(tfds, "read_prepared", read_prepared)

  def value(root):
    dataset = datasets.load("tiny", "train", data_dir=str(root), cache_dir=str(tmp_path / "cache"))
    return dataset.images[0, 0, 0, 0]

  for root in ("a", "b"):
    (tmp_path / root / "tiny" / "1.0.0").mkdir(parents=True)
    (tmp_path / root / "tiny" / "1.0.0" / "dataset_info.json").write_text("{}")
  assert [value(tmp_path / root) for root in "abab"] == [1, 2, 1, 2]
  (tmp_path / "a" / "tiny" / "1.0.0" / "dataset_info.json").write_text("{ }")  # prepared anew
  assert [value(tmp_path / root) for root in "ab"] == [3, 2]
  for version in ("1.9.0", "1.10.0"):
    (tmp_path / "a" / "tiny" / version).mkdir()
    (tmp_path / "a" / "tiny" / version / "dataset_info.json").write_text("{}")
  (tmp_path / "a" / "tiny" / "incomplete.2_2.0.0").mkdir()
  value(tmp_path / "a")
  assert calls[-1].name == "1.10.0"
