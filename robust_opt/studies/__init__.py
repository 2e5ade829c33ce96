"""What the studies of all papers share: options, progress, claims, attacked accuracies."""

from robust_opt import extras

extras.require("run", "rich")
