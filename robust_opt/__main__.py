"""Lists the commands: `python -m robust_opt`. Every command explains its flags with --help."""

import ast
import re
from pathlib import Path

# The module that describes each command, where it is not the command's own.
COMMANDS = {
  "main": "",
  "evaluate": "",
  "verify": "",
  "report": "report.page",
  "construct": "",
  "papers.shaham2015": "papers.shaham2015.study",
  "papers.goodfellow2015": "papers.goodfellow2015.study",
  "papers.ilyas2019": "",
  "papers.family": "",
  "papers.linear_theory": "",
}


def listing() -> str:
  """Each command with the first line of its description and its first example."""
  parts = []
  for command, described in COMMANDS.items():
    path = Path(__file__).parent.joinpath(*(described or command).split(".")).with_suffix(".py")
    # Not imported: that would need every extra.
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    example = re.search(rf"^ *(python -m robust_opt\.{command}\b(.*\\\n)*.*)$", words, re.MULTILINE)
    parts.append(f"{words.splitlines()[0]}\n\n  {example[1] if example else ''}\n")
  return "\n".join([*parts, "Add --help to a command for its flags; docs/index.md is the manual."])


if __name__ == "__main__":
  print(listing())
