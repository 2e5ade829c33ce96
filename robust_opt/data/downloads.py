"""Published files, downloaded once by pooch and checked against their SHA-256 sums.

file = File("https://host/train_32x32.mat", "435e94d6...")
path = fetch(file, Path("~/.cache/robust_opt/downloads/svhn").expanduser())
folder = unpack(path, Path("images/imagenette2-160"))
"""

import os
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from absl import logging

from robust_opt import extras
from robust_opt.errors import InputError

_TIMEOUT_S = (5.0, 60.0)  # to connect, and between two parts of a file


class File(NamedTuple):
  """A file as its authors publish it."""

  url: str
  sha256: str

  @property
  def name(self) -> str:
    """The last part of the URL."""
    return self.url.rpartition("/")[2]


def fetch(file: File, folder: Path, others: Sequence[Path] = ()) -> Path:
  """The intact file: in one of the `others`, in `folder`, or downloaded to `folder`.

  A file appears in `folder` once it is complete and its sum is right; one of another sum there is
  downloaded again, and one in `others` is left alone.

  Raises:
    InputError: it is nowhere and cannot be downloaded, or its content is not the published one.
    MissingExtraError: the extra `data` is not installed.
  """
  extras.require("data", "pooch", "requests")
  import pooch
  import requests

  for path in (other / file.name for other in others):
    if path.is_file():
      if pooch.file_hash(str(path)) == file.sha256:
        return path
      logging.warning("%s is not used: its SHA-256 is not the published one.", path)
  try:
    downloader = pooch.HTTPDownloader(timeout=_TIMEOUT_S)
    return Path(pooch.retrieve(file.url, file.sha256, file.name, folder, downloader=downloader))
  except requests.HTTPError as error:
    code = error.response.status_code if error.response is not None else "of an error"
    why = f"{urlsplit(file.url).netloc} answers with HTTP code {code}"
  except requests.ConnectionError as error:
    why = f"{urlsplit(file.url).netloc} cannot be reached ({type(error).__name__})"
  except ValueError:  # pooch's, for another sum
    why = f"the content of {file.url} is not the published one (another SHA-256)"
  except OSError as error:  # a broken transfer, a full disk
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
  raise InputError(f"{why}; put {file.url}, downloaded elsewhere, into {folder}")


def unpack(archive: Path, folder: Path) -> Path:
  """The folder of that name in a .zip or .tar archive, as `folder`; complete or absent.

  Raises:
    InputError: it cannot be written.
  """
  if folder.is_dir():
    return folder
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as incoming:
      _extract(archive, Path(incoming))
      os.replace(Path(incoming, folder.name), folder)
  except OSError as error:
    raise InputError(f"{archive} cannot be unpacked into {folder.parent} ({error})") from error
  return folder


def _extract(archive: Path, folder: Path) -> None:
  if zipfile.is_zipfile(archive):
    with zipfile.ZipFile(archive) as zipped:
      zipped.extractall(folder)
  else:
    with tarfile.open(archive) as tar:
      tar.extractall(folder, filter="data")  # nothing outside the folder
