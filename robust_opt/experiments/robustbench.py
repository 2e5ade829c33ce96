"""The networks of RobustBench's model zoo for CIFAR, by their IDs there.

  entry = find("cifar10/Linf/Wong2020Fast")                 # or find("Wong2020Fast", norm="linf")
  net = load(entry, Path("Wong2020Fast.pt"))                # a weights.LoadedNet

An ID can name a different network in each leaderboard, which is a data set and a threat model. The
IDs are the names below model_info/ of RobustBench. Architectures and standardizations are those of
version 1.1.1 (Croce et al. 2021, https://arxiv.org/abs/2010.09670). The weights are the user's:
nothing is downloaded.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from robust_opt import weight_files, weights
from robust_opt.errors import InputError
from robust_opt.models import state_dict as state_dicts

SHAPE = (32, 32, 3)  # of the images
CLASSES = {"cifar10": 10, "cifar100": 100}
NORMS = {"Linf": "linf", "L2": "l2"}  # RobustBench's threat models -> keys of sets.BALLS
RADII = {"Linf": "8/255", "L2": "0.5"}  # as RobustBench writes them

Channels = tuple[float, ...]


class Net(NamedTuple):
  """An architecture of ours with the standardization of its first layer."""

  architecture: str  # in models.ARCHITECTURES
  title: str  # RobustBench's name of it
  attributes: tuple[tuple[str, Any], ...] = ()
  mean: Channels = (0.0,)
  std: Channels = (1.0,)

  def standardized(self, mean: Channels, std: Channels) -> "Net":
    """The same with another mean and std of the pixels."""
    return self._replace(mean=mean, std=std)


class Entry(NamedTuple):
  """A network of a leaderboard."""

  dataset: str  # of CLASSES
  threat_model: str  # of NORMS
  name: str  # the ID
  net: Net | None = None  # None: not one of the zoo, or not one that `load` knows

  @property
  def board(self) -> str:
    """The leaderboard, DATASET/THREAT_MODEL."""
    return f"{self.dataset}/{self.threat_model}"

  @property
  def path(self) -> str:
    """DATASET/THREAT_MODEL/ID."""
    return f"{self.board}/{self.name}"

  @property
  def norm(self) -> str:
    """As in sets.BALLS."""
    return NORMS[self.threat_model]

  @property
  def radius(self) -> str:
    """Of the leaderboard, in pixels of [0, 1], as RobustBench writes it."""
    return RADII[self.threat_model]


def _wide(depth: int, width: int) -> Net:
  return Net("WideResNet", f"WideResNet-{depth}-{width}", (("depth", depth), ("width", width)))


_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
_CIFAR10_EXACT = (  # of Augustin et al.
  (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
  (0.24703225141799082, 0.24348516474564, 0.26158783926049628),
)
_CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
_CIFAR100_EXACT = (
  (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
  (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)
_TO_ONE = (0.5,) * 3, (0.5,) * 3  # pixels in [-1, 1]
_ENGSTROM = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_RONY = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
_CHEN = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

_RESNET18 = Net("ResNet18", "ResNet-18")
_RESNET50 = Net("ResNet50", "ResNet-50")
_PREACT = Net("PreActResNet18", "PreActResNet-18")
_PREACT_INPUT = _PREACT._replace(attributes=(("shortcut_of", "input"), ("final_norm", False)))


def _dm_wide(depth: int, width: int, moments: tuple[Channels, Channels] = _CIFAR10) -> Net:
  return _wide(depth, width)._replace(architecture="DMWideResNet").standardized(*moments)


def _dm_preact(moments: tuple[Channels, Channels] = _CIFAR10) -> Net:
  silu = (("activation", "silu"),)
  return Net("DMPreActResNet18", "PreActResNet-18", silu).standardized(*moments)


# Leaderboard -> its networks, each with the IDs of its weights.
_ZOO: Mapping[str, Mapping[Net, str]] = {
  "cifar10/Linf": {
    _wide(28, 10): """
      Carmon2019Unlabeled Sehwag2020Hydra Sridhar2021Robust Standard Wang2020Improving
      Wu2020Adversarial_extra Zhang2020Geometry""",
    _wide(34, 10): """
      Addepalli2021Towards_WRN34 Addepalli2022Efficient_WRN_34_10 Chen2021LTD_WRN34_10
      Chen2024Data_WRN_34_10 Cui2020Learnable_34_10 Cui2023Decoupled_WRN-34-10 Huang2020Self
      Jia2022LAS-AT_34_10 Sehwag2021Proxy Sitawarin2020Improving Wu2020Adversarial
      Zhang2019Theoretically Zhang2019You Zhang2020Attacks""",
    _wide(34, 15): "Sridhar2021Robust_34_15",
    _wide(34, 20): "Chen2021LTD_WRN34_20 Chen2024Data_WRN_34_20 Cui2020Learnable_34_20",
    _wide(70, 16): "Jia2022LAS-AT_70_16",
    _wide(28, 10).standardized(*_TO_ONE): "Hendrycks2019Using",
    _wide(34, 10).standardized(*_CIFAR10): "Chen2020Efficient",
    _wide(34, 20).standardized(*_CIFAR10): "Rice2020Overfitting",
    _dm_wide(28, 10): """
      Cui2023Decoupled_WRN-28-10 Gowal2020Uncovering_28_10_extra Gowal2021Improving_28_10_ddpm_100m
      Pang2022Robustness_WRN28_10 Rade2021Helper_ddpm Rebuffi2021Fixing_28_10_cutmix_ddpm
      Wang2023Better_WRN-28-10 Xu2023Exploring_WRN-28-10""",
    _dm_wide(34, 10): "Rade2021Helper_extra",
    _dm_wide(34, 20): "Gowal2020Uncovering_34_20",
    _dm_wide(70, 16): """
      Gowal2020Uncovering_70_16 Gowal2020Uncovering_70_16_extra Gowal2021Improving_70_16_ddpm_100m
      Pang2022Robustness_WRN70_16 Rebuffi2021Fixing_70_16_cutmix_ddpm
      Rebuffi2021Fixing_70_16_cutmix_extra Wang2023Better_WRN-70-16""",
    _dm_wide(82, 8): "Bartoldson2024Adversarial_WRN-82-8",
    _dm_wide(94, 16): "Bartoldson2024Adversarial_WRN-94-16",
    _dm_wide(106, 16): "Rebuffi2021Fixing_106_16_cutmix_ddpm",
    _dm_preact(): """
      Gowal2021Improving_R18_ddpm_100m Rade2021Helper_R18_ddpm Rade2021Helper_R18_extra
      Rebuffi2021Fixing_R18_ddpm""",
    _RESNET18: "Addepalli2021Towards_RN18 Addepalli2022Efficient_RN18 Sehwag2021Proxy_R18",
    _RESNET50.standardized(*_ENGSTROM): "Engstrom2019Robustness",
    _PREACT_INPUT: "Andriushchenko2020Understanding",
    _PREACT_INPUT.standardized(*_CIFAR10): "Wong2020Fast",
  },
  "cifar10/L2": {
    _wide(28, 10): "Standard",
    _wide(34, 10): "Sehwag2021Proxy Wu2020Adversarial",
    _wide(28, 10).standardized(*_RONY): "Rony2019Decoupling",
    _wide(34, 10).standardized(
      *_CIFAR10_EXACT
    ): "Augustin2020Adversarial_34_10 Augustin2020Adversarial_34_10_extra",
    _dm_wide(28, 10): "Rebuffi2021Fixing_28_10_cutmix_ddpm Wang2023Better_WRN-28-10",
    _dm_wide(70, 16): """
      Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm
      Rebuffi2021Fixing_70_16_cutmix_extra Wang2023Better_WRN-70-16""",
    _dm_preact(): "Rade2021Helper_R18_ddpm Rebuffi2021Fixing_R18_cutmix_ddpm",
    _RESNET18: "Sehwag2021Proxy_R18",
    _RESNET50.standardized(*_ENGSTROM): "Engstrom2019Robustness",
    _RESNET50.standardized(*_CIFAR10_EXACT): "Augustin2020Adversarial",
    _PREACT.standardized(*_CIFAR10): "Rice2020Overfitting",
  },
  "cifar100/Linf": {
    _wide(34, 10): """
      Addepalli2021Towards_WRN34 Addepalli2022Efficient_WRN_34_10 Chen2021LTD_WRN34_10
      Chen2024Data_WRN_34_10 Cui2020Learnable_34_10_LBGAT0 Cui2020Learnable_34_10_LBGAT6
      Cui2020Learnable_34_10_LBGAT9_eps_8_255 Cui2023Decoupled_WRN-34-10
      Cui2023Decoupled_WRN-34-10_autoaug Jia2022LAS-AT_34_10 Sehwag2021Proxy
      Sitawarin2020Improving""",
    _wide(34, 20): "Cui2020Learnable_34_20_LBGAT6 Jia2022LAS-AT_34_20",
    _wide(28, 10).standardized(*_TO_ONE): "Hendrycks2019Using",
    _wide(34, 10).standardized(*_CHEN): "Chen2020Efficient",
    _wide(34, 10).standardized(*_CIFAR100_EXACT): "Wu2020Adversarial",
    _dm_wide(28, 10, _CIFAR100): """
      Cui2023Decoupled_WRN-28-10 Pang2022Robustness_WRN28_10 Rebuffi2021Fixing_28_10_cutmix_ddpm
      Wang2023Better_WRN-28-10""",
    _dm_wide(70, 16, _CIFAR100): """
      Gowal2020Uncovering Gowal2020Uncovering_extra Pang2022Robustness_WRN70_16
      Rebuffi2021Fixing_70_16_cutmix_ddpm Wang2023Better_WRN-70-16""",
    _dm_preact(_CIFAR100): "Rade2021Helper_R18_ddpm Rebuffi2021Fixing_R18_ddpm",
    _RESNET18: "Addepalli2022Efficient_RN18",
    _PREACT: "Addepalli2021Towards_PARN18",
    _PREACT.standardized(*_CIFAR100_EXACT): "Rice2020Overfitting",
  },
}


def _entry(board: str, name: str, net: Net | None = None) -> Entry:
  dataset, threat_model = board.split("/")
  return Entry(dataset, threat_model, name, net)


ENTRIES: Mapping[str, Entry] = {
  f"{board}/{name}": _entry(board, name, net)
  for board, nets in _ZOO.items()
  for net, names in nets.items()
  for name in names.split()
}
# Copies of the network within some files, which RobustBench does not load either.
_UNUSED = re.compile(r"(^|\.)model_preact_hl1\.")


def find(text: str, dataset: str = "", norm: str = "") -> Entry:
  """The entry of an ID, or of DATASET/THREAT_MODEL/ID; `net` is None if it is not in the table.

  Args:
    text: the ID. Alone it must be in the table, over the first norm of linf and l2 that has it.
    dataset: "cifar10" or "cifar100", or another one, which counts as "cifar10"; likewise.
    norm: "linf" or "l2"; empty: any.

  Raises:
    InputError: no such leaderboard, or an ID alone that is not in the table.
  """
  if "/" in text:
    board, _, name = text.rpartition("/")
    if board not in _ZOO or not name:
      raise InputError(f"--robustbench={text}: the leaderboards are {', '.join(_ZOO)}.")
    return ENTRIES.get(text, _entry(board, name))
  dataset = dataset.partition(":")[0]  # without a version
  dataset = dataset if dataset in CLASSES else "cifar10"
  boards = [f"{dataset}/{threat}" for threat, own in NORMS.items() if norm in ("", own)]
  found = [ENTRIES[f"{board}/{text}"] for board in boards if f"{board}/{text}" in ENTRIES]
  if not found:
    raise InputError(_unsupported(text, [board for board in boards if board in _ZOO] or [*_ZOO]))
  return found[0]


def load(entry: Entry, path: Path) -> weights.LoadedNet:
  """The network of an entry with the weights in a file.

  A mean and std in the file replace those of the table, as they do in RobustBench.

  Raises:
    InputError: an entry without network, or what `weights.load_torch` refuses.
  """
  if entry.net is None:
    raise InputError(_unsupported(entry.path, [entry.board]))
  file = weight_files.read(path)
  arrays = {key: value for key, value in file.state_dict.items() if not _UNUSED.search(key)}
  moments = {"mean": entry.net.mean, "std": entry.net.std} | state_dicts.moments(arrays)
  attributes = dict(entry.net.attributes) | moments
  net = weights.build(entry.net.architecture, num_classes=CLASSES[entry.dataset], **attributes)
  found = weights.loaded(net, weight_files.WeightsFile(arrays, {}), path, SHAPE)
  return found._replace(title=f"{entry.name} of RobustBench, {path.name}")


def _unsupported(text: str, boards: list[str]) -> str:
  entries = ENTRIES.values()
  ids = {board: [entry.name for entry in entries if entry.board == board] for board in boards}
  known = "; ".join(f"of {board} {', '.join(names)}" for board, names in ids.items())
  return (
    f"--robustbench={text} is not supported: the ResNets, PreActResNets and WideResNets of the zoo "
    f"are, {known}."
  )
