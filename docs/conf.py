"""The documentation, by Sphinx: Markdown pages (MyST), docstrings (autodoc), the theme furo.

  python -m pip install ".[docs]" && python -m sphinx -W --keep-going docs site

Then open site/index.html. No page fetches anything from the network: no fonts, no scripts; formulas
are MathML, made when the site is built.
"""

import importlib.metadata
import sys
from pathlib import Path

sys.path[:0] = [
  str(Path(__file__).parent / "extensions"),
  str(Path(__file__).parents[1]),
]

project = "robust_opt"
author = "The robust_opt authors"
copyright = author
version = release = importlib.metadata.version("robust_opt")

extensions = [
  "myst_parser",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "docstrings",
  "index_entries",
  "mathml",
  "sources",
  "typography",
]
source_suffix = {".md": "markdown"}
smartquotes = False  # --flag stays what one types
exclude_patterns = ["assets", "extensions"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_math_renderer = "mathml"
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "robust_opt"
html_static_path = ["assets"]
html_css_files = ["extra.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False

add_module_names = False
autodoc_class_signature = "mixed"
# Every module shows what it defines, and nothing that it only passes on.
autodoc_default_options = {"members": True, "ignore-module-all": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # shapes, units and types are said in words
maximum_signature_line_length = 70
# The attributes of our tuples are what they are made of.
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_numpy_docstring = False
napoleon_use_rtype = False
