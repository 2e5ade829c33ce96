"""Words under which the search finds a section, in a comment that readers of the file do not see.

  <!-- index: custom dataset, own data -->

In conf.py:

  extensions = ["index_entries", ...]

Each is a main entry of the index, which Sphinx' search ranks first.
"""

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

_COMMENT = re.compile(r"<!-- index: (.+) -->\s*", re.DOTALL)


class IndexEntries(SphinxTransform):
  """Replaces the comments of a page."""

  default_priority = 5  # before Sphinx collects the index

  def apply(self, **_: Any) -> None:
    """Called by Sphinx."""
    for raw in list(self.document.findall(nodes.raw)):
      if comment := _COMMENT.fullmatch(raw.astext()):
        name = f"index-{self.env.new_serialno('index')}"
        words = (entry.strip() for entry in comment[1].split(","))
        entries = [("single", word, name, "main", None) for word in words]
        target = nodes.target("", "", ids=[name])
        self.document.note_explicit_target(target)
        raw.replace_self([addnodes.index(entries=entries), target])


def setup(app: Sphinx) -> dict[str, Any]:
  """What Sphinx calls."""
  app.add_transform(IndexEntries)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
