"""metrics.jsonl, TensorBoard events, the bar and the table."""

import io
import json
import logging
import math
import re
import struct

import pytest
from rich.console import Console
from scipy import stats
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from robust_opt.errors import RunError
from robust_opt.experiments import metrics

END = {"train/loss": 0.25, "train/examples_per_second": 12345.6}
HELD_OUT = {"heldout/clean_accuracy": 1.0, "heldout/robust_accuracy": 0.5}


def write(workdir, resume_step, steps):
  with metrics.MetricWriter(workdir, resume_step) as writer:
    for step in steps:
      writer.write(step, {"train/loss": 1 / step, "resumed": resume_step})


def read_events(path):
  """A reader of the format by its definition: lengths and masked CRCs, then an Event."""
  data, events = path.read_bytes(), []

  def masked(part):
    crc = crc32c(part)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

  while data:
    head, (size, crc) = data[:8], struct.unpack("<QI", data[:12])
    body, (body_crc,) = data[12 : 12 + size], struct.unpack("<I", data[12 + size : 16 + size])
    assert (crc, body_crc) == (masked(head), masked(body))
    events.append(Event.FromString(body))
    data = data[16 + size :]
  return events


def test_every_step_stands_once_after_resuming(tmp_path):
  write(tmp_path, 0, range(1, 8))
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 8, "train/lo')  # cut short by a kill
  write(tmp_path, 4, range(5, 11))
  records = metrics.read_metrics(tmp_path / "metrics.jsonl")
  assert [r["step"] for r in records] == list(range(1, 11))
  assert [r["resumed"] for r in records] == 4 * [0] + 6 * [4]


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[1]\n", b'{"step": null}\n'])
def test_damaged_lines_are_left_out_and_the_others_kept(tmp_path, damage):
  write(tmp_path, 0, [1, 2])
  path = tmp_path / "metrics.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(lines[0] + damage + lines[1])
  write(tmp_path, 2, [3])
  assert [r["step"] for r in metrics.read_metrics(path)] == [1, 2, 3]


def test_json_is_strict(tmp_path):
  values = {"a": math.nan, "b": math.inf, "c": 1.5, "d": 3}
  with metrics.MetricWriter(tmp_path, 0) as writer:
    writer.write(1, values)
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert [e.step for e in read_events(path)] == [0, 1, 1]  # on the disk at once

  def refuse(word):
    raise AssertionError(word)

  text = (tmp_path / "metrics.jsonl").read_text()
  record = json.loads(text, parse_constant=refuse)
  assert record == {"step": 1, "a": None, "b": None, "c": 1.5, "d": 3}


