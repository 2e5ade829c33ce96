"""`robustify`: any loss over a batch as its worst case over an uncertainty set.

robust_loss = ro.robustify(loss, ro.steepest(ro.LInf(0.1)))
gradient = jax.grad(robust_loss)(params, x, y)         # same arguments as loss
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_opt.checks import check_callable, described, has_parameter
from robust_opt.errors import InputError
from robust_opt.maximizers.base import Attack, check_attack, check_examples
from robust_opt.types import Array, PyTree


def robustify(
  loss: Callable[..., Any],
  attack: Attack,
  argnum: int = 1,
  has_aux: bool = False,
  leaf: str | None = None,
) -> Callable[..., Any]:
  """Turns a loss over a batch into its worst case over the uncertainty set.

    robust_loss(params, x, y) = loss(params, x + delta, y),  delta = attack's argmax over U(x)

  The result takes the same arguments, and an optional `attack_key=` for attacks that start at
  random. It composes with jit, grad, vmap, pmap and shard_map. By Danskin's theorem the gradient in
  the parameters is that of the loss at the maximizing delta: no gradient flows through delta, and
  the ascent computes none in the parameters.

  Args:
    loss: returns per-example losses [B], or any sum or mean of them (a steepest ascent does not
      depend on the scale). The examples are positional argument `argnum`, [B, *S].
    attack: from `steepest`, `ascend`, `apgd` or `restarts`. Attacks that compare losses (`lbfgs`,
      `apgd`, keep_best, `restarts`) need per-example losses; take the mean outside.
    argnum: index of the positional argument that holds the examples.
    has_aux: whether loss returns (loss, auxiliary data), as in jax.grad.
    leaf: if the examples are a dict or another pytree, the array of it to perturb, [B, *S]: "image"
      of {"image": x, "mask": m}, "left/image" of nested ones. The others stay as they are.

  Raises:
    InputError: loss is not a function, or attack is not an attack (a set, for example); when
      called: the examples are passed by keyword or are not one array of floats, the loss returns
      something else, or what the attack needs is missing.
  """
  check_callable("loss", loss, "(params, x, y) -> losses [B], as in ro.robustify(loss, attack)")
  if has_parameter(loss, "value_fn"):
    raise InputError("loss was an attack: write ro.robustify(loss, attack).")
  check_attack(attack)
  if not isinstance(argnum, int):
    raise InputError(f"argnum must be the position of the examples, not {described(argnum)}.")

  @functools.wraps(loss)
  def robust_loss(*args: Any, attack_key: Array | None = None, **kwargs: Any) -> Any:
    if not -len(args) <= argnum < len(args):
      raise InputError(
        f"The examples must be positional argument {argnum} of the loss (argnum={argnum}), but it "
        f"was given {len(args)} positional arguments and {sorted(kwargs) or 'none'} by name."
      )
    index = range(len(args))[argnum]  # argnum may be negative, as in jax.grad
    before, examples, after = args[:index], args[index], args[index + 1 :]
    what = f"The examples (positional argument {index}, by argnum={argnum})"
    position = _position(what, examples, leaf)
    x = jax.tree.leaves(examples)[position]
    frozen = jax.tree.map(_freeze, (before, examples, after, kwargs))

    def value_fn(x: Array) -> Array:
      out = loss(*frozen[0], _with_leaf(frozen[1], position, x), *frozen[2], **frozen[3])
      if not has_aux:
        return out
      if not (isinstance(out, tuple | list) and len(out) == 2):
        raise InputError(
          f"With has_aux=True the loss must return (loss, auxiliary data), but it returned "
          f"{described(out)}."
        )
      return out[0]

    delta, _ = attack(value_fn, attack_key, _freeze(x))
    return loss(*before, _with_leaf(examples, position, x + delta), *after, **kwargs)

  return robust_loss


def _position(what: str, examples: PyTree, leaf: str | None) -> int:
  """The index, among the leaves of the examples, of the array to perturb."""
  leaves = jax.tree.leaves_with_path(examples)
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
  if leaf is None:
    floats = [name for name, (_, value) in zip(names, leaves, strict=True) if _is_floating(value)]
    hint = f"name the array to perturb, as in leaf={floats[0]!r}" if floats else ""
    hint += f", one of {', '.join(floats)}" if len(floats) > 1 else ""
    check_examples(what, examples, hint)
    return 0
  if leaf not in names:
    allowed = ", ".join(filter(None, names)) or "None, since they are one array"
    raise InputError(f"{what} have no leaf={leaf!r}; it can be {allowed}.")
  check_examples(f"leaf={leaf!r} of the examples", leaves[names.index(leaf)][1])
  return names.index(leaf)


def _with_leaf(tree: PyTree, position: int, leaf: Array) -> PyTree:
  leaves, structure = jax.tree.flatten(tree)
  return jax.tree.unflatten(structure, [*leaves[:position], leaf, *leaves[position + 1 :]])


def _is_floating(value: object) -> bool:
  return isinstance(value, jax.Array | np.ndarray) and jnp.issubdtype(value.dtype, jnp.floating)


def _freeze(leaf: Any) -> Any:
  return jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf
