"""Keeps together what a narrow screen would tear apart: 'mean ± half width', and short code.

In conf.py:

  extensions = ["typography", ...]

A space beside ± does not break. Code of at most 28 characters gets the class `short`, which the
style sheet keeps on one line: a browser would break a flag after its dashes.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

SHORT = 28
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


class Typography(SphinxTransform):
  """What is described above, on every page."""

  default_priority = 500

  def apply(self, **_: Any) -> None:
    """Called by Sphinx."""
    for text in list(self.document.findall(nodes.Text)):
      if " ± " in text:
        whole = text.replace(" ± ", f"{NO_BREAK_SPACE}±{NO_BREAK_SPACE}")
        text.parent.replace(text, nodes.Text(whole))
    for literal in self.document.findall(nodes.literal):
      if len(literal.astext()) <= SHORT:
        literal["classes"].append("short")


def setup(app: Sphinx) -> dict[str, Any]:
  """What Sphinx calls."""
  app.add_transform(Typography)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
