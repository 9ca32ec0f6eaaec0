"""Training in one call: from a model and text, a store, its folder or tensors, and going on."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.small import code_model

from microtome.errors import SiteError, UsageError
from microtome.sae import SAE, ActivationStore, Config, harvest, train
from microtome.sae.results import TrainingSummary
from microtome.sae.training import SUMMARY
from microtome.tracing.model import Model

SITE, INPUT, OUTPUT = "blocks.1.resid_post", "blocks.0.mlp.in", "blocks.0.mlp.out"
TEXTS = [f"value = {i} + data[{i % 7}]\nreturn value\n" for i in range(60)]
CONFIG = Config(k=4, d_sae=48, steps=6, batch_size=32, eval_rows=64)


@pytest.fixture(scope="module")
def model() -> Model:
    return code_model()


def same(left: SAE, right: SAE) -> None:
    for name, weight in left.weights.items():
        assert torch.equal(weight, right.weights[name]), name


class StopsAt:
    """A progress that interrupts the work when a share of one kind of it is done."""

    def __init__(self, label: str, share: float) -> None:
        self.label, self.share = label, share

    def step(self, done: int, total: int, label: str) -> None:
        if label == self.label and done >= self.share * total:
            raise KeyboardInterrupt


def test_one_call_is_harvesting_and_training(model: Model, tmp_path: Path) -> None:
    once = train(model, site=SITE, text=TEXTS, config=CONFIG)
    store = harvest(model, TEXTS, sites=SITE, folder=tmp_path / "a")
    for data in (store, str(tmp_path / "a"), tmp_path / "a"):
        same(train(data, CONFIG), once)
    assert once.origin.sources == once.origin.targets == (SITE,)
    assert (once.origin.model, once.origin.fingerprint) == (model.name, model.fingerprint)
    assert train(store, CONFIG).origin.fingerprint == model.fingerprint
    assert once.summary.steps == 6 and 0 < once.summary.fvu < 1.5


def test_tensors_are_taken_as_they_are() -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    plain = train(x, CONFIG)
    same(plain, train(ActivationStore.of(x), CONFIG))
    named = train({"here": x, "there": x.exp()}, CONFIG, site="there")
    assert named.origin.sources == named.origin.targets == ("there",)
    assert not torch.equal(named.weights["W_dec"], plain.weights["W_dec"])


def test_a_transcoder_in_one_call(model: Model) -> None:
    found = train(model, CONFIG, sources=INPUT, targets=OUTPUT, text=TEXTS)
    assert (found.origin.sources, found.origin.targets) == ((INPUT,), (OUTPUT,))
    assert not found.architecture.center
    trace = model.trace(TEXTS[:8], capture=[INPUT, OUTPUT])
    better = found(trace[INPUT]) - trace[OUTPUT]
    assert better[:, 1:].square().sum() < trace[OUTPUT][:, 1:].square().sum()


def test_the_same_call_goes_on_after_a_stop(model: Model, tmp_path: Path) -> None:
    call = {"site": SITE, "text": TEXTS, "config": CONFIG}
    stop = StopsAt("training", 0.5)
    with pytest.raises(KeyboardInterrupt):
        train(model, folder=tmp_path, progress=stop, **call)  # type: ignore[arg-type]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "activations").glob("acts-*")}
    same(train(model, folder=tmp_path, **call), train(model, **call))  # type: ignore[arg-type]
    assert before and before == {p: p.stat().st_mtime_ns for p in before}
    assert TrainingSummary.load(tmp_path / SUMMARY).steps == 6


def test_an_interrupted_harvest_of_a_call_goes_on(model: Model, tmp_path: Path) -> None:
    call = {"site": SITE, "text": TEXTS * 30, "config": CONFIG, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        train(model, progress=StopsAt("harvest", 0.9), **call)  # type: ignore[arg-type]
    kept = list((tmp_path / "activations").glob("acts-*"))
    before = {p: p.stat().st_mtime_ns for p in kept}
    same(train(model, **call), train(model, **call | {"folder": None}))  # type: ignore[arg-type]
    assert before and before == {p: p.stat().st_mtime_ns for p in kept}
    assert len(list((tmp_path / "activations").glob("acts-*"))) > len(before)


def test_shards_are_shared_and_otherwise_temporary(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train(model, CONFIG, site=SITE, text=TEXTS)
    assert not list(tmp_path.iterdir())
    shards = tmp_path / "shards"
    for seed in (0, 1):  # other seeds train on the same shards
        train(model, replace(CONFIG, seed=seed), site=SITE, text=TEXTS, shards=shards)
    assert len(list(shards.glob("acts-*"))) == 1


def test_arguments_that_do_not_go_together_are_refused(model: Model, tmp_path: Path) -> None:
    x = torch.randn(50, 6)
    with pytest.raises(UsageError, match="give text"):
        train(model, site=SITE)
    for places in ({}, {"targets": OUTPUT}):
        with pytest.raises(UsageError, match="give site or sources"):
            train(model, text=TEXTS, **places)  # type: ignore[arg-type]
    for option in ({"text": TEXTS}, {"shards": tmp_path}, {"tokens": 5}):
        with pytest.raises(UsageError, match=f"{next(iter(option))} .*first argument"):
            train(x, **option)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="an SAE has a site"):
        train(model, site=SITE, targets=OUTPUT, text=TEXTS)
    with pytest.raises(UsageError, match="cannot train on int"):
        train(3)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="means 2 places.*crosscoder"):
        train(model, site="resid_post", text=TEXTS)
    with pytest.raises(SiteError):
        train(model, site="blocks.7.resid_post", text=TEXTS)
    with pytest.raises(UsageError, match=r"training\.json"):
        _ = SAE(train(x, CONFIG).architecture).summary
