"""A network as a folder, laid out as on the Hugging Face Hub.

  ro.save_weights(run, "hub/digits", evaluations=["runs/digits/evaluations/linf_0.1_standard"])
  net = ro.load("hub/digits")

  model.safetensors   the weights
  config.json         architecture, attributes, shape of an image, SHA-256, and what was measured
  README.md           the model card, whose header the Hub reads; its license is yours to state

Nothing is uploaded or downloaded here; `hf upload USER/NAME hub/digits` does that.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robust_opt import models
from robust_opt.errors import InputError
from robust_opt.evaluation import verdict
from robust_opt.files import atomic_write, write_json

CONFIG, CARD = "config.json", "README.md"
_NOT_OF_A_NETWORK = {"parent", "name", "dtype", "axis_name"}  # fields of modules
Config = dict[str, Any]


def describe(
  net: Any, image_shape: Sequence[int], sha256: str, dataset: str, evaluations: Sequence[Path]
) -> Config:
  """The content of config.json.

  Args:
    net: a module of robust_opt.models.
    image_shape: [H, W, C].
    sha256: of its weights.
    dataset: that it was trained on, or "".
    evaluations: folders of robust_opt.evaluate, or their verdict.npz.

  Raises:
    InputError: a module of another package, or an evaluation of other weights.
  """
  name = type(net).__name__
  if models.ARCHITECTURES.get(name) is not type(net):
    raise InputError(f"A folder takes networks of robust_opt.models; store {name} as .safetensors.")
  fields = {field.name for field in dataclasses.fields(net) if field.init} - _NOT_OF_A_NETWORK
  return {
    "library_name": "robust_opt",
    "architecture": name,
    "attributes": {field: _plain(getattr(net, field)) for field in sorted(fields)},
    "image_shape": list(image_shape),
    "sha256": sha256,
    "dataset": dataset,
    "evaluations": [_measured(path, sha256) for path in evaluations],
  }


def write(folder: Path, config: Config) -> None:
  """Writes config.json and the card."""
  write_json(folder / CONFIG, config)
  with atomic_write(folder / CARD) as file:
    file.write(card(folder.name, config).encode())


def read(folder: Path) -> Config:
  """The content of config.json, attributes with tuples.

  Raises:
    InputError: there is none, or it is another library's.
  """
  try:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    given = config["attributes"].items()
    attributes = {key: tuple(v) if isinstance(v, list) else v for key, v in given}
    config["architecture"], config["image_shape"], config["sha256"]
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    raise InputError(
      f"{folder} is no folder of ro.save_weights ({type(error).__name__}: {error})."
    ) from error
  return {**config, "attributes": attributes}


def card(name: str, config: Config) -> str:
  """The model card: a header in YAML (of which JSON is a part), then what a reader needs."""
  shape = " x ".join(map(str, config["image_shape"]))
  parts = [
    "---\n" + "\n".join(_header(name, config)) + "\n---",
    f"# {name}",
    f"{config['architecture']} for images of {shape}, pixels in [0, 1], channels last.",
    *_results(config),
    "## Use",
    "```python\nimport robust_opt as ro\n\n"
    f'net = ro.load("{name}")  # the path of this folder\n'
    "classes = net.predict(x)  # x [N, H, W, C], pixels in [0, 1]\n```",
    f"SHA-256 of the weights: {config['sha256']}.",
  ]
  return "\n\n".join(parts) + "\n"


def _header(name: str, config: Config) -> Iterator[str]:
  yield "# license: yours to state, as in: apache-2.0"
  yield "library_name: robust_opt"
  yield "pipeline_tag: image-classification"
  yield f"tags: {json.dumps(['jax', 'flax', 'robust_opt', 'adversarial-robustness'])}"
  if config["dataset"]:
    yield f"datasets: {json.dumps([config['dataset']])}"
  if config["evaluations"]:
    yield f"metrics: {json.dumps(['accuracy'])}"
    results = [_model_index(each, config["dataset"]) for each in config["evaluations"]]
    yield f"model-index: {json.dumps([{'name': name, 'results': results}])}"


def _model_index(measured: Mapping[str, Any], dataset: str) -> dict[str, Any]:
  """One result, in the words of the Hub."""
  total = measured["examples"]
  values = {
    "clean accuracy": measured["clean"] / total,
    f"robust accuracy, {measured['attack']}": measured["robust"] / total,
  }
  data = dataset or "unknown"
  return {
    "task": {"type": "image-classification"},
    "dataset": {"name": data, "type": data},
    "metrics": [
      {"type": "accuracy", "name": key, "value": round(100 * value, 2)}
      for key, value in values.items()
    ],
  }


def _results(config: Config) -> Iterator[str]:
  """The evaluations as a table, with 95 % intervals."""
  if not config["evaluations"]:
    return
  from robust_opt.tables import Rate  # SciPy's statistics, which `import robust_opt` must not need

  rows = [
    (each["attack"], Rate(each["clean"], each["examples"]), Rate(each["robust"], each["examples"]))
    for each in config["evaluations"]
  ]
  yield "\n".join(
    [
      "| attack | examples | clean accuracy | robust accuracy | 95 % interval |",
      "|---|---|---|---|---|",
      *(
        f"| {attack} | {clean.total:,} | {clean.percent} | {robust.percent} | {robust.range} |"
        for attack, clean, robust in rows
      ),
    ]
  )
  yield (
    "Robust accuracy is an upper bound: the share of the examples that these attacks did not break."
  )


def _measured(path: Path, sha256: str) -> dict[str, Any]:
  from robust_opt.evaluation.headline import ensemble_over  # likewise

  stored = verdict.load(path / "verdict.npz" if path.is_dir() else path)
  claim, broken_by = stored.claim, stored.verdict.broken_by
  if claim.net_sha256 != sha256:
    raise InputError(f"{path} is an evaluation of other weights: {claim.net_sha256} -> {sha256}.")
  return {
    "attack": ensemble_over(claim.version, claim.set),
    "version": claim.version,
    "set": claim.set,
    "seed": claim.seed,
    "examples": len(broken_by),
    "clean": int(np.sum(broken_by != 0)),
    "robust": int(np.sum(broken_by < 0)),
  }


def _plain(value: Any) -> Any:
  """As JSON has it."""
  return np.asarray(value).tolist() if isinstance(value, tuple | list | np.ndarray) else value
