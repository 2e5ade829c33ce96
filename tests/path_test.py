"""The path from the command to the update is the one that docs/concepts.md states."""

import re
import sys
from pathlib import Path

import pytest
from main_test import SMALL, run_main

import robust_opt as ro

ROOT = Path(__file__).parents[1]
STACKS = []


@ro.sets.set_dataclass
class Probe(ro.LInf):
  """An l_inf ball that records who asks for its ascent."""

  def steepest_ascent(self, grad, x):
    frame, stack = sys._getframe(1), []
    while frame is not None:
      path = Path(frame.f_code.co_filename)
      if path.is_relative_to(ROOT / "robust_opt"):
        name = frame.f_code.co_name
        stack.append((str(path.relative_to(ROOT)), name))
      frame = frame.f_back
    STACKS.append(stack[::-1])
    return super().steepest_ascent(grad, x)


@pytest.mark.usefixtures("no_pictures")
def test_the_documented_path_is_walked(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "probe_module", sys.modules[__name__])
  flags = ["--config.set.name=probe_module:Probe", "--config.set.radius=0.1"]
  assert run_main(monkeypatch, *SMALL, *flags, f"--workdir={tmp_path / 'run'}") == 0
  page = (ROOT / "docs" / "concepts.md").read_text("utf-8")
  section = page.split("## From the command to the update")[1].split("\n## ")[0]
  documented = re.findall(r"^\d+\. `([\w/]+\.py)`, `(\w+)`", section, re.MULTILINE)
  stack = STACKS[0]  # the first is traced by the first update
  walked = stack[stack.index(("robust_opt/main.py", "main")) :]
  assert walked == documented
  update = documented.index(("robust_opt/training/step.py", "step"))
  assert update + 1 <= 7
