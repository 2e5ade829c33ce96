"""Times: medians of several timings after warm-up, with compilation apart.

with compiling() as seconds:
  ...
seconds[0]
median_seconds(run, repeats=5)        # run() returns when the device is done
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

COMPILING = (
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
  "/jax/core/compile/backend_compile_duration",
)


def median_seconds(run: Callable[[], object], repeats: int) -> float:
  """The median of `repeats` timings, after one that warms up."""
  seconds = []
  for _ in range(repeats + 1):
    began = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - began)
  return statistics.median(seconds[1:])


@contextmanager
def compiling() -> Iterator[list[float]]:
  """Measures the seconds of JAX compilation within the context."""
  total = [0.0]

  def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del kwargs
    total[0] += duration_secs * (event in COMPILING)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield total
  jax.monitoring.unregister_event_duration_listener(listen)
