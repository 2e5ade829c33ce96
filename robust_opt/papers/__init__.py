"""One thin script a paper: its tables and figures as calls of the library."""

from robust_opt import extras

extras.require("run", "ml_collections", "sklearn", "matplotlib")
