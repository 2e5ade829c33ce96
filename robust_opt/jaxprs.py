"""Interprets a traced function equation by equation, with nested functions inlined.

closed = jax.make_jaxpr(logits_fn)(x)
outputs = interpret(closed.jaxpr, closed.consts, inputs, of_equation)

What the values are, arrays or nodes of a graph, is the caller's choice.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

# Primitives that call one function once. Loops and branches are not among them.
_CALLS = (
  *("jit", "pjit", "closed_call", "core_call", "checkpoint"),
  *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # the function of such an equation


def interpret(
  jaxpr: Any,
  consts: Sequence[Any],
  inputs: Sequence[Any],
  of_equation: Callable[[Any, list[Any]], Sequence[Any]],
) -> list[Any]:
  """The outputs of a jaxpr; of_equation: (equation, its inputs) -> its outputs."""
  known = dict(zip(jaxpr.constvars, consts, strict=True))
  known |= dict(zip(jaxpr.invars, inputs, strict=True))

  def read(atom: Any) -> Any:
    return atom.val if isinstance(atom, core.Literal) else known[atom]

  for equation in jaxpr.eqns:
    values = [read(atom) for atom in equation.invars]
    if equation.primitive.name in _CALLS:
      called = next(equation.params[key] for key in _CALLED if key in equation.params)
      inner = called if isinstance(called, core.ClosedJaxpr) else core.ClosedJaxpr(called, ())
      outputs: Sequence[Any] = interpret(inner.jaxpr, inner.consts, values, of_equation)
    else:
      outputs = of_equation(equation, values)
    known |= dict(zip(equation.outvars, outputs, strict=True))
  return [read(atom) for atom in jaxpr.outvars]
