"""What every command says with --help: what it does, an example, its flags."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from robust_opt.__main__ import listing

PACKAGE = Path(__file__).parents[1] / "robust_opt"


def commands():
  """Name, as a user types it -> docstring of every module that is a program."""
  found = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    if re.search(r'^if __name__ == "__main__":', path.read_text(encoding="utf-8"), re.MULTILINE):
      module = ".".join(["robust_opt", *path.relative_to(PACKAGE).with_suffix("").parts])
      found[module.removesuffix(".__main__")] = importlib.import_module(module).__doc__
  found.pop("robust_opt")  # the list of the others
  return found


COMMANDS = commands()
EVERY_COMMAND = pytest.mark.parametrize("name", list(COMMANDS))


# Each command is a process of its own, forked when the imports that take seconds are done.
EACH_HELP = """
import os, runpy, sys
import orbax.checkpoint, robust_opt.experiments.run, scipy.stats
folder, *names = sys.argv[1:]
for name in names:
  if not os.fork():
    for stream in (1, 2):
      os.dup2(os.open(f"{folder}/{name}.{stream}", os.O_CREAT | os.O_WRONLY), stream)
    sys.argv = [name, "--help"]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
  code = os.waitstatus_to_exitcode(os.wait()[1])
  assert code == 0, (name, code)
"""


@pytest.fixture(scope="module")
def helped(tmp_path_factory):
  """The name of a command -> what its --help prints."""
  folder = tmp_path_factory.mktemp("help")
  command = [sys.executable, "-W", "ignore", "-c", EACH_HELP, str(folder), *COMMANDS]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr
  assert not any((folder / f"{name}.2").read_text() for name in COMMANDS)
  return {name: (folder / f"{name}.1").read_text() for name in COMMANDS}


def examples(name, text):
  """The commands in a text that start this module."""
  joined = re.sub(r"\\?\n\s{4,}", " ", text)
  return re.findall(rf"^\s*python -m {re.escape(name)}(?= |$).*$", joined, re.MULTILINE)


def guide():
  """Command -> the flags that its section of docs/commands.md explains."""
  text = (PACKAGE.parent / "docs" / "commands.md").read_text(encoding="utf-8")
  explained = {}
  for section in text.split("\n## ")[1:]:
    (name,) = set(re.findall(r"^python -m (robust_opt[\w.]*)", section, re.MULTILINE))
    first_cells = re.findall(r"^\|(.*?)\|", section, re.MULTILINE)
    explained[name] = set(re.findall(r"`--(\w+)", "".join(first_cells)))
  return explained


GUIDE = guide()


def test_the_guide_has_every_command():
  text = (PACKAGE.parent / "docs" / "commands.md").read_text(encoding="utf-8")
  papers = {name for name in COMMANDS if name.startswith("robust_opt.papers.")}
  assert set(COMMANDS) - papers - {"robust_opt"} <= set(GUIDE)
  assert all(f"`{name.rpartition('.')[2]}`" in text for name in papers)


def test_the_commands_are_found():
  papers = {f"robust_opt.papers.{name}" for name in ("family", "shaham2015", "linear_theory")}
  assert {"robust_opt.main", "robust_opt.verify", *papers} <= set(COMMANDS)


def test_every_command_is_listed_with_what_it_does_and_an_example():
  listed = {name for line in listing().splitlines() for name in re.findall(r"-m (\S+)", line)}
  assert listed == set(COMMANDS)
  for name, words in COMMANDS.items():
    assert words.split("\n")[0] in listing()
    assert examples(name, listing())


@EVERY_COMMAND
def test_a_docstring_says_what_it_does_and_shows_how(name):
  first = COMMANDS[name].split("\n")[0]
  assert first.endswith(".")
  assert len(first.split()) >= 6
  assert examples(name, COMMANDS[name])


@pytest.mark.slow
@EVERY_COMMAND
def test_help_says_what_it_does_shows_how_and_lists_the_flags(name, helped):
  text = helped[name]
  assert COMMANDS[name].split("\n")[0] in text
  assert "Traceback" not in text
  shown = {flag for line in examples(name, text) for flag in re.findall(r" --(\w+)", line)}
  listed = re.findall(r"^  --(\S+?):", text, re.MULTILINE)
  assert listed
  listed = {flag.removeprefix("[no]") for flag in listed}
  assert shown <= listed
  assert {
    flag.removeprefix("no") if flag not in listed else flag for flag in GUIDE.get(name, ())
  } <= listed


def test_examples_are_found_across_lines():
  text = "Does it.\n\n  python -m robust_opt.main --config=a.py \\\n      --workdir=b\n"
  (example,) = examples("robust_opt.main", text)
  assert example.endswith("--workdir=b")
  assert not examples("robust_opt.evaluate", text)
