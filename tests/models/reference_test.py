"""The networks of the literature beside their PyTorch classes: benchmarks/reference_logits.py."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.reference_logits import images, structure_sha256, weights
from robust_opt import models
from robust_opt.models import state_dict

REFERENCE = json.loads((Path(__file__).parent / "reference_logits.json").read_text())
IMAGENET = {"num_classes": 1000}


def tuples(attributes):
  return {key: tuple(v) if isinstance(v, list) else v for key, v in attributes.items()}


def case_id(case):
  return "-".join([case["architecture"], *map(str, tuples(case["attributes"]).values())])


SMALL = REFERENCE["small"]  # every other one in the fast set
CASES = SMALL[::2] + [pytest.param(case, marks=pytest.mark.slow) for case in SMALL[1::2]]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_logits_are_those_of_the_pytorch_class(case):
  net = models.ARCHITECTURES[case["architecture"]](**tuples(case["attributes"]))
  given = {f"module.{key}": weights(key, shape) for key, shape in case["shapes"].items()}
  x, expected = images(case["side"]), np.array(case["logits"])
  params, model_state = state_dict.from_state_dict(net, given, x.shape[1:])
  apply = jax.jit(models.apply_of(net), static_argnames="train")
  logits, _ = apply(params, model_state, x, train=False, key=None)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
  assert np.ptp(expected, axis=0).max() > 0.1  # the images matter
  back = state_dict.to_state_dict(net, params, model_state)
  names = {key for key in back if not key.endswith("num_batches_tracked")}
  unused = {key for key in case["shapes"] if key.startswith("sub_block1.")}
  assert names == case["shapes"].keys() - unused
  for key in names:
    np.testing.assert_array_equal(back[key], given[f"module.{key}"])


@pytest.mark.parametrize("name", REFERENCE["full_size"])
def test_networks_of_full_size_have_the_parameters_of_the_pytorch_class(name):
  expected, large = REFERENCE["full_size"][name], name.startswith("ViT") or "ImageNet" in name
  net = models.ARCHITECTURES[name](**(IMAGENET if large else {}))
  shape = (224, 224, 3) if large else (32, 32, 3)
  params, model_state = state_dict.shapes_of(net, shape)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected["parameters"]
  shapes = state_dict.counterpart_shapes(net, (params, model_state))
  assert structure_sha256(shapes) == expected["structure_sha256"]
