"""What the PyTorch classes of the literature compute: tests/models/reference_logits.json.

  python benchmarks/reference_logits.py tests/models/reference_logits.json

It needs torch, torchvision, timm and robustbench (`--no-deps`), whose classes are loaded
from their files without the other packages that it imports; not JAX and not robust_opt. For every
small network the file has the names and shapes of its state dict, and its logits in float64 at the
weights of `weights` and the images of `images`. For every network of full size it has the number of
parameters and a hash of names and shapes.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_COUNTER = "num_batches_tracked"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)  # of the networks that standardize


def weights(key: str, shape: Sequence[int]) -> np.ndarray:
  """The values of an entry of a state dict, float32, from its name and shape alone."""
  rng = np.random.default_rng(zlib.crc32(key.encode()))
  if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)
  scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
  return (scale * rng.normal(size=shape)).astype(np.float32)


def images(side: int) -> np.ndarray:
  """Two images [2, side, side, 3] in [0, 1], float32."""
  return np.random.default_rng(0).uniform(size=(2, side, side, 3)).astype(np.float32)


def structure_sha256(shapes: Mapping[str, Sequence[int]]) -> str:
  """A hash of the names and shapes of a state dict, in any order, without counters of batches."""
  lines = [f"{key} {list(shapes[key])}" for key in sorted(shapes) if not key.endswith(_COUNTER)]
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _robustbench(name: str) -> ModuleType:
  """A file of robustbench's architectures."""
  package = importlib.util.find_spec("robustbench")
  assert package is not None
  assert package.submodule_search_locations is not None
  folder = Path(package.submodule_search_locations[0]) / "model_zoo" / "architectures"
  spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _first_blocks(net: Any) -> Any:
  """The network with the first block of every stage alone."""
  for name in ("layer_0", "layer_1", "layer_2", "layer_3"):
    setattr(net, name, getattr(net, name)[:1])
  return net


def small() -> list[dict[str, Any]]:
  """Networks whose logits are compared: PyTorch's, our name and attributes, the side of images."""
  import torchvision
  from timm.models.vision_transformer import VisionTransformer
  from torchvision.models.resnet import BasicBlock, Bottleneck

  rb, wide, dm = map(_robustbench, ("resnet", "wide_resnet", "dm_wide_resnet"))
  ones = (1, 1, 1, 1)  # blocks of every stage
  own: dict[str, Any] = {"stage_sizes": ones}
  moments: dict[str, Any] = {"mean": MEAN, "std": STD}
  swish = {"activation_fn": dm.Swish}

  def case(net: Any, ours: str, side: int = 32, **attributes: Any) -> dict[str, Any]:
    return {"net": net, "architecture": ours, "side": side, "attributes": attributes}

  preact = rb.PreActResNet(rb.PreActBlock, ones)
  preact_v2 = rb.PreActResNet(rb.PreActBlockV2, ones, bn_before_fc=True)
  dm_preact = _first_blocks(dm.DMPreActResNet(**swish, **moments))
  dm_wide = dm.DMWideResNet(depth=10, width=2, **moments)
  dm_wide_silu = dm.DMWideResNet(depth=16, width=2, **swish, **moments)
  trades = wide.WideResNet(depth=10, widen_factor=2, sub_block1=True)
  resnet = torchvision.models.ResNet
  imagenet: dict[str, Any] = {"stem": "imagenet", **own}
  vit = VisionTransformer(32, 8, num_classes=10, embed_dim=48, depth=2, num_heads=3)
  input_shortcut: dict[str, Any] = {"shortcut_of": "input", "final_norm": False}
  return [
    case(preact_v2, "PreActResNet", **own),
    case(preact, "PreActResNet", **own, **input_shortcut),
    case(dm_preact, "DMPreActResNet", **own, activation="silu", **moments),
    case(trades, "WideResNet", depth=10, width=2),
    case(dm_wide, "DMWideResNet", depth=10, width=2, activation="relu", **moments),
    case(dm_wide_silu, "DMWideResNet", depth=16, width=2, **moments),
    case(rb.ResNet(rb.BasicBlock, ones), "ResNet", **own),
    case(rb.ResNet(rb.Bottleneck, ones), "ResNet", **own, bottleneck=True),
    case(resnet(BasicBlock, ones, num_classes=10), "ResNet", 64, **imagenet),
    case(resnet(Bottleneck, ones, num_classes=10), "ResNet", 64, **imagenet, bottleneck=True),
    case(vit, "ViT", patch=8, dim=48, depth=2, heads=3),
  ]


