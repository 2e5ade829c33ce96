"""Measures an accelerator: training throughput, seeds, AutoAttack, beside PyTorch where installed.

  python -m benchmarks.accelerator --output=runs/h200.json --budget_s=480 [--data_dir=DIR]

The most telling rows come first. Every row is written to --output when it is measured, and
to the table beside it (.md): the same command goes on where the budget or an error stopped it.
--data_dir is a folder of prepared TFDS sets, or an .npz of train_images, train_labels, test_images
and test_labels; only the net that AutoAttack attacks is trained on it, a synthetic set without it.
Nothing is downloaded.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs its part

from benchmarks.accelerator import attacks, machine, table, training
from benchmarks.accelerator.training import FULL, METHODS, TINY, Size
from robust_opt.errors import InputError
from robust_opt.files import write_json

SIZES = {"full": FULL, "tiny": TINY}
NUM_SEEDS = 3
TORCH = importlib.util.find_spec("torch") is not None
TORCHATTACKS = importlib.util.find_spec("torchattacks") is not None
EAGER, COMPILED = "torch eager", "torch.compile"


class Row(NamedTuple):
  """A measurement.

  Attributes:
    key: its name in the output.
    seconds: that it takes on an H200, about.
    measure: () -> what is stored.
  """

  key: str
  seconds: float
  measure: Callable[[], dict[str, Any]]


def rows(size: Size, data_dir: Path | None) -> Iterator[Row]:
  """All measurements, the most telling first."""
  for precision in reversed(size.precisions):
    measure = functools.partial(machine.matmul_tflops, precision, size.matrix)
    yield Row(f"matmul {precision}", 3, measure)
  small, *large = size.batches
  yield from _training(size, ["bfloat16"], ["standard", "algorithm 1"], [small, *large[:1]])
  yield from _attack_rows(size, data_dir)
  yield from _seed_rows(size)
  yield from _training(size, ["tf32"], ["standard", "algorithm 1"], [small])
  yield from _training(size, ["bfloat16"], ["algorithm 1"], [small], [COMPILED])
  yield from _training(size, ["bfloat16"], ["pgd-10"], [small])
  yield from _training(size, ["float32"], ["standard", "algorithm 1"], [small])
  yield from _training(size, ["bfloat16"], ["standard"], [small], [COMPILED])
  yield from _training(size, ["bfloat16"], ["standard", "algorithm 1"], large[1:])
  yield from _training(size, size.precisions[::-1], METHODS, size.batches)
  yield from _training(size, ["tf32", "bfloat16"], METHODS, size.batches, [COMPILED])


def _training(
  size: Size, precisions: Any, methods: Any, batches: Any, sides: Any = ("robust_opt", EAGER)
) -> Iterator[Row]:
  precisions = [precision for precision in precisions if precision in size.precisions]
  for what in itertools.product(size.nets, precisions, batches, methods):
    net, precision, batch, method = what
    for side in sides:
      key = " ".join(["train", *map(str, what), side])
      if side == "robust_opt":
        measure = functools.partial(training.throughput, net, precision, method, batch, size)
        yield Row(key, 25, measure)
      elif TORCH:
        compiled = side == COMPILED
        measure = functools.partial(
          _torch_throughput, net, precision, method, batch, size, compiled
        )
        yield Row(key, 60 if compiled else 5 + batch / 100, measure)


def _torch_throughput(*args: Any) -> dict[str, Any]:
  from benchmarks.accelerator import torch_training

  return torch_training.throughput(*args)


def _attack_rows(size: Size, data_dir: Path | None) -> Iterator[Row]:
  """The net is trained for the first row that needs it."""

  @functools.cache
  def target() -> attacks.Target:
    return attacks.train(attacks.load(data_dir, size), size)

  def ours(search_precision: str | None = None) -> dict[str, Any]:
    return {"net": target().row, **attacks.robust_opt_row(target(), size, search_precision)}

  yield Row("autoattack robust_opt, search in tf32", 120, lambda: ours("tf32"))
  yield Row("autoattack robust_opt", 120, ours)
  if TORCHATTACKS:
    yield Row("autoattack torchattacks", 60, lambda: attacks.torch_row(target(), size))


def _seed_rows(size: Size) -> Iterator[Row]:
  """Of nets with convolutions and of one without, for `seeds.vmap_is_faster`."""
  for name in dict.fromkeys([*size.nets, "mlp"]):
    precision = size.precisions[0 if name == "mlp" else -1]  # it has no dtype
    for vmapped in (False, True):
      how = "vmap" if vmapped else "in turn"
      measure = functools.partial(
        training.seeds_throughput, name, precision, size.batches[0], NUM_SEEDS, vmapped, size
      )
      yield Row(f"seeds {name} {precision} {NUM_SEEDS} {how}", 30, measure)


def run(
  output: Path, budget_s: float, size: Size, data_dir: Path | None, only: Sequence[str] = ("",)
) -> dict[str, Any]:
  """Measures the rows that `output` lacks, as many as the budget allows.

  Args:
    output: a JSON file, new or of this device and these versions.
    budget_s: seconds after which no row starts that would end later.
    size: of the measurements.
    data_dir: as in `attacks.load`.
    only: the beginnings of the names of rows to measure.

  Raises:
    InputError: the file holds measurements of another device, of other versions or sizes.
  """
  began = time.monotonic()
  results = _begun(output, size)
  measured = results["rows"]
  chosen = (row for row in rows(size, data_dir) if row.key.startswith(tuple(only)))
  for row in chosen:
    left = budget_s - (time.monotonic() - began)
    if "error" not in measured.get(row.key, {"error": "not measured"}) or row.seconds > left:
      continue
    started = time.monotonic()
    try:
      measured[row.key] = row.measure()
    except Exception as error:  # a row that fails, for want of memory say, leaves the others
      measured[row.key] = {"error": f"{type(error).__name__}: {error}"[:500]}
    measured[row.key]["row_s"] = time.monotonic() - started
    print(f"{time.monotonic() - began:6.1f} s  {row.key}: {measured[row.key]}"[:400], flush=True)
    write_json(output, results)
    output.with_suffix(".md").write_text(table.markdown(results), encoding="utf-8")
  return results


def _begun(output: Path, size: Size) -> dict[str, Any]:
  head = json.loads(json.dumps({"machine": machine.describe(), "size": size._asdict()}))
  if not output.exists():
    return head | {"date": time.strftime("%Y-%m-%d"), "rows": {}}
  results = json.loads(output.read_text(encoding="utf-8"))
  for name, value in head.items():
    if results.get(name) != value:
      raise InputError(f"{output} has {name} {results.get(name)}, but this is {value}.")
  return results


def main() -> None:
  """Measures, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--output", type=Path, required=True, help="JSON file; the table is beside")
  parser.add_argument("--data_dir", type=Path, help="prepared TFDS sets, or an .npz; see above")
  parser.add_argument("--budget_s", type=float, default=480.0, help="seconds for all rows")
  parser.add_argument("--size", choices=SIZES, default="full", help="tiny: to try it on a CPU")
  parser.add_argument("--only", nargs="+", default=[""], help="as matmul, train, seeds, autoattack")
  args = parser.parse_args()
  args.output.parent.mkdir(parents=True, exist_ok=True)
  print(table.markdown(run(args.output, args.budget_s, SIZES[args.size], args.data_dir, args.only)))


if __name__ == "__main__":
  main()
