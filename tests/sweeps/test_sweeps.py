"""Every rule against one forward pass for each run, and what certification catches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import code_model

from microtome.behaviors import Example, Examples, pair, quote_closing
from microtome.errors import ConfigError, MetricError, PairError, SweepError
from microtome.models.families import build
from microtome.sweeps import Sweep, packed, plan, sweep
from microtome.sweeps.rules import RULES, SIMPLER, Rule
from microtome.tracing import replay
from microtome.tracing.model import Model
from microtome.tracing.opening import load


def pairs(lengths: tuple[int, ...] = (6, 6, 6)) -> Examples:
    rows = []
    for i, n in enumerate(lengths):
        clean = tuple(5 + (i + j) % 40 for j in range(n))
        corrupt = (clean[0], 60, *clean[2:])
        rows.append(
            Example(
                i,
                clean,
                corrupt,
                ((11,),),
                ((12,),),
                f"c{i}",
                "t",
                "test",
                {"cue": (1, 2), "end": (n - 1, n)},
                {},
                "",
            )
        )
    return Examples(tuple(rows))


@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "gpt_neox", "olmo2", "gemma2", "bloom-plain", "mixtral", "bert"]
)
@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn.z", "mlp.out", "attn.out"])
@pytest.mark.parametrize("operation", ["patch", "zero"])
def test_rules_equal_the_naive_way(family: str, site: str, operation: str) -> None:
    model = load(build(family))
    fast = sweep(model, pairs(), site, operation=operation)  # type: ignore[arg-type]
    slow = sweep(model, pairs(), site, operation=operation, rules=())  # type: ignore[arg-type]
    scale = max(1.0, float(np.abs(slow.values).max()))
    assert float(np.abs(fast.values - slow.values).max()) < 2e-5 * scale
    assert fast.certificate["passed"], fast.certificate


def test_roles_and_unequal_lengths() -> None:
    model = load(build("llama"))
    examples = pairs((6, 9, 6))
    fast, slow = (sweep(model, examples, over="role", rules=r) for r in (None, ()))
    np.testing.assert_allclose(fast.values, slow.values, atol=2e-5)
    with pytest.raises(PairError, match="6 to 9 tokens"):
        plan(model, examples)


def test_patching_the_only_difference_gives_the_source() -> None:
    model = load(build("gpt2"))
    found = sweep(model, pairs(), base="corrupt")
    np.testing.assert_allclose(found.values.sel(layer=0, pos=1), found.source, atol=1e-5)
    np.testing.assert_allclose(found.values.sel(layer=0, pos=3), found.base, atol=1e-5)
    assert found.interval(layer=0, pos=1).value == pytest.approx(1.0, abs=1e-4)


def test_a_broken_replay_is_caught_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(build("gpt2"))
    right = sweep(model, pairs())
    honest = replay._run_block
    monkeypatch.setattr(replay, "_run_block", lambda *a, **k: honest(*a, **k) * 1.01)
    found = sweep(model, pairs(), rules=[r for r in RULES if r != "fast"])
    tried = [tuple(step["rules"]) for step in found.certificate["fell_back_from"]]
    assert tried == [SIMPLER[0], SIMPLER[1]]
    assert found.certificate["passed"] and found.certificate["rules"] == ["batch"]
    np.testing.assert_allclose(found.values, right.values, atol=2e-5)


def test_a_broken_fast_path_is_caught_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(build("llama"))
    right = sweep(model, pairs(), rules=())
    planned = plan(model, pairs())
    honest = packed.run_block
    monkeypatch.setattr(packed, "run_block", lambda *a, **k: honest(*a, **k) * 1.01)
    found = planned.execute()
    assert "fast" in found.certificate["fell_back_from"][0]["rules"]
    assert found.certificate["passed"] and found.certificate["rules"] == list(SIMPLER[0])
    np.testing.assert_allclose(found.values, right.values, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "rule", "reason"),
    [
        ("bert", "restart", "final norm"),
        ("gpt_neox", "fast", "attention followed by an MLP"),
        ("mistral", "fast", ""),
        ("gemma2", "narrow", "soft-capped"),
        ("jamba", "suffix", "do not work with kept keys"),
        ("gemma4_text", "restart", "share a dictionary, shared_kv_states"),
    ],
)
def test_a_rule_that_does_not_apply_is_named(family: str, rule: Rule, reason: str) -> None:
    planned = plan(load(build(family)), pairs((9, 9)))
    if not reason:
        assert rule in planned.rules
        return
    assert rule not in planned.rules and reason in planned.declined[rule]
    assert f"not used: {rule}" in planned.explain()
    found, slow = planned.execute(), sweep(planned.model, pairs((9, 9)), rules=())
    np.testing.assert_allclose(found.values, slow.values, atol=2e-5)


def test_cost_counts_runs() -> None:
    planned = plan(load(build("gpt2")), pairs())
    cost = planned.cost()
    assert cost.runs == len(planned.cells) * 3
    assert cost.forwards < cost.naive_forwards == cost.runs
    assert cost.flops > 0 and cost.seconds > 0


def test_neurons_and_saving(tmp_path: Path) -> None:
    model = load(build("llama"))
    found = sweep(model, pairs(), "blocks.1.mlp.act", neurons=[3, 7], operation="zero")
    assert found.values.shape == (3, 1, 2)
    loaded = Sweep.load(found.save(tmp_path / "sweep.json"))
    np.testing.assert_array_equal(loaded.values, found.values)


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(build("gpt2"))
    with pytest.raises(SweepError, match="cannot be swept"):
        plan(model, pairs(), "attn.scores")
    with pytest.raises(ConfigError, match="Unknown rule 'wavefrnt'.*wavefront"):
        plan(model, pairs(), rules=("wavefrnt",))  # type: ignore[arg-type]
    with pytest.raises(SweepError, match="too small"):
        plan(model, pairs(), memory_mb=1e-6)
    with pytest.raises(MetricError, match="compares with the unchanged run"):
        plan(model, pairs(), metric="kl_to_unchanged")
    with pytest.raises(SweepError, match="neurons="):
        plan(model, pairs(), "mlp.act")


def test_bfloat16_is_certified_by_its_own_spread() -> None:
    model = load(build("llama"), dtype="bfloat16")
    found = sweep(model, pairs())
    assert model.dtype == torch.bfloat16
    assert found.certificate["tolerance"] >= 0


def test_girl_to_boy_in_a_trained_model(shared_data: Path) -> None:
    """The published shares of the She-He difference that move after blocks 0 to 3."""
    model = load(shared_data / "models/stories260K")
    moved = np.mean(
        [_moved(model, name) for name in ["Zog", "Rab", "Kip", "Mun", "Pel", "Dov", "Sam", "Max"]],
        0,
    )
    np.testing.assert_allclose(100 * moved, [99.7, 96.6, 80.8, 77.4], atol=0.06)


def _moved(model: Model, name: str) -> list[float]:
    text = "Once upon a time, there was a little {} named " + name + "."
    behavior = pair(text.format("girl"), text.format("boy"), answer=" She", wrong=" He")
    example = behavior.prepare(model)[0]
    places = [
        i for i, (a, b) in enumerate(zip(example.clean, example.corrupt, strict=True)) if a != b
    ]
    one = Examples(
        (
            Example(
                0,
                example.clean,
                example.corrupt,
                example.answers,
                example.wrongs,
                "c",
                "t",
                "test",
                {"person": (places[0], places[-1] + 1)},
                {},
                "",
            ),
        )
    )
    found = sweep(model, one, "resid_post", over="role", base="clean")
    return [float(v) for v in found.effect.sel(role="person")[:4]]


def test_sweeping_a_generated_behavior() -> None:
    model = code_model()
    found = sweep(model, quote_closing(40).prepare(model).split("train"), over="role")
    assert list(found.values["role"].to_numpy()) == ["opening quote", "string", "end"]
    assert float(found.effect.sel(layer=0, role="opening quote")) == pytest.approx(1.0, abs=1e-4)
