"""AutoAttack's version "adaptive" beside "standard": time, equal verdicts, whether the bound holds.

  python -m benchmarks.adaptive --data_dir=DIR --weights=DIR --output=adaptive.json
      [--only=MNIST] [--examples=1200] [--share=0.02]

For each network of `adaptive_nets.py`: processor seconds of both versions in one process, without
compiling (programs are made first, on images that are misclassified, which end every attack), the
images on which the verdicts agree, the bound, and the images that only the standard version broke.
Results are kept in --output, from where the command resumes. The table is printed at the end.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import robust_opt as ro
from benchmarks.adaptive_nets import Case, cases
from robust_opt import layout
from robust_opt.evaluation import batches, network
from robust_opt.evaluation.inputs import check_set
from robust_opt.evaluation.phases import VERSIONS
from robust_opt.files import write_json
from robust_opt.precision import products, stated
from robust_opt.types import LogitsFn


def make_programs(logits_fn: LogitsFn, x: np.ndarray, u: ro.sets.Ball) -> None:
  """Compiles every attack for both sizes of batches, as `ro.autoattack` calls them."""
  net, axis = network.as_argument(logits_fn, x), layout.resolve(layout.AUTO, x.shape[1:])
  for size in batches.packing(batches.CPU_BATCH, "cpu").sizes:
    wrong = (batches.predictions(logits_fn, x[:size], size) + 1) % 10
    with products(stated(None)):
      batches.margins(net, x[:size], wrong, size)
    ro.autoattack(logits_fn, x[:size], wrong, u)  # its checks; nothing is right, to be attacked
    ids = np.arange(size, dtype=np.int32)
    lanes = batches.Lanes(jnp.asarray(ids), jnp.zeros_like(ids), jnp.zeros_like(ids))
    for phase in VERSIONS["adaptive"]:
      arguments = (
        net,
        check_set(u),
        jax.random.key(0),
        lanes,
        jnp.asarray(x[:size]),
        jnp.asarray(wrong),
      )
      with products(stated(None)):
        jax.block_until_ready(batches.run_lanes(phase.make, axis, *arguments))


def compare(case: Case, examples: int, share: float) -> dict[str, Any]:
  """A row of the table."""
  logits_fn, x, y = case.load(examples)
  make_programs(logits_fn, x, case.u)
  verdicts, seconds, compiling = {}, {}, []
  for version in ("adaptive", "standard"):
    began = time.process_time()
    given: dict[str, Any] = {"version": version, "share": None if version == "standard" else share}
    report = lambda progress: compiling.append(progress.cost.compiling)  # noqa: E731
    verdicts[version] = ro.autoattack(logits_fn, x, y, case.u, report=report, **given)
    seconds[version] = time.process_time() - began
  standard, adaptive = (verdicts[version].broken_by for version in ("standard", "adaptive"))
  ration = verdicts["adaptive"].ration
  assert ration is not None
  names = verdicts["standard"].names
  return {
    "net": case.name,
    "set": f"{case.u.name} {float(case.u.radius):.3g}",
    "examples": len(x),
    "share": share,
    "survivors": len(ration.order),
    "audit": len(ration.audit),
    "reached": ration.reached.tolist(),
    "broken": {name: int(np.sum(standard == index)) for index, name in enumerate(names)},
    "seconds": seconds,
    "compiling": sum(compiling),  # of what was not made before
    "robust": {name: found.robust_accuracy for name, found in verdicts.items()},
    "equal": float(np.mean((standard < 0) == (adaptive < 0))),
    "bound": ration.bound,
    "missed": int(np.sum((standard > 0) & (adaptive < 0))),
    "more": int(np.sum((standard < 0) & (adaptive > 0))),
  }


def markdown(rows: list[dict[str, Any]]) -> str:
  """The table."""
  head = (
    "| net | set | images | share | broken by apgd-ce, apgd-t, fab-t, square | standard, s "
    "| adaptive, s | ratio | robust, standard | adaptive | same verdict | bound | missed |"
  )
  lines = [head, "|" + "---|" * (head.count("|") - 1)]
  for row in rows:
    standard, adaptive = row["seconds"]["standard"], row["seconds"]["adaptive"]
    cells = [
      *(row["net"], row["set"], f"{row['examples']:,}", f"{100 * row['share']:g} %"),
      ", ".join(str(count) for name, count in row["broken"].items() if name != "clean"),
      *(f"{standard:.1f}", f"{adaptive:.1f}", f"{adaptive / standard:.2f}"),
      f"{100 * row['robust']['standard']:.2f} %",
      f"{100 * row['robust']['adaptive']:.2f} %",
      f"{100 * row['equal']:.2f} %",
      f"{row['bound']} ({100 * row['bound'] / row['examples']:.1f} %)",
      f"{row['missed']}{'' if row['missed'] <= row['bound'] else ': FALSE'}",
    ]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main() -> None:
  """Runs what is not in --output yet, and prints the table of everything."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data_dir", required=True, type=Path)
  parser.add_argument("--weights", type=Path, default=Path(), help="folder of .safetensors files")
  parser.add_argument("--output", required=True, type=Path)
  parser.add_argument("--only", default="", help="networks whose names have this")
  parser.add_argument("--examples", type=int, default=1200)
  parser.add_argument("--share", type=float, default=0.02)
  options = parser.parse_args()
  rows = json.loads(options.output.read_text()) if options.output.exists() else []
  done = {(row["net"], row["set"]) for row in rows}
  for case in cases(options.data_dir, options.weights):
    key = (case.name, f"{case.u.name} {float(case.u.radius):.3g}")
    if options.only in case.name and key not in done:
      rows.append(compare(case, options.examples, options.share))
      write_json(options.output, rows)
      print(markdown(rows[-1:]).splitlines()[-1], flush=True)
  print("\n" + markdown(rows))


if __name__ == "__main__":
  main()
