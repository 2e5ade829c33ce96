"""Formulas as MathML, which browsers show by themselves: no script, no fonts, no pictures.

In conf.py:

  extensions = ["mathml", ...]
  html_math_renderer = "mathml"
"""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def setup(app: Sphinx) -> dict[str, Any]:
  """What Sphinx calls."""
  app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
  return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
  translator.body.append(convert(node.astext()))
  raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
  translator.body.append(
    f'<div class="math">{convert(node.astext(), display="block")}</div>'
  )
  raise nodes.SkipNode