def full_size() -> dict[str, Callable[[], Any]]:
  """Networks whose names and shapes are compared, by our name."""
  import torchvision
  from timm.models.vision_transformer import VisionTransformer

  rb, wide, dm = map(_robustbench, ("resnet", "wide_resnet", "dm_wide_resnet"))
  two = (2, 2, 2, 2)
  return {
    "PreActResNet18": lambda: rb.PreActResNet(rb.PreActBlockV2, two, bn_before_fc=True),
    "DMPreActResNet18": dm.DMPreActResNet,
    "ResNet18": rb.ResNet18,
    "ResNet50": rb.ResNet50,
    "ResNet18-ImageNet": torchvision.models.resnet18,
    "ResNet50-ImageNet": torchvision.models.resnet50,
    "WideResNet-28-10": lambda: wide.WideResNet(28, widen_factor=10),
    "WideResNet-34-10": lambda: wide.WideResNet(34, widen_factor=10),
    "WideResNet-70-16": lambda: wide.WideResNet(70, widen_factor=16),
    "DMWideResNet-28-10": lambda: dm.DMWideResNet(depth=28, width=10),
    "DMWideResNet-34-10": lambda: dm.DMWideResNet(depth=34, width=10),
    "DMWideResNet-70-16": lambda: dm.DMWideResNet(depth=70, width=16),
    "ViT-Ti": lambda: VisionTransformer(embed_dim=192, num_heads=3),
    "ViT-S": lambda: VisionTransformer(embed_dim=384, num_heads=6),
    "ViT-B": lambda: VisionTransformer(embed_dim=768, num_heads=12),
  }


def _shapes(net: Any) -> dict[str, list[int]]:
  state = net.state_dict()
  return {key: list(value.shape) for key, value in state.items() if not key.endswith(_COUNTER)}


def measured(case: Mapping[str, Any]) -> dict[str, Any]:
  """The entry of a small network."""
  import torch

  net, shapes = case["net"].eval(), _shapes(case["net"])
  state = {key: torch.from_numpy(weights(key, shape)) for key, shape in shapes.items()}
  missing, unexpected = net.load_state_dict(state, strict=False)
  assert not unexpected
  assert all(key.endswith(_COUNTER) for key in missing)
  x = torch.from_numpy(images(case["side"])).double().permute(0, 3, 1, 2)
  with torch.no_grad():
    logits = net.double()(x).numpy()
  named = {key: case[key] for key in ("architecture", "attributes", "side")}
  return {**named, "shapes": shapes, "logits": np.round(logits, 9).tolist()}


def main(path: Path) -> None:
  """Writes the file."""
  import timm
  import torch
  import torchvision

  with torch.device("meta"):  # no memory
    nets = {name: make() for name, make in full_size().items()}
  full = {
    name: {
      "parameters": sum(p.numel() for p in net.parameters()),
      "structure_sha256": structure_sha256(_shapes(net)),
    }
    for name, net in nets.items()
  }
  versions = {"robustbench": importlib.metadata.version("robustbench")}
  versions |= {module.__name__: module.__version__ for module in (torch, torchvision, timm)}
  content = {"versions": versions, "full_size": full, "small": list(map(measured, small()))}
  path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main(Path(sys.argv[1]))
