"""Files are whole or absent, whatever happens while they are written, and as they were written."""

import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
import time
from concurrent import futures

import numpy as np
import pytest

from robust_opt import files
from robust_opt.errors import InputError, RunError, WriteError


def test_write_appears_whole_with_ordinary_rights(tmp_path):
  path = tmp_path / "deep" / "file.json"
  files.write_json(path, {"a": [1, 2.5, None, "é"]})
  assert json.loads(path.read_text()) == {"a": [1, 2.5, None, "é"]}
  mask = os.umask(0)
  os.umask(mask)
  assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
  assert list(path.parent.iterdir()) == [path]


def test_writers_at_once_never_leave_a_mixture(tmp_path):
  path = tmp_path / "file"

  def write(letter):
    for _ in range(40):
      with files.atomic_write(path) as file:
        for _ in range(100):
          file.write(100 * letter)
          file.flush()

  with futures.ThreadPoolExecutor(2) as pool:
    writers, seen = [pool.submit(write, letter) for letter in (b"a", b"b")], set()
    while not all(writer.done() for writer in writers):
      seen |= {path.read_bytes()} if path.exists() else set()
    assert not any(writer.exception() for writer in writers)
  assert seen
  assert seen <= {10_000 * b"a", 10_000 * b"b"}
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, failure):
  path = tmp_path / "file"
  path.write_bytes(b"before")

  def write():
    with files.atomic_write(path) as file:
      file.write(b"half")
      raise failure("in the middle")

  with pytest.raises(WriteError if failure is OSError else failure):
    write()
  assert path.read_bytes() == b"before"
  assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(RunError, match=r"file\.json could not be written \(No space left on device"):
    files.write_json(tmp_path / "file.json", {"a": 1})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": object()}])
def test_what_is_no_json_is_not_written(tmp_path, value):
  with pytest.raises((ValueError, TypeError)):
    files.write_json(tmp_path / "file", value)
  assert not list(tmp_path.iterdir())


SEALED = {
  "images": np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 3, 2),
  "ids": np.array([3, 1], np.int32),
  "empty": np.zeros((0, 3), np.float64),
  "names": ("clean", "apgd-ce"),
  "share": 0.1 + 0.2,
  "net": "ae12",
}


def sealed(path, **changed):
  files.write_sealed(path, SEALED | changed)
  return path


def read(path):
  with files.read_sealed(path, "report") as arrays:
    return arrays


def rewrite(path, **changed):
  """The file with other arrays, and its SHA-256 as it was; None: without that array."""
  with np.load(path) as file:
    arrays = {name: file[name] for name in file.files} | changed
  np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_a_sealed_file_is_read_as_it_was_written(tmp_path):
  arrays = read(sealed(tmp_path / "deep" / "file.npz"))
  assert arrays.keys() == SEALED.keys()
  for name, value in SEALED.items():
    np.testing.assert_array_equal(arrays[name], np.asarray(value), strict=True)


def test_the_same_arrays_give_the_same_bytes(tmp_path, monkeypatch):
  first = sealed(tmp_path / "first.npz")
  later = time.localtime(time.time() + 1000)
  monkeypatch.setattr(time, "localtime", lambda *_: later)
  assert first.read_bytes() == sealed(tmp_path / "second.npz").read_bytes()


def test_no_array_needs_pickle(tmp_path):
  with np.load(sealed(tmp_path / "file.npz"), allow_pickle=False) as file:
    assert not any(file[name].dtype.hasobject for name in file.files)
  with pytest.raises(TypeError, match="names must hold numbers or strings"):
    sealed(tmp_path / "other.npz", names=np.array([None, {}]))
  assert not (tmp_path / "other.npz").exists()


@pytest.mark.parametrize(
  "changed",
  [
    {"ids": np.array([3, 2], np.int32)},
    {"ids": np.array([3, 1], np.int64)},
    {"ids": np.array([[3, 1]], np.int32)},
    {"ids": None},
    {"more": np.zeros(1)},
    {"sha256": None},
    {"sha256": np.array("0" * 64)},
  ],
)
def test_what_was_changed_does_not_match(tmp_path, changed):
  path = sealed(tmp_path / "file.npz")
  rewrite(path, **changed)
  with pytest.raises(InputError, match=r"file\.npz is not a readable report \(its arrays do not"):
    read(path)


def small(path):
  """Every byte of it can be damaged in a second or two."""
  files.write_sealed(path, {"ids": np.arange(3)})
  return path


def test_a_damaged_byte_changes_no_array_unseen(tmp_path):
  path = small(tmp_path / "file.npz")
  content = path.read_bytes()
  refused = 0
  for place in range(len(content)):
    path.write_bytes(
      content[:place] + bytes([content[place] ^ 0x80 >> place % 8]) + content[place + 1 :]
    )
    try:
      np.testing.assert_array_equal(read(path)["ids"], np.arange(3))  # only a time, or the like
    except InputError:
      refused += 1
  assert refused > len(content) / 2


def test_a_file_that_was_cut_is_refused(tmp_path):
  path = small(tmp_path / "file.npz")
  content = path.read_bytes()
  for length in range(0, len(content), 7):
    path.write_bytes(content[:length])
    with pytest.raises(InputError, match="is not a readable report"):
      read(path)


def test_what_was_never_sealed_is_refused(tmp_path):
  np.save(tmp_path / "one.npy", np.zeros(3))
  np.savez(tmp_path / "other.npz", x=np.zeros(3))
  np.savez(tmp_path / "pickled.npz", x=np.array([None]))
  (tmp_path / "text.npz").write_text("not an archive")
  for name in ("one.npy", "other.npz", "pickled.npz", "text.npz", "absent.npz", ""):
    with pytest.raises(InputError, match="is not a readable report"):
      read(tmp_path / name)


def test_a_block_that_misses_something_is_told_as_another_kind_of_file(tmp_path):
  path = sealed(tmp_path / "file.npz")
  with pytest.raises(InputError, match=r"is not a readable verdict \('claim'\)"):  # noqa: SIM117
    with files.read_sealed(path, "verdict") as arrays:
      arrays["claim"]


def test_a_killed_write_leaves_only_what_is_known_as_left_over(tmp_path):
  code = """
    import os, pathlib, signal, sys
    from robust_opt import files
    with files.atomic_write(pathlib.Path(sys.argv[1])) as file:
      file.write(b"half")
      file.flush()
      os.kill(os.getpid(), signal.SIGKILL)
  """
  path = tmp_path / "summary.json"
  done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)])
  assert done.returncode == -9
  assert not path.exists()
  assert len(files.leftovers(tmp_path)) == 1
  assert files.leftovers(tmp_path) == list(tmp_path.iterdir())
