"""From a config to a trained network in a work directory."""
