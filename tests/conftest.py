"""Eight devices on one CPU, cheap compilations, properties that fail the same way twice.

ROBUST_OPT_TEST_BACKEND=gpu runs the same tests on the accelerator that JAX finds (docs/scale.md).
Float32 products are then computed in full precision, as on a CPU, and tests that need more devices
than there are skip.
"""

import gc
import importlib.metadata
import os
import shutil
import sys
import tempfile
from pathlib import Path

assert "jax" not in sys.modules, "jax read its environment before the tests could set it"

BACKEND = os.environ.get("ROBUST_OPT_TEST_BACKEND", "cpu")


def _environment_of_a_cpu() -> dict[str, str]:
  # The tests compile far more than they compute.
  flags = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
  if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA refuses flags that it drops
    # The older code generator compiles in less than half the time; no wait for a second thread.
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
  flags = " ".join([*flags, os.environ.get("XLA_FLAGS", "")]).strip()
  return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def _environment_of_an_accelerator() -> dict[str, str]:
  # The processes of pytest-xdist, and those that the tests start, share its memory.
  sharing = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  # The tolerances are those of float32; by default accelerators round the factors of its products.
  return sharing | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}


if BACKEND != "cpu":  # files and packages, whatever computes
  collect_ignore = ["docs_test.py", "notebooks_test.py", "recipes_test.py", "wheel_test.py"]
os.environ |= _environment_of_a_cpu() if BACKEND == "cpu" else _environment_of_an_accelerator()

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

from robust_opt.errors import MissingExtraError  # noqa: E402

hypothesis.settings.register_profile("robust_opt", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("robust_opt")


def pytest_sessionstart(session):
  del session
  found = jax.default_backend()
  if found != BACKEND:
    pytest.exit(f"ROBUST_OPT_TEST_BACKEND is {BACKEND}, but JAX runs on {found}.", returncode=2)


def pytest_collection_finish():
  """Garbage is looked for less often, and never among what the imports left: JAX leaves little."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(10_000, 10, 10)


def pytest_runtest_setup(item):
  """Skips tests marked `devices(n)` where there are fewer."""
  for marker in item.iter_markers("devices"):
    (needed,), found = marker.args, jax.device_count()
    if found < needed:
      pytest.skip(f"needs {needed} devices, but there are {found} ({BACKEND})")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
  """Skips, on accelerators, what needs an extra that is not installed there."""
  del pyfuncitem
  try:
    return (yield)
  except MissingExtraError as error:
    if BACKEND == "cpu":
      raise
    pytest.skip(str(error))


@pytest.fixture
def default_precision():
  """Computes float32 products as the backend does unless told otherwise."""
  with jax.default_matmul_precision(None):
    yield


@pytest.fixture
def float64():
  """Computes in float64, where rounding lies far below the effect of any fault."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def no_pictures():
  """Runs draw none: the three of a small run take longer than all the rest of it."""
  from robust_opt.experiments import run

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, "draw", lambda *_: None)
    yield


@pytest.fixture(scope="module")
def browser():
  """Chromium without a window and without a network."""
  chromium = shutil.which("chromium") or shutil.which("google-chrome")
  driver_path = shutil.which("chromedriver")
  if not chromium or not driver_path:
    pytest.skip("no Chromium with its driver on this machine")
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = chromium
  for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
    options.add_argument(argument)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
  driver.set_page_load_timeout(300)
  driver.set_script_timeout(300)
  driver.execute_cdp_cmd("Network.enable", {})
  offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
  driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
  yield driver
  driver.quit()


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
