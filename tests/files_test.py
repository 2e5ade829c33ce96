"""Files are whole or absent, whatever happens while they are written."""

import errno
import json
import os
import stat
import subprocess
import sys
import textwrap

import pytest

from robust_opt import files
from robust_opt.errors import RunError, WriteError


def test_write_appears_whole_with_ordinary_rights(tmp_path):
  path = tmp_path / "deep" / "file.json"
  files.write_json(path, {"a": [1, 2.5, None, "é"]})
  assert json.loads(path.read_text()) == {"a": [1, 2.5, None, "é"]}
  mask = os.umask(0)
  os.umask(mask)
  assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
  assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError])
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


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path, monkeypatch, call):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, call, full)
  with pytest.raises(RunError, match=r"file\.json could not be written \(No space left on device"):
    files.write_json(tmp_path / "file.json", {"a": 1})
  assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder_is_named(tmp_path):
  (tmp_path / "in_the_way").write_text("")
  with pytest.raises(WriteError, match="in_the_way"):
    files.write_json(tmp_path / "in_the_way" / "file", 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": object()}])
def test_what_is_no_json_is_not_written(tmp_path, value):
  with pytest.raises((ValueError, TypeError)):
    files.write_json(tmp_path / "file", value)
  assert not list(tmp_path.iterdir())


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
