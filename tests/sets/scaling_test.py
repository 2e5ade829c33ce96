"""Radii that grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robust_opt as ro
from robust_opt.errors import InputError
from robust_opt.experiments import build, config


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)])
def test_a_ramp_grows_linearly_to_the_set(step, share):
  u = ro.L2(jnp.array([0.5, 2.0]), box=(0.0, 1.0))
  grown = jax.jit(lambda t: ro.ramp(u, t, 4))(step)
  assert grown.box == u.box
  np.testing.assert_allclose(grown.radius, share * u.radius)
  both = ro.ramp(ro.sets.LInfL2(0.1, 1.0), step, 4)
  np.testing.assert_allclose((both.radius_inf, both.radius_2), (0.1 * share, share), rtol=1e-6)


def test_what_cannot_grow_is_refused():
  with pytest.raises(InputError, match="Transforms has no radius to scale"):
    ro.ramp(ro.sets.Transforms(30.0, 3.0), 0, 10)
  with pytest.raises(InputError, match=r"num_steps of a ramp must be > 0, but was 0"):
    ro.ramp(ro.L2(1.0), 0, 0)


def test_the_warmup_of_a_config_is_a_ramp():
  config_ = config.digits()
  config_.attack.warmup = 0.5  # of 30 epochs of 4 updates
  u, x, y = ro.L2(0.5), jnp.full((2, 3), 0.5), jnp.zeros(2, jnp.int32)
  value = ro.robust().inner(lambda x: (x, {}), x, y)
  keys = jax.random.split(jax.random.key(0), 2)
  attack_at = build.training_attack(config_, u, 4).at
  found = jax.jit(lambda step: attack_at(step)(value, keys, x)[0])
  expected = jax.jit(lambda step: ro.steepest(ro.ramp(u, step, 60))(value, keys, x)[0])
  for step in (0, 7, 60, 100):
    np.testing.assert_array_equal(found(step), expected(step))
