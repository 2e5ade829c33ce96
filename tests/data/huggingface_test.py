"""Folders of Hugging Face datasets.save_to_disk."""

import sys

import datasets as hf
import numpy as np
import pytest
from PIL import Image

from robust_opt.data import datasets, huggingface
from robust_opt.errors import InputError, MissingExtraError

NAMES = ["ant", "bee"]


def examples(count, size=(4, 6), mode="RGB", label=None, seed=0):
  """A Dataset of noise; of every second image the other class."""
  rng = np.random.default_rng(seed)
  shape = (count, *size, 3) if mode == "RGB" else (count, *size)
  images = [Image.fromarray(a) for a in rng.integers(0, 256, shape, np.uint8)]
  columns = {"id": [f"{i}" for i in range(count)], "picture": images, "kind": np.arange(count) % 2}
  features = {"id": hf.Value("string"), "picture": hf.Image()}
  return hf.Dataset.from_dict(
    columns, hf.Features(features | {"kind": label or hf.ClassLabel(names=NAMES)})
  )


def pixels(part):
  return np.stack([np.asarray(image) for image in part["picture"]])


@pytest.mark.parametrize("test_name", ["test", "validation"])
def test_both_splits_of_a_dict(test_name, tmp_path):
  parts = {"train": examples(10), test_name: examples(6, seed=1)}
  hf.DatasetDict(parts).save_to_disk(tmp_path / "insects")
  for split, part in (("train", parts["train"]), ("test", parts[test_name])):
    found = datasets.load(str(tmp_path / "insects"), split)
    np.testing.assert_array_equal(found.images, pixels(part))
    np.testing.assert_array_equal(found.labels, part["kind"])
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int32)
    assert (found.classes, found.num_classes) == (("ant", "bee"), 2)
  evaluated = datasets.read_examples(str(tmp_path / "insects"))
  np.testing.assert_array_equal(evaluated.x, pixels(parts[test_name]) / np.float32(255))


def test_a_fifth_of_a_single_set_is_the_test_set(tmp_path):
  whole = examples(20, mode="L", label=hf.Value("int64"))
  whole.save_to_disk(tmp_path / "insects")
  train, test = (datasets.load(str(tmp_path / "insects"), split) for split in ("train", "test"))
  assert (train.images.shape, test.images.shape) == ((16, 4, 6, 1), (4, 4, 6, 1))
  np.testing.assert_array_equal(np.bincount(test.labels), [2, 2])
  assert train.classes == ("0", "1")
  both = np.concatenate([train.images, test.images])[..., 0]
  assert {a.tobytes() for a in both} == {a.tobytes() for a in pixels(whole)}
  assert len(datasets.read_examples(str(tmp_path / "insects")).y) == 20
  smaller = datasets.load(str(tmp_path / "insects"), "test", image_size=3)
  assert smaller.images.shape == (4, 3, 3, 1)


def test_what_cannot_be_used(tmp_path, monkeypatch):
  def refused(data, words):
    folder = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
    data.save_to_disk(folder)
    with pytest.raises(InputError, match=words):
      datasets.load(str(folder), "train")
    return folder

  good = examples(4)
  refused(hf.concatenate_datasets([good, examples(2, size=(5, 5))]), "images of 2 sizes")
  refused(good.remove_columns("picture"), r"one column of images, but its columns are id \(Value\)")
  refused(good.remove_columns("kind"), "one column of class labels or integers")
  refused(hf.DatasetDict({"other": good}), "must have a split train or one of test, .* has other")
  unlabeled = good.remove_columns("kind").add_column("kind", [-1] * 4)
  refused(unlabeled, r"labels from -1 to -1, but they must be in \[0, 0\)")
  folder = tmp_path / "damaged"
  good.save_to_disk(folder)
  for path in folder.glob("*.arrow"):
    path.write_bytes(b"no")
  with pytest.raises(InputError, match="cannot be read as a saved data set"):
    datasets.load(str(folder), "train")
  monkeypatch.setitem(sys.modules, "datasets", None)
  monkeypatch.setattr(huggingface.extras, "_installed", lambda module: module != "datasets")
  with pytest.raises(MissingExtraError, match=r"\.\[recipes\]"):
    datasets.load(str(folder), "train")
