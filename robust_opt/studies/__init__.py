"""What the studies of all papers share."""

from robust_opt import extras

extras.require("run", "rich")
