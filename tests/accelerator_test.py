"""The benchmark of accelerators: budget, resume, table, and once everything, tiny, on a CPU."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks.accelerator import __main__ as accelerator
from benchmarks.accelerator import attacks, machine, table
from robust_opt.errors import InputError

THROUGHPUT = {"images_per_s": 80_000.0, "gflop_per_image": 3.0, "share_of_peak": 0.25}


def fake_rows(log, *, fails=()):
  def measure(key):
    log.append(key)
    if key in fails:
      raise MemoryError("none left")
    return {"tflops": 600.0}

  names = {"matmul bfloat16": 1.0, "matmul tf32": 1000.0, "matmul float32": 1.0}
  rows = [
    accelerator.Row(key, seconds, lambda key=key: measure(key)) for key, seconds in names.items()
  ]
  return lambda *arguments: iter(rows)


def run(path, budget_s=100.0):
  return accelerator.run(path, budget_s, accelerator.TINY, None)["rows"]


def test_the_budget_ends_a_run_and_the_same_command_goes_on(tmp_path, monkeypatch):
  path, log = tmp_path / "out.json", []
  monkeypatch.setattr(accelerator, "rows", fake_rows(log, fails=["matmul float32"]))
  measured = run(path)
  assert log == ["matmul bfloat16", "matmul float32"]  # the other would end after the budget
  assert measured["matmul float32"]["error"] == "MemoryError: none left"
  assert json.loads(path.read_text())["rows"] == measured
  assert "MemoryError: none left" in path.with_suffix(".md").read_text()
  monkeypatch.setattr(accelerator, "rows", fake_rows(log))
  measured = run(path, budget_s=2000.0)
  assert log[2:] == ["matmul tf32", "matmul float32"]  # what is missing, and what failed
  assert all(row["tflops"] == 600 for row in measured.values())


def test_measurements_of_another_device_are_not_mixed(tmp_path, monkeypatch):
  monkeypatch.setattr(accelerator, "rows", fake_rows([]))
  path = tmp_path / "out.json"
  run(path)
  monkeypatch.setattr(machine, "describe", lambda: {"device": "NVIDIA H200"})
  with pytest.raises(InputError, match=r"but this is .*NVIDIA H200"):
    run(path)


def test_the_table_compares_the_sides():
  phases = {"apgd-ce": {"seconds": 1.0}}
  sides = {"robust_opt": [0, 1, 2], "torchattacks": [0, 1, 3]}
  rows = {
    "matmul bfloat16": {"tflops": 800.0},
    "train vgg bfloat16 128 algorithm 1 robust_opt": {**THROUGHPUT, "compile_s": 12.0},
    "train vgg bfloat16 128 algorithm 1 torch eager": {"images_per_s": 20_000.0},
    "seeds vgg bfloat16 3 vmap": {"images_per_s": 34_806.0, "compile_s": 17.0},
    **{
      f"autoattack {side}": {
        "again": {"seconds": seconds, "phases": phases},
        "clean": 0.5, "robust": 0.375, "robust_images": robust,
      }
      for (side, robust), seconds in zip(sides.items(), (5.0, 10.0))
    },
  }  # fmt: skip
  found = {"device": "NVIDIA H200", "versions": {"jax": "0.11.2"}}
  results = {"machine": found, "date": "2026-11-27", "size": {"images": 8}, "rows": rows}
  page = table.markdown(results)
  assert page.startswith("Measured on 2026-11-27, NVIDIA H200, jax 0.11.2.")
  # 80,000 x 3 GFLOP are 240 TFLOP/s, 30 % of what a product reaches.
  cells = "vgg|bfloat16|128|algorithm 1|80,000|20,000||4.00|240|25.0|30.0|12"
  assert "| " + cells.replace("|", " | ") + " |" in page
  assert "| vgg bfloat16 3 vmap | 34,806 | 17 |" in page
  words = "robust_opt: same outcome as torchattacks on 75.00 % of 8 images, in 0.50 times its time."
  assert words in page


@pytest.mark.slow
def test_everything_runs_at_a_tiny_size(tmp_path):
  rng = np.random.default_rng(0)
  images, labels = rng.integers(0, 256, (72, 32, 32, 3), np.uint8), rng.integers(0, 10, 72)
  np.savez(
    tmp_path / "images.npz",
    train_images=images[:64], train_labels=labels[:64],
    test_images=images[64:], test_labels=labels[64:],
  )  # fmt: skip
  data_dir = tmp_path / "images.npz"
  measured = accelerator.run(tmp_path / "out.json", 1e6, accelerator.TINY, data_dir)["rows"]
  assert not {key: row["error"] for key, row in measured.items() if "error" in row}
  ours = measured["autoattack robust_opt"]
  assert 0 <= ours["robust"] <= ours["clean"] <= 1
  first = measured["autoattack robust_opt, search in tf32"]
  assert first["again"]["compile_s"] < first["first"]["compile_s"]
  assert first["robust"] == ours["robust"]  # on a CPU, one precision
  assert set(ours["again"]["phases"]) <= {"apgd-ce"}
  trained = measured["train mlp float32 8 pgd-10 robust_opt"]
  # 3 products a pass of 3072 x 64 + 64 x 64 + 64 x 10 weights; 10 ascents of two passes each.
  assert trained["gflop_per_image"] == pytest.approx(2 * 201_344 * (3 + 20) / 1e9, rel=0.2)
  assert (importlib.util.find_spec("torch") is None) or any("torch" in key for key in measured)


def test_data_without_an_array_are_refused(tmp_path):
  np.savez(tmp_path / "images.npz", train_images=np.zeros((1, 32, 32, 3), np.uint8))
  with pytest.raises(InputError, match="lacks train_labels, test_images, test_labels"):
    attacks.load(tmp_path / "images.npz", accelerator.TINY)