def test_events_are_in_tensorboards_format_and_void_what_is_repeated(tmp_path):
  write(tmp_path, 0, [1, 2, 3])
  write(tmp_path, 2, [3, 4])
  files = sorted((tmp_path / "tensorboard").iterdir())
  assert len(files) == 2
  for path, resume, steps in zip(files, (0, 2), ([1, 2, 3], [3, 4])):
    version, start, *scalars = read_events(path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (resume + 1, SessionLog.START)
    assert [e.step for e in scalars] == steps
    for event in scalars:
      values = {v.tag: v.simple_value for v in event.summary.value}
      assert values == {"train/loss": pytest.approx(1 / event.step), "resumed": resume}


@pytest.mark.parametrize("which", ["_lines", "_logger"])
def test_a_full_disk_is_one_sentence_from_the_callers_thread(tmp_path, which):
  with metrics.MetricWriter(tmp_path, 0) as writer:
    full = open("/dev/full", "w" if which == "_lines" else "wb")  # noqa: SIM115
    if which == "_lines":
      writer._lines.close()
      writer._lines = full
    else:
      writer._logger._records.close()
      writer._logger._records._writer = full
    with pytest.raises(RunError, match=r"metrics\.jsonl could not be written \(No space left"):
      writer.write(1, {"train/loss": 0.5})


@pytest.fixture
def terminal(monkeypatch):
  screen = io.StringIO()
  console = Console(file=screen, force_terminal=True, width=80, height=30)
  monkeypatch.setattr(metrics, "Console", lambda **_: console)
  return screen


def rows(screen):
  """What was drawn, row by row, without control sequences."""
  text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
  return [row.rstrip() for row in re.split(r"[\r\n]+", text) if row.strip()]


def test_bar_shows_all_and_stands_still_within_80_columns(terminal):
  with metrics.ProgressDisplay(1000, 0, 120, enabled=True) as display:
    display._bar.refresh()
    for epoch in range(1, 121):
      display.steps(8 * epoch, epoch, 2.5 / epoch, 1_234_567.0 / epoch)
      display.epoch(epoch, {**END, **HELD_OUT})
      display._bar.refresh()
  drawn = rows(terminal)
  assert max(map(len, drawn)) <= 80
  assert {row.index("left") for row in drawn} == {drawn[0].index("left")}
  assert "compiling" in drawn[0]
  last = drawn[-1]
  words = (
    r"epoch 120/120 loss 0\.0208 clean 100\.0%  robust 50\.0%  10,288/s ━{5,}╸? \d\d:\d\d left"
  )
  assert re.fullmatch(words, last)


def test_log_lines_where_there_is_no_terminal(caplog, capsys):
  caplog.set_level(logging.INFO, logger="absl")
  with metrics.ProgressDisplay(10, 0, 2, enabled=True) as display:
    display.steps(5, 1, 0.5, 100.0)
    display.epoch(1, {**END, **HELD_OUT})
  (message,) = [r.getMessage() for r in caplog.records]
  assert message == (
    "epoch 1/2, loss 0.2500, held-out clean 100.00 %, robust 50.00 %, 12,346 examples/s"
  )
  captured = capsys.readouterr()
  assert "\x1b" not in captured.out + captured.err


def test_nothing_is_shown_by_those_who_do_not_lead(terminal, caplog):
  caplog.set_level(logging.INFO, logger="absl")
  with metrics.ProgressDisplay(10, 0, 2, enabled=False) as display:
    display.steps(5, 1, 0.5, 100.0)
    display.epoch(1, {**END, **HELD_OUT})
  assert not rows(terminal)
  assert not caplog.records


def test_table_fits_80_columns_and_wraps_nothing(capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "80")
  names = ("set", "attack", "trained_on", "correct", "zero_gradients")
  linf = {"name": "linf", "radius": 0.0550401}
  rows_of = [
    dict(zip(names, row), total=10000)
    for row in ((None, None, False, 9876, None), (linf, {"num_steps": 20}, True, 1, 1234))
  ]
  title = "MnistCNN on fashion_mnist, robust training over l_inf 0.05504, 120 epochs"
  config = {"set": {"name": "LInf", "radius": 0.0550401, "box": None}}
  summary = {"title": title, "results": rows_of, "config": config}
  metrics.print_table(metrics.result_table(summary))
  lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
  assert max(map(len, lines)) <= 80
  assert lines[0] == title
  assert any(re.search(r"clean +98\.76% +9,876 of 10,000$", line) for line in lines)
  row = r"l_inf 0\.05504, 20 steps \(training\) +0\.01% +1 of 10,000 +1,234$"
  assert any(re.search(row, line) for line in lines)
  assert "radii in pixels of [0, 1]; attacks: pixels may leave [0, 1]" in lines
  config["set"]["box"] = [0.0, 1.0]
  assert metrics.result_table(summary).caption.endswith("; attacks: within [0, 1]")
  headline = metrics.headline(summary)
  # Wilson's intervals of 9876 and of 1 of 10,000, from an independent implementation.
  low, high = stats.binomtest(9876, 10000).proportion_ci(method="wilson")
  assert "98.76 % of 10,000 clean test images" in headline.sentence
  assert f"(95 % interval {100 * low:.1f} to {100 * high:.1f})" in headline.sentence
  assert headline.sentence.endswith(
    "0.01 % (0.0 to 0.1) under 20 steps over l_inf 0.05504 within [0, 1], the attack of training."
  )


@pytest.mark.parametrize(
  ("own", "measured", "trained_on", "flags"),
  [
    ("LInf", [("linf", 0.1), ("l2", 0.5)], True, ["--norm=linf", "--radius=0.1"]),
    ("LInf", [("linf", 0.0), ("l2", 0.5)], False, ["--norm=l2", "--radius=0.5"]),
    ("GroupL21", [("GroupL21", 0.5), ("l2", 0.5)], True, ["--version=pgd"]),
    ("GroupL21", [("GroupL21", 0.5), ("l1", 2.0)], False, ["--norm=l1", "--radius=2.0"]),
    ("TangentAt", [("TangentAt", 0.5), ("l2", 0.5)], True, ["--norm=l2", "--radius=0.5"]),
    ("Transforms", [("Transforms", 1.0)], True, ["--version=grid"]),
  ],
)
def test_the_evaluation_of_a_run_is_over_its_set_or_a_ball(own, measured, trained_on, flags):
  rows_of = [{"set": {"name": n, "radius": r}, "trained_on": trained_on} for n, r in measured]
  summary = {"config": {"set": {"name": own}}, "results": [{"set": None}, *rows_of]}
  assert metrics.evaluation_flags(summary) == flags
