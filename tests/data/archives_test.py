"""Arrays of other makers."""

import numpy as np
import pytest

from robust_opt.data import archives, datasets
from robust_opt.errors import InputError

X, Y = np.arange(48, dtype=np.uint8).reshape(4, 3, 4, 1), np.array([0, 1, 1, 0])
X2, Y2 = X + 1, 1 - Y


def written(path, **arrays):
  np.savez_compressed(path, **arrays)
  return str(path)


@pytest.mark.parametrize(
  "names", [("x", "y"), ("images", "labels"), ("data", "targets"), ("image", "label")]
)
def test_the_usual_names(names, tmp_path):
  file = written(tmp_path / "a.npz", **dict(zip(names, (X, Y))), note=np.zeros(3))
  images, labels = archives.read_arrays(file)
  np.testing.assert_array_equal(images, X)
  np.testing.assert_array_equal(labels, Y)
  assert archives.splits_of(file) == ()


@pytest.mark.parametrize(
  "names",
  [
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("trainX", "trainY", "valX", "valY"),
  ],
)
def test_train_and_test(names, tmp_path):
  file = written(tmp_path / "a.npz", **dict(zip(names, (X, Y, X2, Y2))))
  assert archives.splits_of(file) == ("train", "test")
  np.testing.assert_array_equal(archives.read_arrays(file, "train")[0], X)
  np.testing.assert_array_equal(archives.read_arrays(file, "test")[1], Y2)
  np.testing.assert_array_equal(archives.read_arrays(file)[0], X2)  # to evaluate on


def test_named_arrays_and_two_files(tmp_path):
  file = written(tmp_path / "a.npz", pictures=X, truth=Y)
  np.testing.assert_array_equal(archives.read_arrays(f"{file}:pictures,truth")[0], X)
  np.save(tmp_path / "x.npy", X)
  np.save(tmp_path / "y.npy", Y)
  got = archives.read_arrays(f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}")
  np.testing.assert_array_equal(got[1], Y)


def damaged(path):
  written(path, x=X, y=Y)
  path.write_bytes(path.read_bytes()[:90] + b"\0" * 40 + path.read_bytes()[130:])


def one_array(path):
  with path.open("wb") as file:
    np.save(file, X)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda path: written(path, pictures=X, y=Y), "a.npz holds pictures, y, but not one array"),
    (lambda path: written(path, x=X, images=X, y=Y), "holds x, images, y, but not one array"),
    (lambda path: path.write_bytes(b"no"), r"as an .npz file \(it is damaged or none\)$"),
    (damaged, "a.npz cannot be read as an .npz file"),
    (one_array, "a.npz holds one array: give IMAGES.npy,LABELS.npy"),
    (lambda path: None, "a.npz does not exist"),
  ],
)
def test_what_cannot_be_read_is_one_sentence(make, words, tmp_path):
  make(tmp_path / "a.npz")
  with pytest.raises(InputError, match=words):
    archives.read_arrays(str(tmp_path / "a.npz"))


def test_a_file_is_a_data_set(tmp_path):
  rng = np.random.default_rng(0)
  x, y = rng.integers(0, 256, (50, 5, 4), np.uint8), np.arange(50) % 5
  file = written(tmp_path / "a.npz", x=x, y=y)
  train, test = (datasets.load(file, split) for split in ("train", "test"))
  assert train.images.shape == (40, 5, 4, 1)
  np.testing.assert_array_equal(np.bincount(test.labels), [2] * 5)
  both = np.concatenate([train.images, test.images]).reshape(50, -1)
  np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(x.reshape(50, -1), axis=0))
  file = written(tmp_path / "b.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
  assert len(datasets.load(file, "test").labels) == 20
  assert datasets.load(file, "test").num_classes == 5


ONE_HOT = np.eye(3)[[0, 2, 1, 1]]


@pytest.mark.parametrize(
  ("labels", "expected"),
  [
    (ONE_HOT, [0, 2, 1, 1]),
    (ONE_HOT.astype(int), [0, 2, 1, 1]),
    (np.array([0.0, 2.0, 1.0, 1.0]), [0, 2, 1, 1]),
    (np.array([[0], [2], [1], [1]]), [0, 2, 1, 1]),
  ],
)
def test_labels_of_other_forms(labels, expected):
  np.testing.assert_array_equal(datasets.from_arrays(X, labels, 3).labels, expected)


@pytest.mark.parametrize(
  ("labels", "words"),
  [
    (np.array([0.5, 1.0, 2.0, 0.0]), r"labels has type float64 and is not made of integers"),
    (np.full((4, 3), 0.5), r"labels has shape \[4, 3\]"),
  ],
)
def test_labels_that_are_none(labels, words):
  with pytest.raises(InputError, match=words):
    datasets.from_arrays(X, labels, 3)


def test_other_integers_are_pixels_up_to_255():
  data = datasets.from_arrays(X.astype(np.int64) * 5, Y)
  assert data.images.dtype == np.uint8
  np.testing.assert_array_equal(data.images, X * 5)
  with pytest.raises(InputError, match="pixels from 0 to 470"):
    datasets.from_arrays(X.astype(np.int64) * 10, Y)
