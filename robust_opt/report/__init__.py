"""One HTML page about one or several runs."""

from robust_opt import extras

extras.require("report", "jinja2", "markupsafe", "PIL")
