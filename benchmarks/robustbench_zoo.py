"""What RobustBench's model zoo for CIFAR is made of: tests/experiments/robustbench_zoo.json.

  python -m benchmarks.robustbench_zoo tests/experiments/robustbench_zoo.json

It needs torch, torchvision, timm and robustbench (`--no-deps`); other packages that its files
import are replaced by stubs. Networks with the same names and shapes in their state dicts and
the same standardization make one entry: a hash of names and shapes, and what the first convolution
sees of a black and of a white image. `unsupported` lists the rest: ensembles, other architectures.
"""

import importlib.machinery
import json
import sys
import types
import unittest.mock
from collections import defaultdict
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from typing import Any

from benchmarks.reference_logits import structure_sha256

# The files of RobustBench's architectures that robust_opt has, and classes in or over them that
# compute something else than these with a fixed standardization.
SUPPORTED = {"resnet", "wide_resnet", "dm_wide_resnet"}
OTHERS = {"Ding2020MMANet", "BoostingWideResNet", "RobustWideResNet"}
_UNUSED = "sub_block1."
_ABSENT = {"autoattack", "cv2", "gdown", "geotorch", "pandas", "requests", "torchdiffeq", "tqdm"}


class _Absent(MetaPathFinder, Loader):
  """Imports packages that are not needed here as mocks."""

  def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
    del path, target
    known = name.partition(".")[0] in _ABSENT
    return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

  def create_module(self, spec: Any) -> Any:
    return unittest.mock.MagicMock(__path__=[], __spec__=spec, __name__=spec.name)

  def exec_module(self, module: Any) -> None:
    del module


def _tables() -> dict[str, dict[str, Any]]:
  """Leaderboard -> ID -> what makes the network."""
  sys.meta_path.append(_Absent())
  sys.modules["pkg_resources"] = unittest.mock.MagicMock()
  root = next(Path(p) / "robustbench" for p in sys.path if (Path(p) / "robustbench").is_dir())
  for name, folder in (("robustbench", root), ("robustbench.model_zoo", root / "model_zoo")):
    package = types.ModuleType(name)  # without its __init__, which imports everything
    package.__path__ = [str(folder)]
    sys.modules[name] = package
  from robustbench.model_zoo import cifar10, cifar100

  boards = {"cifar10/Linf": cifar10.linf, "cifar10/L2": cifar10.l2, "cifar100/Linf": cifar100.linf}
  return {
    board: {name: value["model"] if value["gdrive_id"] else None for name, value in table.items()}
    for board, table in boards.items()
  }


def _networks() -> Iterator[tuple[str, Any]]:
  """Path and network, or None for an ensemble and for one that cannot be made here."""
  for board, table in _tables().items():
    for name, make in table.items():
      try:
        yield f"{board}/{name}", make and make()
      except Exception:  # for want of an absent package, or of a file of weights
        yield f"{board}/{name}", None


def _is_supported(net: Any) -> bool:
  kinds = type(net).__mro__
  files = {kind.__module__.rpartition(".")[2] for kind in kinds}
  is_sparse = any("Sparse" in type(module).__name__ for module in net.modules())
  others = OTHERS & {kind.__name__ for kind in kinds}
  return bool(files & SUPPORTED) and not others and not is_sparse


def _seen(net: Any) -> list[list[float]]:
  """The pixel that the first convolution sees of a black and of a white image."""
  import torch

  seen = []

  class Stop(Exception):  # noqa: N818
    pass

  def record(module: Any, inputs: Any) -> None:
    seen.append([round(float(v), 6) for v in inputs[0][0, :, 5, 5]])
    raise Stop

  first = next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d))
  first.register_forward_pre_hook(record)
  for value in (0.0, 1.0):
    try:
      net.eval()(torch.full((1, 3, 32, 32), value))
    except Stop:
      continue
  return seen


def _leave_weights_empty() -> None:
  """Random weights are not needed, and would take a minute."""
  import torch

  for where, names in (
    (torch.nn.init, ("kaiming_normal_", "kaiming_uniform_")),
    (torch.Tensor, ("normal_", "uniform_")),
  ):
    for name in names:
      setattr(where, name, lambda tensor, *_, **__: tensor)


def main(path: Path) -> None:
  """Writes the file."""
  kinds: dict[str, list[str]] = defaultdict(list)
  unsupported = []
  _leave_weights_empty()
  for name, net in _networks():
    if net is None or not _is_supported(net):
      unsupported.append(name)
      continue
    shapes = {k: list(v.shape) for k, v in net.state_dict().items() if not k.startswith(_UNUSED)}
    shapes = {k: v for k, v in shapes.items() if k not in ("mu", "sigma")}
    kinds[json.dumps([structure_sha256(shapes), *_seen(net)])].append(name)
  entries = [
    {"structure_sha256": sha256, "black": black, "white": white, "networks": names}
    for (sha256, black, white), names in ((json.loads(k), v) for k, v in kinds.items())
  ]
  content = {"robustbench": "1.1.1", "kinds": entries, "unsupported": unsupported}
  path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main(Path(sys.argv[1]))
