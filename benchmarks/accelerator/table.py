"""The measurements as Markdown."""

from collections.abc import Mapping
from typing import Any

from benchmarks.accelerator import attacks

Rows = Mapping[str, Mapping[str, Any]]


def markdown(results: Mapping[str, Any]) -> str:
  """The page of one device: date, versions, and a table for each kind of measurement."""
  found, rows = results["machine"], results["rows"]
  versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
  parts = [f"Measured on {results['date']}, {found['device']}, {versions}."]
  parts += [_matmul(rows), _training(rows, found["device"]), _seeds(rows), _attacks(rows, results)]
  failed = [f"- {key}: {row['error']}" for key, row in rows.items() if "error" in row]
  if failed:
    parts.append("Failed:\n\n" + "\n".join(failed))
  return "\n\n".join(part for part in parts if part) + "\n"


def _of(rows: Rows, kind: str) -> dict[str, Mapping[str, Any]]:
  """The measured rows of a kind, without the kind in their names."""
  good = {key: row for key, row in rows.items() if "error" not in row}
  return {key.removeprefix(kind): row for key, row in good.items() if key.startswith(kind)}


def _grid(head: str, lines: list[list[str]]) -> str:
  """A table, or nothing if it has no lines."""
  if not lines:
    return ""
  rule = "|" + "---|" * (head.count("|") - 1)
  return "\n".join([head, rule, *("| " + " | ".join(line) + " |" for line in lines)])


def _matmul(rows: Rows) -> str:
  cells = [f"{key} {row['tflops']:,.4g}" for key, row in _of(rows, "matmul ").items()]
  if not cells:
    return ""
  return "Matrix products, measured, TFLOP/s: " + ", ".join(cells) + "."


def _training(rows: Rows, device: str) -> str:
  """A line for every net, precision, batch size and method; a column for every side."""
  sides = ("robust_opt", "torch eager", "torch.compile")
  found: dict[tuple[str, str, str, str], dict[str, Mapping[str, Any]]] = {}
  for key, row in _of(rows, "train ").items():
    side = next(side for side in sides if key.endswith(side))
    net, precision, batch, method = key.removesuffix(f" {side}").split(" ", 3)
    found.setdefault((net, precision, batch, method), {})[side] = row
  lines = []
  for (net, precision, batch, method), by_side in found.items():
    ours = by_side.get("robust_opt", {})
    speeds = [by_side[s]["images_per_s"] if s in by_side else None for s in sides]
    peers = [speed for speed in speeds[1:] if speed]
    matmul = rows.get(f"matmul {precision}", {}).get("tflops")
    achieved = ours["images_per_s"] * ours["gflop_per_image"] / 1e3 if ours else None
    lines.append([
      net, precision, batch, method,
      *(_number(speed, ",.0f") for speed in speeds),
      _number(speeds[0] / max(peers) if speeds[0] and peers else None, ".2f"),
      _number(achieved, ".3g"),
      _percent(ours.get("share_of_peak")),
      _percent(achieved / matmul if achieved and matmul else None),
      _number(ours.get("compile_s"), ".0f"),
      _number(by_side.get("torch.compile", {}).get("compile_s"), ".0f"),
      "/".join(_number(by_side.get(s, {}).get("memory_mb"), ",.0f") or "-" for s in sides[:2]),
    ])  # fmt: skip
  head = (
    "| net | precision | batch | training | robust_opt, images/s | PyTorch eager | torch.compile "
    "| robust_opt / best PyTorch | TFLOP/s | % of the datasheet's peak | % of the matrix product "
    "| compile, s | torch.compile, s | memory, MB (robust_opt/eager) |"
  )
  del device
  return _grid(head, lines)


def _seeds(rows: Rows) -> str:
  lines = [
    [key, f"{row['images_per_s']:,.0f}", f"{row['compile_s']:.0f}"]
    for key, row in _of(rows, "seeds ").items()
  ]
  return _grid(
    "| seeds of Algorithm 1: net, precision, number, how | images/s | compile, s |", lines
  )


def _attacks(rows: Rows, results: Mapping[str, Any]) -> str:
  """Both ensembles, their phases, and how often they agree."""
  found = _of(rows, "autoattack ")
  lines = []
  for side, row in found.items():
    timed = {call: row[call] for call in ("first", "again") if call in row}
    lines += [
      [
        f"{side}, {'with compilation' if call == 'first' else 'compiled'}",
        f"{run['seconds']:.1f}",
        _number(run.get("compile_s"), ".1f"),
        ", ".join(f"{name} {cost['seconds']:.1f}" for name, cost in run["phases"].items()),
        f"{100 * row['clean']:.2f}", f"{100 * row['robust']:.2f}",
      ]
      for call, run in timed.items()
    ]  # fmt: skip
  head = "| AutoAttack | s | of it compiling | phases, s | clean % | robust % |"
  theirs, words = found.get("torchattacks"), []
  for side, ours in found.items():
    if theirs and ours is not theirs:
      same = attacks.agreement(ours, theirs, results["size"]["images"])
      ratio = ours["again"]["seconds"] / theirs["again"]["seconds"]
      words.append(
        f"{side}: same outcome as torchattacks on {100 * same:.2f} % of "
        f"{results['size']['images']} images, in {ratio:.2f} times its time."
      )
  return "\n\n".join([_grid(head, lines), *words])


def _number(value: float | None, form: str) -> str:
  return "" if value is None else format(value, form)


def _percent(share: float | None) -> str:
  return "" if share is None else f"{100 * share:.1f}"
