"""Sets with other radii: `scaled`, and `ramp` for a radius that grows during training.

attack = ro.ScheduledAttack(lambda step: ro.steepest(ro.ramp(ro.LInf(8 / 255), step, 1000)))
"""

import dataclasses

import jax.numpy as jnp

from robust_opt.errors import InputError
from robust_opt.sets.base import Radius, UncertaintySet, check_set
from robust_opt.types import Array


def scaled(u: UncertaintySet, factor: Radius, *, box: bool = True) -> UncertaintySet:
  """The set with `factor` [] times its radii; an InputError if it has none."""
  check_set("A radius that changes", u)
  fields = [field.name for field in dataclasses.fields(u)]  # type: ignore[arg-type]
  radii = [name for name in fields if name.startswith(("radius", "magnitude"))]
  if not radii:
    raise InputError(
      f"{type(u).__name__} has no radius to scale: pgd, n_fgsm, free and warmup need one; "
      f"steepest and frank_wolfe do not."
    )
  changes = {name: factor * getattr(u, name) for name in radii}
  changes |= {"box": None} if "box" in fields and not box else {}
  return dataclasses.replace(u, **changes)  # type: ignore[type-var]


def ramp(u: UncertaintySet, step: Array | int, num_steps: float) -> UncertaintySet:
  """The set whose radii grow linearly from 0 to those of u in the first num_steps updates.

    U_t = min(t / num_steps, 1) U

  Args:
    u: a set with a radius, in pixels.
    step: [], the number of updates so far; may be traced.
    num_steps: > 0.

  Raises:
    InputError: u has no radius, or num_steps is not positive.
  """
  if not num_steps > 0:
    raise InputError(f"num_steps of a ramp must be > 0, but was {num_steps}.")
  return scaled(u, jnp.minimum(step / num_steps, 1.0))
