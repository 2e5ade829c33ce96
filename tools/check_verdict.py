"""Checks every claim of a verdict.npz with NumPy and onnxruntime alone: no JAX, no robust_opt.

  python tools/check_verdict.py verdict.npz net.onnx data.npz

The network is the ONNX file of ro.export_onnx (or any other, images [B, *S] in [0, 1] -> logits);
data.npz has the images x [N, *S], in [0, 1] or uint8, and the labels y [N] of the whole test set.
It shares no code with what it checks; docs/evaluation.md ("Verify without JAX") says what that is.
Exit code 0: all claims are true; 1: the false claims are printed; 2: the files cannot be read.

Another runtime sums in a different order. Where the two largest logits differ by less than MARGIN
of the largest of the batch, either answer of the network is accepted.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

MARGIN = 1e-4
RADIUS_TOLERANCE = 1e-6  # of the radius
NORMS = {"LInf": np.inf, "L2": 2, "L1": 1}
BATCH = 100

Arrays = Mapping[str, np.ndarray]
Logits = Callable[[np.ndarray], np.ndarray]  # [n, *S] -> [n, C]


def seal(arrays: Arrays) -> str:
  """SHA-256 of names, types, shapes and values, in the order of the names."""
  sha = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    sha.update(f"{name} {array.dtype.str} {array.shape};".encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def data_sha256(x: np.ndarray, y: np.ndarray) -> str:
  """SHA-256 of the shape of the images, the images in float32 and the labels in int32."""
  sha = hashlib.sha256(f"{x.shape}".encode())
  sha.update(np.ascontiguousarray(x, np.float32).tobytes())
  sha.update(np.ascontiguousarray(y, np.int32).tobytes())
  return sha.hexdigest()


def problems(
  file: Arrays, logits: Logits, clean: np.ndarray, x: np.ndarray, y: np.ndarray, net_sha256: str
) -> list[str]:
  """The false claims, one sentence each.

  Args:
    file: the arrays of verdict.npz.
    logits: the network.
    clean: its logits of the clean images, [N, C].
    x, y: the clean images [N, *S] in [0, 1] and their labels [N].
    net_sha256: of the network's arrays, as its ONNX file states it; empty: not compared.
  """
  rest = {name: array for name, array in file.items() if name != "sha256"}
  if str(file["sha256"]) != seal(rest):
    return ["The file is damaged: its arrays do not match their SHA-256."]
  found = list(_shape_problems(rest, x))
  if found:
    return found
  claim = json.loads(str(rest["claim"]))
  checks = {
    "It was made on other images or labels.": claim["data_sha256"] == data_sha256(x, y),
    "It was made for another net.": "" in (net_sha256, claim["net_sha256"])
    or net_sha256 == claim["net_sha256"],
    "Its set is not the one that it was made for.": claim.get("set_sha256", "")
    in ("", hashlib.sha256(json.dumps(claim["set"], sort_keys=True).encode()).hexdigest()),
    "Its labels are not those of the data set.": np.array_equal(rest["labels"], y),
    "Its attacks are not named, clean images first.": str(rest["names"][0]) == "clean",
  }
  found = [sentence for sentence, holds in checks.items() if not holds]
  found += _count_problems(rest, y)
  if ("targets" in rest) != bool(claim.get("target", "")):
    return [*found, f"It states the target {claim.get('target')!r}, which its arrays contradict."]
  found += _ration_problems(rest, claim)
  found += _image_problems(rest, claim["set"], x, y)
  if claim.get("target"):
    found += _target_problems(rest, str(claim["target"]), clean, y)
  return found + list(_prediction_problems(rest, logits, clean, y))


def _shape_problems(file: Arrays, x: np.ndarray) -> Iterator[str]:
  """Without the right shapes and types nothing else can be checked."""
  count, broken = len(x), len(np.flatnonzero(file["broken_by"] > 0))
  expected = {
    "prediction": ((count,), np.integer),
    "broken_by": ((count,), np.integer),
    "labels": ((count,), np.integer),
    "broken_ids": ((broken,), np.integer),
    "norms": ((broken,), np.floating),
    "images": ((broken, *x.shape[1:]), np.floating),
    "robust_accuracy": ((), np.floating),
  }
  if "targets" in file:
    expected["targets"] = ((count,), np.integer)
  for name, (shape, kind) in expected.items():
    array = file[name]
    if array.shape != shape or not np.issubdtype(array.dtype, kind):
      yield f"Its {name} must be {kind.__name__} {shape}, not {array.dtype} {array.shape}."
  if file["names"].size == 0:
    yield "It names no attack."


def _count_problems(file: Arrays, y: np.ndarray) -> Iterator[str]:
  """Whether ids, attacks and accuracies follow from one another."""
  broken_by = file["broken_by"]
  least = -2 if "targets" in file else -1  # -2: the label is the target
  unknown = np.sum((broken_by < least) | (broken_by >= len(file["names"])))
  if unknown:
    yield f"{unknown} examples are broken by an attack that it does not list."
  if not np.array_equal(file["broken_ids"], np.flatnonzero(broken_by > 0)):
    yield "Its images are not those of the examples that it calls broken."
  disagreements = np.sum((broken_by == 0) != (file["prediction"] != y))
  if disagreements:
    yield f"It misstates whether the net is right on {disagreements} clean images."
  fraction = np.mean(broken_by < 0)
  if fraction != file["robust_accuracy"]:
    yield f"It states a robust accuracy of {file['robust_accuracy']:.6f}, not {fraction:.6f}."


def _ration_problems(file: Arrays, claim: Mapping[str, Any]) -> Iterator[str]:
  """Whether the audit and the bound of the version "adaptive" follow from its order of images."""
  if ("order" in file) != (claim["version"] == "adaptive"):
    yield f"It must state what was skipped if, and only if, it is adaptive, not {claim['version']}."
    return
  if "order" not in file:
    return
  order, broken = file["order"].tolist(), file["broken_by"]
  if sorted(order) != np.flatnonzero((broken == -1) | (broken > 3)).tolist():
    yield "Its order is not one of the images that the first three attacks left."
    return
  if not 0 <= float(file["share"]) < 1:
    yield f"It states a share of {file['share']}, which is not in [0, 1)."
    return
  nearest, step = -(-len(order) // 32), -(-len(order) // 16)
  most = math.floor(float(file["share"]) * len(broken) + 1e-9)
  draw = {index: hashlib.sha256(f"{claim['seed']} {index}".encode()).digest() for index in order}
  far = sorted(order[nearest:], key=lambda index: draw[index])

  def proves(most: int, sample: int) -> bool:  # that there are no more errors, with 95 %
    missed = math.comb(len(far) - most - 1, sample) if most < len(far) else 0
    return 20 * missed <= math.comb(len(far), sample)

  size = next((m for m in range(len(far)) if most and proves(most, m)), len(far))
  audit = sorted(far[:size])
  errors = [place + 1 for place, index in enumerate(order) if index in audit and broken[index] > 0]
  reached, false = [], 0
  for cause in (4, 5, 6):
    count = max([nearest, *errors])
    by = broken[order] == cause
    while count < len(order) and np.mean(by[max(0, count - step) : count]) > 1 / 12:
      count = min(count + step, len(order))
    reached.append(count)
    false += sum(by[place] and order[place] not in audit for place in range(count, len(order)))
  left = [index for index in order[min(reached) :] if index not in audit and broken[index] == -1]
  bound = next((d for d in range(len(left)) if proves(d, size)), len(left))
  stated = [file["audit"].tolist(), file["reached"].tolist(), file["bound"].tolist()]
  if stated != [audit, reached, bound] or false:
    yield f"What it states to have skipped is not true: at most {bound} images could still fall."


def _image_problems(
  file: Arrays, config: Mapping[str, Any], x: np.ndarray, y: np.ndarray
) -> Iterator[str]:
  """Whether the adversarial images are finite, in the box, and in the ball."""
  images = file["images"].astype(np.float64).reshape(len(file["images"]), math.prod(x.shape[1:]))
  ids = np.clip(file["broken_ids"], 0, len(x) - 1)
  originals = x.reshape(len(x), -1)[ids]
  infinite = np.sum(~np.isfinite(images).all(axis=1))
  if infinite:
    yield f"{infinite} of its images are not finite."
  if config.get("box") is not None:
    low, high = config["box"]
    outside = np.sum(~((images >= low) & (images <= high)).all(axis=1))
    if outside:
      yield f"{outside} of its images leave [{low:g}, {high:g}]."
  norms = np.linalg.norm(images - originals, NORMS[str(config["name"])], axis=1)
  of_classes = config.get(
    "class_radii", np.full(int(np.max(y, initial=0)) + 1, config.get("radius"))
  )
  radii = np.asarray(of_classes, np.float64)[y[ids]]
  if not np.all(norms <= radii * (1 + RADIUS_TOLERANCE)):
    worst = np.argmax(norms - radii)
    yield f"A perturbation has norm {norms[worst]:.7g} in a ball of radius {radii[worst]:.7g}."
  if not np.allclose(norms, file["norms"], rtol=1e-9, atol=1e-12):
    yield "The norms that it states are not those of its images."


def _prediction_problems(
  file: Arrays, logits: Logits, clean: np.ndarray, y: np.ndarray
) -> Iterator[str]:
  """Whether the network says what it is stated to say."""
  changed = np.sum(~(_shortfall(clean, file["prediction"]) <= MARGIN))  # NaN is no prediction
  if changed:
    yield f"The net classifies {changed} clean images differently than it states."
  if not len(file["images"]):
    return
  attacked = logits(np.asarray(file["images"], np.float32))
  if "targets" in file:
    ids = np.clip(file["broken_ids"], 0, len(y) - 1)
    missed = np.sum(~(_shortfall(attacked, file["targets"][ids]) <= MARGIN))
    if missed:
      yield f"The net does not predict the target on {missed} of its adversarial images."
    return
  labels = y[np.clip(file["broken_ids"], 0, len(y) - 1)]
  others = np.where(np.arange(attacked.shape[1]) == labels[:, None], -np.inf, attacked)
  lead = attacked[np.arange(len(labels)), labels] - others.max(axis=1)
  right = np.sum(~(lead <= MARGIN * np.abs(attacked).max()))  # NaN is no misclassification
  if right:
    yield f"The net is right on {right} of its adversarial images."


def _target_problems(file: Arrays, rule: str, clean: np.ndarray, y: np.ndarray) -> Iterator[str]:
  """Whether the targets follow the rule, and those are left out whose label is the target.

  Random targets come from JAX's generator, and are only checked to be wrong classes.
  """
  targets, right = file["targets"], file["prediction"] == y
  off = targets.astype(str) != rule
  if rule in ("least_likely", "random"):
    off = (targets == y) | (targets < 0) | (targets >= clean.shape[1])
  if rule == "least_likely":
    least = np.where(np.arange(clean.shape[1]) == y[:, None], np.inf, clean).min(axis=1)
    own = clean[np.arange(len(y)), np.where(off, 0, targets)]
    off |= own - least > MARGIN * np.abs(clean).max()
  if np.any(off):
    yield f"{np.sum(off)} of its targets are not those of {rule}."
  disagreements = np.sum((file["broken_by"] == -2) != (right & (targets == y)))
  if disagreements:
    yield f"It misstates for {disagreements} images whether their label is the target."


def _shortfall(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """By how much the logit of each class is below the largest, in units of the largest of all."""
  if not np.all((classes >= 0) & (classes < logits.shape[1])):
    return np.full(len(classes), np.inf)
  own = logits[np.arange(len(classes)), classes]
  return (logits.max(axis=1) - own) / np.abs(logits).max()


def network(path: str) -> tuple[Logits, str]:
  """The network of an ONNX file, and the SHA-256 of its arrays, or ""."""
  import onnxruntime

  session = onnxruntime.InferenceSession(path)
  name = session.get_inputs()[0].name

  def logits(images: np.ndarray) -> np.ndarray:
    starts = range(0, len(images), BATCH)
    parts = [session.run(None, {name: images[i : i + BATCH]})[0] for i in starts]
    return np.concatenate(parts)

  return logits, session.get_modelmeta().custom_metadata_map.get("net_sha256", "")


def main(paths: list[str]) -> int:
  """Checks the files of the command line; returns the exit code."""
  if len(paths) != 3:
    print("Give verdict.npz, net.onnx and data.npz.", file=sys.stderr)
    return 2
  try:
    with np.load(paths[0], allow_pickle=False) as stored, np.load(paths[2]) as data:
      file, x, y = dict(stored), data["x"], data["y"].astype(np.int32)
    claim = json.loads(str(file["claim"]))
    if claim["set"]["name"] not in NORMS:
      raise ValueError(f"it takes balls of a norm, not {claim['set']['name']}")
    logits, net_sha256 = network(paths[1])
    x = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)
    count = int(claim["source"].get("examples", 0)) or len(y)
    x, y = x[:count], y[:count]
    found = problems(file, logits, logits(x), x, y, net_sha256)
  except Exception as error:  # whatever a malformed file causes
    print(f"The files cannot be checked: {type(error).__name__}, {error}.", file=sys.stderr)
    return 2
  print(
    "\n".join(found) or f"{paths[0]} is true: {float(file['robust_accuracy']):.2%} of {len(y):,}."
  )
  return 1 if found else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
