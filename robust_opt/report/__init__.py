"""One HTML page about one run or several."""

from robust_opt import extras

extras.require("report", "jinja2", "markupsafe", "PIL", "plotly")
