"""The training step, the scan over many steps, and what goes with them."""
