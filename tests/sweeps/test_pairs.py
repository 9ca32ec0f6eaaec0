"""Patching pairs of parts: against whole passes, symmetry, redundancy, resuming, errors."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tests.small import code_model
from tests.sweeps.test_sweeps import pairs

from microtome.behaviors import Examples, quote_closing
from microtome.errors import EmptyDataError, MetricError, SweepError, UnknownNameError
from microtome.models.families import build
from microtome.sweeps import PairEffects, pair_patching, sweep
from microtome.sweeps import pairs as pairs_module
from microtome.tracing.components import component_names, head_of, layer_of
from microtome.tracing.opening import load
from microtome.tracing.sites import at

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2", "mpt", "mixtral", "jamba", "falcon", "bert")


def slow(model, examples, one: str, other: str, base: str) -> np.ndarray:  # type: ignore[no-untyped-def]
    """One whole forward pass for each example, by the public interventions."""
    found = []
    for example in examples:
        here, there = example.clean, example.corrupt
        if base == "corrupt":
            here, there = there, here
        changes = []
        for name in {one, other}:
            head, layer = head_of(name), layer_of(name)
            site = at("mlp.out", layer=layer) if head is None else at(
                "attn.z", layer=layer, head=head
            )  # fmt: skip
            other_run = model.trace([there], capture=str(at(site.name, layer=layer)))
            changes.append(site.patch(other_run))
        logits = model.trace([here], interventions=changes).last()[0]
        found.append(float(logits[example.answers[0][0]] - logits[example.wrongs[0][0]]))
    return np.array(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_equal_whole_passes(family: str) -> None:
    model = load(build(family))
    examples = pairs((9, 9))
    base = ("clean", "corrupt")[FAMILIES.index(family) % 2]
    names = component_names(model)
    chosen = [names[0], names[1], names[len(names) // 2], names[-1]]
    found = pair_patching(model, examples, parts=chosen, base=base)  # type: ignore[arg-type]
    for a, b in itertools.product(range(len(found.parts)), repeat=2):
        expected = slow(model, examples, found.parts[a], found.parts[b], base)
        np.testing.assert_allclose(found.values[:, a, b], expected, rtol=2e-4, atol=2e-5)


def test_the_diagonal_is_the_sweep_over_heads_and_all_is_symmetric() -> None:
    model = code_model()
    examples = quote_closing(20).prepare(model)
    found = pair_patching(model, examples, base="corrupt")
    heads = sweep(model, examples, "attn.z", base="corrupt")
    for number, name in enumerate(found.parts):
        if (head := head_of(name)) is not None:
            one = heads.values.sel(layer=layer_of(name), head=head).to_numpy()
            np.testing.assert_allclose(found.values[:, number, number], one, atol=1e-4)
    np.testing.assert_array_equal(found.values, found.values.transpose(0, 2, 1))
    assert np.abs(np.diagonal(found.interaction)).max() == 0
    assert found.certificate["restarted"]
    assert found.certificate["difference"] <= found.certificate["tolerance"]


def test_tables_intervals_and_files(tmp_path: Path) -> None:
    model = code_model()
    examples = quote_closing(20).prepare(model)
    found = pair_patching(model, examples, parts=["m0", "a0.h1", "a1.h2"])
    assert found.parts == ("a0.h1", "m0", "a1.h2")
    frame = found.to_frame()
    assert len(frame) == 3
    row = frame[(frame.one == "a0.h1") & (frame.other == "m0")].iloc[0]
    beyond = row.effect_both - row.effect_one - row.effect_other
    assert row.interaction == pytest.approx(beyond, abs=1e-9)
    assert found.interval("m0", "a0.h1").value == pytest.approx(row.interaction, abs=1e-9)
    again = PairEffects.load(found.save(tmp_path / "pairs.json"))
    np.testing.assert_array_equal(again.values, found.values)


def test_a_stopped_run_goes_on_to_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microtome.sweeps.checkpoint.EVERY", 0.0)
    monkeypatch.setattr(pairs_module, "ROWS", 32)
    model = code_model()
    examples = quote_closing(20).prepare(model)
    whole = pair_patching(model, examples)

    class Stop:
        def step(self, done: int, total: int, label: str) -> None:
            if done > total // 2:
                raise KeyboardInterrupt

    file = tmp_path / "pairs.safetensors"
    with pytest.raises(KeyboardInterrupt):
        pair_patching(model, examples, resume=file, progress=Stop())
    assert file.exists()
    ran = []
    original = pairs_module._Batch.run
    monkeypatch.setattr(
        pairs_module._Batch, "run", lambda self, some: ran.append(1) or original(self, some)
    )
    again = pair_patching(model, examples, resume=file)
    np.testing.assert_array_equal(again.values, whole.values)
    assert not file.exists()
    total = len(ran)
    pair_patching(model, examples)
    assert total < len(ran) - total


def test_wrong_usage() -> None:
    model = code_model()
    examples = quote_closing(20).prepare(model)
    with pytest.raises(UnknownNameError, match=r"a0\.h9"):
        pair_patching(model, examples, parts=["a0.h9", "m0"])
    with pytest.raises(SweepError, match="two or more"):
        pair_patching(model, examples, parts=["m0"])
    with pytest.raises(SweepError, match="two or more"):
        pair_patching(model, examples, parts=["m0", "m0"])
    with pytest.raises(EmptyDataError):
        pair_patching(model, Examples(()))
    with pytest.raises(MetricError):
        pair_patching(model, examples, metric="sequence_log_probability")


def test_a_wrong_pair_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pairs_module._Batch.run
    monkeypatch.setattr(pairs_module._Batch, "run", lambda self, some: original(self, some) + 0.5)
    model = code_model()
    with pytest.raises(SweepError, match="differs from a whole forward pass"):
        pair_patching(model, quote_closing(20).prepare(model))
