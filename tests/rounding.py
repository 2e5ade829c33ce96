"""How far apart rounding can move two computations of the same number.

Another CPU, batch size, number of devices or compiled program adds the terms of a sum in another
order, and may or may not fuse multiplications with additions. A tolerance between two such results
follows from the type and the number of operations:

  np.testing.assert_allclose(x @ w, expected, atol=rounding(terms=64) * scale)
  assert_close(new.params, expected.params, terms=64 + 16 + 10)

Compare a formula with another formula in float64 (the fixture `float64`, and `widest`): the
tolerance is then orders of magnitude below the effect of any fault.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def rounding(
  *, terms: int = 1, steps: int = 1, growth: float = 1.0, dtype: Any = np.float32
) -> float:
  """Bound on the difference between two results of the same operations, relative to their size.

  A sum or a dot product of n terms, added in any order, is within n u of the exact value, relative
  to the sum of the absolute terms, where u = eps / 2 is the unit roundoff (Higham, Accuracy and
  Stability of Numerical Algorithms, 2002, eqs. 3.5 and 4.4). Two of them are within n eps. Errors
  of operations that follow one another add up, as long as none amplifies the error of its input.

  Args:
    terms: operations that follow one another within a step. A sum of n terms has n; a network has
      the sum of the widths that its products contract, twice that with its gradient; elementwise
      functions have a few.
    steps: of the iteration, if there is one, each of which starts from the last one's result.
    growth: by how much a step may multiply the error of the point that it starts from.
    dtype: in which the operations are done.
  """
  amplified = sum(growth**step for step in range(steps))
  return float(terms * amplified * jnp.finfo(dtype).eps)


def assert_close(
  actual: Any,
  expected: Any,
  *,
  terms: int = 1,
  steps: int = 1,
  growth: float = 1.0,
  scale: float | None = None,
  dtype: Any = None,
) -> None:
  """Asserts that two trees differ by no more than `rounding` of each leaf's largest magnitude.

  Args:
    actual: a tree of arrays.
    expected: a tree of the same structure and shapes.
    terms: as in `rounding`.
    steps: as in `rounding`.
    growth: as in `rounding`.
    scale: the size of the terms that were added, where they cancel; else the largest magnitude of
      the leaf of `expected`.
    dtype: of the arithmetic; else the less precise type of the two leaves.
  """

  def assert_leaf_close(actual: Any, expected: Any) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    floating = [a.dtype for a in (actual, expected) if jnp.issubdtype(a.dtype, jnp.floating)]
    if not floating:
      np.testing.assert_array_equal(actual, expected)
      return
    coarsest = dtype or max(floating, key=lambda dtype: jnp.finfo(dtype).eps)
    magnitude = np.abs(expected.astype(np.float64))
    size = np.max(magnitude[np.isfinite(magnitude)], initial=0.0) if scale is None else scale
    relative = rounding(terms=terms, steps=steps, growth=growth, dtype=coarsest)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * size)

  jax.tree.map(assert_leaf_close, actual, expected)


def widest(tree: Any) -> Any:
  """The tree with its floating arrays in float64 where x64 is on, else in float32."""
  return jax.tree.map(
    lambda a: jnp.asarray(a, float) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
  )
