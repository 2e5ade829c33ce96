"""The environment of the processes that tests start."""

import os


def environment(devices: int = 1) -> dict[str, str]:
  """That of the tests, so that programs are shared and compile cheaply, but with fewer devices."""
  # Of several such flags the last one counts.
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  return os.environ | {"XLA_FLAGS": flags.strip()}
