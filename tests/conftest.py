"""Eight devices on one CPU, and properties that fail the same way twice."""

import os
import sys

assert "jax" not in sys.modules, "jax read its environment before the tests could set it"
os.environ["JAX_PLATFORMS"] = "cpu"
_FLAGS = os.environ.get("XLA_FLAGS", "")
# The tests compile far more than they compute.
os.environ["XLA_FLAGS"] = (
  f"{_FLAGS} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
).strip()

import hypothesis  # noqa: E402

hypothesis.settings.register_profile("robust_opt", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("robust_opt")
