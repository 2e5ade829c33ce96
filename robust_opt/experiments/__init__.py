"""From a config to a trained network in a work directory."""

from robust_opt import extras

extras.require("run", "ml_collections", "orbax.checkpoint", "tensorboardX", "rich")
