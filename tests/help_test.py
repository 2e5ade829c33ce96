"""What every command says when it is asked for help: what it does, an example, its flags."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "robust_opt"


def commands():
  """Name -> docstring of every module that is a program."""
  found = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    source = path.read_text(encoding="utf-8")
    if re.search(r"^\s+app\.run\(", source, re.MULTILINE):
      name = ".".join(["robust_opt", *path.relative_to(PACKAGE).with_suffix("").parts])
      found[name] = ast.get_docstring(ast.parse(source)) or ""
  return found


COMMANDS = commands()
EVERY_COMMAND = pytest.mark.parametrize("name", list(COMMANDS))


@functools.cache
def helped(name):
  """(exit code, what is printed) of the command in a process of its own."""
  done = subprocess.run(
    [sys.executable, "-m", name, "--help"], capture_output=True, text=True, timeout=300, check=False
  )
  assert not done.stderr, done.stderr
  return done.returncode, done.stdout


def examples(name, text):
  """The commands in a text that start this module."""
  joined = re.sub(r"\\?\n\s{4,}", " ", text)
  return re.findall(rf"^\s*python -m {re.escape(name)}(?= |$).*$", joined, re.MULTILINE)


def test_the_commands_are_found():
  assert {"robust_opt.main", "robust_opt.verify", "robust_opt.papers.family"} <= set(COMMANDS)


@EVERY_COMMAND
def test_a_docstring_says_what_it_does_and_shows_how(name):
  first = COMMANDS[name].split("\n")[0]
  assert first.endswith(".")
  assert len(first.split()) >= 6
  assert examples(name, COMMANDS[name])


@pytest.mark.slow  # several seconds a process
@EVERY_COMMAND
def test_help_says_what_it_does_and_shows_how(name):
  code, text = helped(name)
  assert code == 0
  assert COMMANDS[name].split("\n")[0] in text
  assert examples(name, text)
  assert "Traceback" not in text


def defined(name):
  """The flags that a command's source defines, by itself or by what commands share."""
  source = (PACKAGE.parent / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
  shared = (PACKAGE / "commands.py").read_text(encoding="utf-8")
  called = set(re.findall(r"commands\.(define_\w+)\(", source))
  parts = [ast.unparse(f) for f in ast.parse(shared).body if getattr(f, "name", "") in called]
  assert len(parts) == len(called)
  return set(re.findall(r"DEFINE_\w+\(\s*['\"](\w+)['\"]", "\n".join([source, *parts])))


@pytest.mark.slow
@EVERY_COMMAND
def test_help_explains_every_flag(name):
  _, text = helped(name)
  shown = {flag for line in examples(name, text) for flag in re.findall(r" --(\w+)", line)}
  listed = re.findall(r"^  --(\S+?):", text, re.MULTILINE)
  assert shown | defined(name) <= {flag.removeprefix("[no]") for flag in listed}
  assert listed


def test_examples_are_found_across_lines():
  text = "Does it.\n\n  python -m robust_opt.main --config=a.py \\\n      --workdir=b\n"
  (example,) = examples("robust_opt.main", text)
  assert example.endswith("--workdir=b")
  assert not examples("robust_opt.evaluate", text)
