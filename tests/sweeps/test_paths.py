"""Path patching against frozen runs made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tests.sweeps.test_sweeps import pairs

from microtome.attribution import component_names
from microtome.behaviors import Examples
from microtome.behaviors.metrics import metric
from microtome.errors import ModelSupportError, SweepError
from microtome.models.families import build
from microtome.sweeps import PathEffects, path_patching
from microtome.tracing.interventions import Intervention
from microtome.tracing.model import Model
from microtome.tracing.opening import load
from microtome.tracing.sites import Site, at


def by_hand(model: Model, examples: Examples, sender: str, receivers: list[Site]) -> np.ndarray:
    """Wang et al.'s two passes: freeze every other part, keep what receivers read, run with it."""
    layer = int(sender[1:].split(".")[0])
    names = component_names(model)
    sites = [f"blocks.{n}.attn.z" for n in range(len(model.anatomy.blocks))]  # type: ignore[union-attr]
    sites += [f"blocks.{n}.mlp.out" for n in range(len(model.anatomy.blocks))]  # type: ignore[union-attr]
    base = model.trace(examples.clean, capture=sites)
    other = model.trace(examples.corrupt, capture=sites)
    frozen: list[Intervention] = []
    for name in names:
        block = int(name[1:].split(".")[0])
        site = (
            at("attn.z", layer=block, head=int(name.split(".h")[1]))
            if name.startswith("a")
            else at("mlp.out", layer=block)
        )
        if name == sender:
            frozen.append(site.patch(other))
        elif block >= layer:
            frozen.append(site.patch(base))
    reading = {
        r: (f"blocks.{r.layer[0]}.attn.in" if r.name.startswith("attn.in") else str(r))  # type: ignore[index]
        for r in receivers
    }
    seen = model.trace(examples.clean, capture=list(reading.values()), interventions=frozen)
    changes = []
    for receiver, name in reading.items():
        value = seen[name]
        if receiver.name.startswith("attn.in"):
            value = value.unsqueeze(2).expand(-1, -1, 4, -1)
        changes.append(receiver.patch(value))
    trace = model.trace(examples.clean, interventions=changes, logits="last")
    chosen = metric("logit_difference")
    return chosen(trace.logits, trace.lengths, examples).detach().numpy()  # type: ignore[operator]


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gpt_neox"])
def test_every_sender_equals_the_frozen_passes(family: str) -> None:
    model, examples = load(build(family)), pairs((7, 7))
    receivers = [at("attn.in.q", layer=2, head=1), at("mlp.in", layer=2)]
    found = path_patching(model, examples, receivers)
    for number, sender in enumerate(found.senders):
        wanted = by_hand(model, examples, sender, receivers)
        np.testing.assert_allclose(found.values[:, number], wanted, atol=2e-5, err_msg=sender)
    assert any(abs(found.interval(s).value) > 1e-3 for s in found.senders)


def test_the_direct_path_to_the_logits() -> None:
    model, examples = load(build("llama")), pairs((7, 7))
    found = path_patching(model, examples, "logits", senders=["a1.h2", "m0"])
    for number, sender in enumerate(found.senders):
        layer = int(sender[1])
        sites = [f"blocks.{n}.{s}" for n in range(3) for s in ("attn.z", "mlp.out")]
        base = model.trace(examples.clean, capture=sites)
        other = model.trace(examples.corrupt, capture=sites)
        own = at("attn.z", layer=1, head=2) if sender == "a1.h2" else at("mlp.out", layer=0)
        changes = [own.patch(other)]
        changes += [at("attn.z", layer=n).patch(base) for n in range(layer + 1, 3)]
        changes += [
            at("mlp.out", layer=n).patch(base) for n in range(layer + (sender[0] == "m"), 3)
        ]
        trace = model.trace(examples.clean, interventions=changes, logits="last")
        wanted = metric("logit_difference")(trace.logits, trace.lengths, examples)  # type: ignore[operator]
        np.testing.assert_allclose(found.values[:, number], wanted.detach(), atol=2e-5)


def test_results_and_errors(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, examples = load(build("gpt2")), pairs((7, 7))
    found = path_patching(model, examples, "blocks.1.mlp.in")
    assert "a1.h0" in found.senders and "m1" not in found.senders and "a2.h0" not in found.senders
    loaded = PathEffects.load(found.save(tmp_path / "p.json"))
    np.testing.assert_array_equal(loaded.values, found.values)
    assert list(found.to_frame().columns) == ["sender", "value", "effect"]
    with pytest.raises(SweepError, match="cannot receive"):
        path_patching(model, examples, "blocks.1.resid_pre")
    with pytest.raises(SweepError, match="name one block"):
        path_patching(model, examples, "attn.in.q")
    with pytest.raises(SweepError, match="No sender"):
        path_patching(model, examples, "blocks.0.attn.in.q")
    with pytest.raises(SweepError, match="no head or MLP"):
        path_patching(model, examples, "logits", senders=["x1"])
    with pytest.raises(ModelSupportError, match="path patching needs that"):
        path_patching(load(build("olmo2")), examples, "logits")
