"""Links to definitions, [PGD](../robust_opt/a.py "pgd"), lead to their docstrings.

In conf.py:

  extensions = ["sources", ...]

The title of such a link is the name of a function or class of that file. Where the pages are read
as files, the link opens the file; on the site, its docstring.
"""

from pathlib import PurePosixPath
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class Sources(SphinxTransform):
  """Replaces the links of a page."""

  default_priority = 5  # before Sphinx collects what can be downloaded

  def apply(self, **_: Any) -> None:
    """Called by Sphinx."""
    for link in list(self.document.findall(download_reference)):
      path, name = PurePosixPath(link["reftarget"]), link.get("title")
      if name and path.suffix == ".py":
        module = ".".join(path.with_suffix("").parts).lstrip(".")
        to = pending_xref(
          "",
          nodes.inline("", "", *link.children),
          refdomain="py",
          reftype="obj",
          reftarget=f"{module}.{name}",
          refexplicit=True,
          refwarn=True,
          refdoc=link["refdoc"],
        )
        link.replace_self(to)


def setup(app: Sphinx) -> dict[str, Any]:
  """What Sphinx calls."""
  app.add_transform(Sources)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
