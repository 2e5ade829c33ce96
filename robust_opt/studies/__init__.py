"""What the studies of all papers share."""
