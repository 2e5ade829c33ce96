"""What a traced program consists of."""

import jax.extend
import numpy as np


def equations(jaxpr, *primitives):
  """Every equation of one of the primitives, those of the program's parts among them."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in primitives:
      yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from equations(inner, *primitives)


def multiply_adds(product):
  """Of a matrix product, an equation of dot_general."""
  (contracted, _), _ = product.params["dimension_numbers"]
  summed = np.prod([product.invars[0].aval.shape[axis] for axis in contracted])
  return int(summed * np.prod(product.outvars[0].aval.shape))
