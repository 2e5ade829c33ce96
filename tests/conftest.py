"""Eight devices on one CPU, cheap compilations, properties that fail the same way twice."""

import gc
import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path

assert "jax" not in sys.modules, "jax read its environment before the tests could set it"

# The tests compile far more than they compute.
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA refuses flags that it drops
  # The older code generator compiles in less than half the time; no wait for a second thread.
  _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")]).strip()

# What takes long to compile serves every test, the workers of pytest-xdist, and the processes that
# the tests start: the same program is often made of another closure. Keeping one costs a few ms.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix="robust_opt_tests_", ignore_cleanup_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("robust_opt", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("robust_opt")


def pytest_collection_finish():
  """Garbage is looked for less often, and never among what the imports left: JAX leaves little."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(10_000, 10, 10)


@pytest.fixture
def float64():
  """Computes in float64, where rounding lies far below the effect of any fault."""
  with jax.enable_x64(True):
    yield


_MAPS = Path("/proc/self/maps")
_MANY = 20_000


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
  """Drops compiled programs between modules, once there are thousands of them.

  Each takes three memory maps, and Linux allows a process 65,530 by default: the compiler then
  dies of a segmentation fault.
  """
  yield
  if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY:
    jax.clear_caches()
