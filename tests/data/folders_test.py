"""Folders of class folders of images."""

import numpy as np
import pytest
from images import write_class_folders
from PIL import Image

from robust_opt.data import datasets, sampling
from robust_opt.errors import InputError

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def folder(tmp_path):
  return write_class_folders(tmp_path / "insects", CLASSES, 10, (4, 6))


def test_a_fifth_of_every_class_is_the_test_set(folder):
  train, test = (datasets.load(str(folder), split) for split in ("train", "test"))
  assert train.classes == test.classes == CLASSES
  assert train.images.shape == (24, 4, 6, 3)
  np.testing.assert_array_equal(np.bincount(train.labels), [8, 8, 8])
  np.testing.assert_array_equal(np.bincount(test.labels), [2, 2, 2])
  assert not set(train.images.paths) & set(test.images.paths)
  for path, label in zip(train.images.paths, train.labels):
    assert f"/{CLASSES[label]}/" in path


def test_an_index_decodes_and_a_slice_or_a_mask_selects(folder):
  images = datasets.load(str(folder), "train").images
  whole = np.asarray(images)
  assert whole.dtype == np.uint8
  np.testing.assert_array_equal(images[3], np.asarray(Image.open(images.paths[3])))
  np.testing.assert_array_equal(np.asarray(images[2:5]), whole[2:5])
  mask = np.arange(24) % 2 == 0
  np.testing.assert_array_equal(np.asarray(images[mask]), whole[mask])


def test_train_and_test_folders_are_the_splits(tmp_path):
  write_class_folders(tmp_path / "train", CLASSES, 3, (4, 4), "jpg")
  write_class_folders(tmp_path / "val", CLASSES, 2, (4, 4), "webp")
  counts = [len(datasets.load(str(tmp_path), split).labels) for split in ("train", "test")]
  assert counts == [9, 6]


def test_grey_images_have_one_channel_and_mixed_ones_three(tmp_path):
  write_class_folders(tmp_path / "grey", CLASSES, 5, (4, 4), mode="L")
  assert datasets.load(str(tmp_path / "grey"), "train").images[0].shape == (4, 4, 1)
  Image.new("RGB", (4, 4)).save(tmp_path / "grey" / "ant" / "color.png")
  assert datasets.load(str(tmp_path / "grey"), "train").images[0].shape == (4, 4, 3)


def test_images_are_cropped_and_resized(folder):
  data = datasets.load(str(folder), "train", image_size=2)
  assert np.asarray(data.images).shape == (24, 2, 2, 3)


def test_an_image_is_turned_as_its_camera_says(tmp_path):
  write_class_folders(tmp_path / "set", CLASSES, 5, (4, 4))
  for name in CLASSES:
    for path in (tmp_path / "set" / name).iterdir():
      turned = Image.new("RGB", (8, 2))
      exif = turned.getexif()
      exif[0x0112] = 6
      turned.save(path, exif=exif)
  assert datasets.load(str(tmp_path / "set"), "train").images[0].shape == (8, 2, 3)


def test_the_fingerprint_follows_the_contents(folder):
  before = datasets.fingerprint(datasets.load(str(folder), "train"))
  assert before == datasets.fingerprint(datasets.load(str(folder), "train"))
  assert before != datasets.fingerprint(datasets.load(str(folder), "train", image_size=3))
  path = datasets.load(str(folder), "train").images.paths[0]
  Image.new("RGB", (6, 4)).save(path)
  assert before != datasets.fingerprint(datasets.load(str(folder), "train"))


def _one_class(root):
  write_class_folders(root, ("ant",), 2, (4, 4))


def _empty_class(root):
  write_class_folders(root, CLASSES, 2, (4, 4))
  (root / "dog").mkdir()


def _sizes(root):
  write_class_folders(root, CLASSES, 2, (4, 4))
  Image.new("RGB", (5, 4)).save(root / "ant" / "wide.png")


def _broken(root):
  write_class_folders(root, CLASSES, 2, (4, 4))
  (root / "ant" / "broken.png").write_bytes(b"no image")


def _other_classes(root):
  write_class_folders(root / "train", CLASSES, 2, (4, 4))
  write_class_folders(root / "test", CLASSES[:2], 2, (4, 4))


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (_one_class, "at least two classes, but has 1 folders"),
    (_empty_class, "dog with no images"),
    (_sizes, r"2 sizes, from 4 x 4 to 4 x 5 pixels: set data.image_size"),
    (_broken, r"broken.png is not a readable image"),
    (_other_classes, "only one of them has cat"),
  ],
)
def test_a_folder_that_cannot_be_read_is_one_sentence(make, words, tmp_path):
  make(tmp_path / "set")
  with pytest.raises(InputError, match=words) as raised:
    datasets.load(str(tmp_path / "set"), "train")
  assert "\n" not in str(raised.value)


def test_a_size_is_for_folders(folder):
  with pytest.raises(InputError, match=r"data.image_size=8 has no effect on data.name='digits'"):
    datasets.load("digits", "train", image_size=8)


def test_stratified_is_even_over_classes():
  labels = np.array([0] * 10 + [1] * 50 + [2] * 40)
  mask = sampling.stratified(labels, 20, seed=1)
  np.testing.assert_array_equal(np.bincount(labels[mask]), [2, 10, 8])
  np.testing.assert_array_equal(mask, sampling.stratified(labels, 20, seed=1))
  assert (mask != sampling.stratified(labels, 20, seed=2)).any()
