"""One module or package per paper: what it measures, as calls of the library."""

from robust_opt import extras

extras.require("run", "ml_collections", "sklearn", "matplotlib")
