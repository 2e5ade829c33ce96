"""One HTML page about runs and evaluations."""

from robust_opt import extras

extras.require("report", "jinja2", "markupsafe", "PIL")
