"""Folders as on the Hugging Face Hub: what is in them, and back."""

import json

import numpy as np
import pytest
import yaml

import robust_opt as ro
from robust_opt import hub, models
from robust_opt.errors import InputError
from robust_opt.evaluation import autoattack, verdict
from robust_opt.experiments import config, initial, target
from robust_opt.experiments.assembly import assemble
from robust_opt.sets.build import config_sha256
from robust_opt.weight_files import HUB_FILE
from robust_opt.weights import NETS


@pytest.fixture(scope="module")
def net():
  return ro.load("digits_linf")


@pytest.fixture(scope="module")
def evaluated(net, tmp_path_factory):
  """The folder of an evaluation of eight images: seven right, of which five remain."""
  folder, x = tmp_path_factory.mktemp("evaluation"), np.full((8, 8, 8, 1), 0.5, np.float32)
  broken_by, y = np.array([0, 1, 1, *[-1] * 5]), np.zeros(8, np.int32)
  found = autoattack.Verdict(("clean", "apgd-ce"), y, broken_by, x)
  ball = verdict.ball_config("linf", 0.1)
  claim = verdict.Claim(
    ball, "standard", 0, 8, {}, net.sha256, verdict.data_sha256(x, y), "CPU", config_sha256(ball)
  )
  verdict.save(folder / "verdict.npz", found, claim, x, y)
  return folder


def test_a_folder_is_read_back(net, evaluated, tmp_path):
  folder = tmp_path / "mine"
  ro.save_weights(net, folder, evaluations=[evaluated])
  again = ro.load(folder)
  assert (again.sha256, again.definition) == (net.sha256, net.definition)
  assert (again.title, again.image_shape, again.dataset) == ("mine", (8, 8, 1), "digits")
  (measured,) = again.card["evaluations"]
  assert [measured[key] for key in ("examples", "clean", "robust")] == [8, 7, 5]
  assert measured["attack"].startswith("AutoAttack over l_inf 0.1")
  ro.save_weights(again, tmp_path / "twice" / "mine", evaluations=[evaluated])
  for file in sorted(folder.iterdir()):
    assert (tmp_path / "twice" / "mine" / file.name).read_bytes() == file.read_bytes()


def test_the_card_has_the_header_that_the_hub_reads(net, evaluated, tmp_path):
  ro.save_weights(net, tmp_path / "mine", evaluations=[evaluated / "verdict.npz"])
  text = (tmp_path / "mine" / hub.CARD).read_text()
  _, header, body = text.split("---\n", 2)
  metadata = yaml.safe_load(header)
  assert metadata["library_name"] == "robust_opt"
  assert "license" not in metadata  # the user's to state
  assert (metadata["datasets"], metadata["metrics"]) == (["digits"], ["accuracy"])
  (model,) = metadata["model-index"]
  (result,) = model["results"]
  assert [metric["value"] for metric in result["metrics"]] == [87.5, 62.5]
  assert result["dataset"] == {"name": "digits", "type": "digits"}
  assert "| AutoAttack over l_inf 0.1 within [0, 1] | 8 | 87.50 % | 62.50 % |" in body
  shipped = yaml.safe_load((NETS / "digits_linf" / hub.CARD).read_text().split("---\n")[1])
  assert shipped["license"] == "apache-2.0"


def test_evaluate_takes_a_folder(net, tmp_path):
  folder = tmp_path / "mine"
  ro.save_weights(net, folder)
  source = {"architecture": "DigitsCNN", "weights": str(folder), "data": "digits"}
  assert target.load(source, 5).net_sha256 == net.sha256


@pytest.mark.slow
def test_training_starts_from_a_folder(net, tmp_path):
  ro.save_weights(net, tmp_path / "mine")
  c = config.digits()
  c.init_from = str(tmp_path / "mine")
  assert initial.start(assemble(c)).sha256 == net.sha256


def test_what_is_refused(net, evaluated, tmp_path):
  other = net.with_weights({**net.params, "extra": np.zeros(1)}, {})
  with pytest.raises(InputError, match=r"is an evaluation of other weights: \w{64} -> "):
    hub.describe(net.net, (8, 8, 1), other.sha256, "", [evaluated])
  with pytest.raises(InputError, match="evaluations are for the card of a folder"):
    ro.save_weights(net, tmp_path / "net.safetensors", evaluations=[evaluated])

  class Own(models.DigitsCNN):
    pass

  with pytest.raises(InputError, match=r"networks of robust_opt\.models; store Own as"):
    ro.save_weights(net._replace(net=Own()), tmp_path / "own")
  assert not list(tmp_path.iterdir())
  ro.save_weights(net, tmp_path / "mine")
  (tmp_path / "mine" / hub.CONFIG).write_text(json.dumps({"model_type": "bert"}))
  with pytest.raises(InputError, match=r"mine is no folder of ro\.save_weights \(KeyError"):
    ro.load(tmp_path / "mine")
  (tmp_path / "mine" / HUB_FILE).unlink()
  with pytest.raises(InputError, match="there is no such file"):
    ro.load_torch(tmp_path / "mine", "DigitsCNN", image_shape=(8, 8, 1))
