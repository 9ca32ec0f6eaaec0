"""The recipe of the digits specimen, and the weights that ship."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from specimens.digits import train as recipe

from microtome.core.hashing import sha256_arrays
from microtome.errors import ModelFileError
from microtome.models.digits import DigitsCNN, digits
from microtome.models.specimens import specimen_card, specimen_folder, specimen_names
from microtome.tracing.opening import load


def test_the_shipped_weights_know_held_out_digits() -> None:
    folder = specimen_folder("digits-cnn")
    assert folder is not None and "digits-cnn" in specimen_names()
    assert (folder / "model.safetensors").stat().st_size < 200_000
    model, held_out = load("digits-cnn"), digits("test")
    assert isinstance(model.module, DigitsCNN) and not model.module.training
    assert model.anatomy is None and model.dtype == torch.float32
    trace = model.trace(held_out.images, capture="module:conv2:out")
    assert trace["module:conv2:out"].shape == (359, 16, 8, 8)
    right = (trace.logits.argmax(1) == held_out.labels).float().mean()
    card = specimen_card("digits-cnn")
    assert right >= 0.95
    assert card["measured"]["accuracy, test"]["value"] == pytest.approx(float(right), abs=1e-4)
    for name, digest in card["images"].items():
        assert digest == sha256_arrays({"images": digits(name).images.numpy()})
    assert load(folder).fingerprint == model.fingerprint
    assert load("digits-cnn", dtype="float16").dtype == torch.float16


def test_the_splits_do_not_overlap() -> None:
    train, test = digits("train"), digits("test")
    assert len(train.labels) + len(test.labels) == 1797
    assert train.images.min() >= 0 and train.images.max() == 1


def test_training_depends_on_the_seed_alone(tmp_path: Path) -> None:
    runs = [recipe.export(recipe.Recipe(seed=s, epochs=1), tmp_path / str(n)) for n, s in
            enumerate((0, 0, 1))]  # fmt: skip
    weights = [load_file(run / "model.safetensors") for run in runs]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not torch.equal(weights[0]["conv1.weight"], weights[2]["conv1.weight"])
    assert json.loads((runs[0] / "card.json").read_text())["settings"]["epochs"] == 1
    assert load(runs[0]).fingerprint != load("digits-cnn").fingerprint


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = specimen_folder("digits-cnn")
    assert folder is not None
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["conv1.bias"]
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ModelFileError, match="conv1.bias"):
        load(copy)
