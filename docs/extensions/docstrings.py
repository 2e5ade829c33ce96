"""Docstrings as this project writes them, put into reStructuredText before Sphinx reads them.

In conf.py, beside autodoc and napoleon:

  extensions = ["docstrings", ...]

Ours are plain text: an indented block (or a paragraph that is Python) is code, lines that begin
with a bar are a table whose first row is its head, and a star is a star, as in x [B, *S].
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
_ROW = re.compile(r"\s*\|\s")
_CELLS = re.compile(r"(?:(?<=\s)|^)\|(?=\s|$)")  # a bar between spaces; |x|_2 has none
_COMMAND = re.compile(r"(python3? -m|pip|pytest) ")


def setup(app: Sphinx) -> dict[str, Any]:
  """What Sphinx calls."""
  # Before napoleon, which reads the sections.
  app.connect("autodoc-process-docstring", _process, priority=400)
  app.connect("autodoc-skip-member", _skip)
  return {"parallel_read_safe": True, "parallel_write_safe": True}


def _process(
  app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
  lines[:] = [*to_rst("\n".join(lines).strip("\n")).split("\n"), ""]


def _skip(
  app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
  """What is not ours: the fields of a NamedTuple, which its docstring has in words, and Flax's."""
  foreign = str(getattr(obj, "__module__", "")).startswith("flax.")
  return True if foreign or type(obj).__name__ == "_tuplegetter" else None


def to_rst(text: str) -> str:
  """A docstring as reStructuredText; its sections stay, for napoleon."""
  return "\n\n".join(
    _block(lines, section) for lines, section in _blocks(text.split("\n"))
  )


def _blocks(lines: list[str]) -> Iterator[tuple[list[str], bool]]:
  """Paragraphs, and whether they are a section; a section with its paragraphs is one."""
  block: list[str] = []
  section = code = False
  for line in [*lines, ""]:
    indented = line.startswith(" ")
    if block and not line.strip():
      if section or code:
        block.append("")  # it may go on: what is indented still belongs to it
        continue
      yield block, False
      block = []
    elif line.strip():
      starts = bool(_SECTION.fullmatch(line))
      if block and (
        starts or (section and not indented) or (not section and indented != code)
      ):
        yield block, section
        block = []
      if not block:
        section, code = starts, indented
      block.append(line)
  if block:
    yield block, section


def _block(lines: list[str], section: bool) -> str:
  while lines and not lines[-1].strip():
    lines = lines[:-1]
  text = "\n".join(lines)
  if section:
    return _prose(text)
  if all(map(_ROW.match, lines)):
    return _table(lines)
  if lines[0].startswith(" ") or ("(" in text and _is_python(text)):
    return _code(textwrap.dedent(text))
  return _prose(text)


def _code(code: str) -> str:
  """A code block, in the language that it is written in."""
  if _COMMAND.match(code):
    # A backslash at the end of a docstring's line has joined it with the next.
    code = re.sub(r"\s*\\?\n\s+|(?<=\S) {2,}", " ", code)
    long = [line for line in code.split("\n") if len(line) > 90]
    for line in long:
      code = code.replace(
        line, re.sub(r" (--(?:config\.|data_dir|output))", r" \\\n    \1", line)
      )
    language = "sh"
  else:
    language = "python" if _is_python(code) else "text"
  return f".. code-block:: {language}\n\n{textwrap.indent(code, '   ')}"


def _is_python(code: str) -> bool:
  try:
    ast.parse(code)
  except SyntaxError:
    return False
  return True


def _table(lines: list[str]) -> str:
  """A table; a row without a first cell goes on with the row above it."""
  rows: list[list[str]] = []
  for line in lines:
    cells = [cell.strip() for cell in _CELLS.split(line.strip())[1:]]
    if not cells[-1]:
      cells.pop()
    if rows and cells and not cells[0]:
      rows[-1] = [f"{above} {below}".strip() for above, below in zip(rows[-1], cells)]
    else:
      rows.append(cells)
  width = max(map(len, rows))
  shown = [".. list-table::", "   :header-rows: 1", ""]
  for row in rows:
    cells = [_prose(cell) for cell in row] + [""] * (width - len(row))
    shown += [
      f"   {'* -' if place == 0 else '  -'} {cell}" for place, cell in enumerate(cells)
    ]
  return "\n".join(shown)


def _prose(text: str) -> str:
  """Text whose stars, bars and underscores are no markup; what is in backticks is code."""
  parts = re.split(r"`+([^`]+)`+", text)
  return "".join(
    f"``{part}``" if place % 2 else _plain(part) for place, part in enumerate(parts)
  )


def _plain(text: str) -> str:
  text = re.sub(r"([\\*|])", r"\\\1", text)
  text = re.sub(
    r"(?m)(^\s*|: )([A-Za-z]|\d+)\.(?=\s|$)", r"\1\2\\.", text
  )  # no list begins
  return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)
