"""Circuits of latents and errors, against interventions one prompt at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.codecs import DenseSAE, SkipTranscoder, TopKSAE
from tests.small import code_model

from microtome.behaviors import Examples, quote_closing
from microtome.circuits import Circuit, LatentAblator, evaluate, find, latent_support
from microtome.circuits.judging.evaluation import curve
from microtome.circuits.judging.matching import matched
from microtome.circuits.judging.protocol import level_of
from microtome.circuits.references import Ablation, site_means
from microtome.core.seeds import rng
from microtome.errors import ConfigError, UnknownNameError
from microtome.sae import SAE, Architecture
from microtome.tracing.model import Model
from microtome.tracing.sites import at

LAST = "blocks.1.resid_post/sae"


def coded() -> Model:
    """An SAE behind each of two blocks and a transcoder over the first MLP."""
    model = code_model()
    model = model.attach(
        "tc", SkipTranscoder(32, 10, 32), at="blocks.0.mlp.in", to="blocks.0.mlp.out"
    )
    model = model.attach("sae", TopKSAE(32, 12, seed=1), at="blocks.0.resid_post")
    return model.attach("sae", DenseSAE(32, 12, seed=2), at="blocks.1.resid_post")


def some(model: Model, n: int = 4) -> Examples:
    return quote_closing(20).prepare(model)[:n]


def metric_of(logits: torch.Tensor, examples: Examples) -> np.ndarray:
    return np.array(
        [
            float(row[e.answers[0][0]] - row[e.wrongs[0][0]])
            for row, e in zip(logits, examples, strict=True)
        ]
    )


def slowly(
    model: Model, examples: Examples, kept: frozenset[str], ablation: Ablation
) -> np.ndarray:
    """The metric with all other parts ablated, one prompt and one intervention at a time."""
    ablator = LatentAblator(model, examples, ablation=ablation)
    sites = list(dict.fromkeys(str(at(p).whole()) for p in ablator.universe))
    means = site_means(model, examples, sites)
    found = []
    for number, example in enumerate(examples):
        other = model.trace([example.corrupt], capture=sites)
        changes = []
        for part in ablator.universe:
            if part in kept:
                continue
            site = at(part)
            if ablation == "resample":
                changes.append(site.patch(other))
            elif ablation == "zero":
                changes.append(site.zero())
            else:
                width = (1, len(example.clean)) + tuple(means[str(site.whole())].shape[2:])
                changes.append(site.patch(means[str(site.whole())].expand(width)))
        logits = model.trace([example.clean], interventions=changes).last()
        found.append(metric_of(logits, examples[number : number + 1])[0])
    return np.array(found)


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_circuits_equal_interventions_one_at_a_time(ablation: Ablation) -> None:
    model = coded()
    examples = some(model)
    ablator = LatentAblator(model, examples, ablation=ablation)
    assert len(ablator.universe) == 11 + 13 + 13
    random = rng(0, "circuits")
    circuits = [
        frozenset(p for p in ablator.universe if random.random() < share)
        for share in (0.2, 0.6, 0.9)
    ]
    circuits += [frozenset(ablator.universe), frozenset()]
    fast = ablator.run(circuits)["logit_difference"]
    for row, circuit in zip(fast, circuits, strict=True):
        np.testing.assert_allclose(
            row, slowly(model, examples, circuit, ablation), rtol=2e-4, atol=1e-4
        )
    plain = metric_of(model.trace(examples.clean).last(), examples)
    np.testing.assert_allclose(fast[3], plain, rtol=1e-5, atol=1e-5)


def test_everything_resampled_behind_the_last_block_is_the_corrupt_run() -> None:
    model = code_model().attach("sae", TopKSAE(32, 12), at="blocks.1.resid_post")
    examples = some(model)
    found = LatentAblator(model, examples).run([frozenset()])["logit_difference"][0]
    corrupt = metric_of(model.trace(examples.corrupt).last(), examples)
    np.testing.assert_allclose(found, corrupt, rtol=1e-4, atol=1e-4)


def test_a_codec_between_blocks_is_run_whole() -> None:
    model = code_model()
    model = model.attach("far", DenseSAE(32, 10), at="blocks.0.mlp.in", to="blocks.1.mlp.out")
    examples = some(model)
    ablator = LatentAblator(model, examples, ablation="zero")
    kept = frozenset(ablator.universe[:5])
    fast = ablator.run([kept])["logit_difference"][0]
    np.testing.assert_allclose(fast, slowly(model, examples, kept, "zero"), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_coders_of_several_sites_are_run_like_others(ablation: Ablation) -> None:
    sites = {"sources": (32, 32), "targets": (32, 32), "activation": "relu"}
    clt = SAE(Architecture(64, 20, reach="later", center=False, **sites), seed=1)  # type: ignore[arg-type]
    cross = SAE(Architecture(64, 12, **sites), seed=2)  # type: ignore[arg-type]
    model = code_model().attach("clt", clt, at="mlp.in", to="mlp.out")
    model = model.attach("cross", cross, at="resid_post")
    examples = some(model)
    ablator = LatentAblator(model, examples, ablation=ablation)
    # the error of the first stream lies before the crosscoder's latents and cannot be changed
    assert len(ablator.universe) == 20 + 2 + 12 + 1
    random = rng(0, "circuits")
    circuits = [
        frozenset(p for p in ablator.universe if random.random() < share) for share in (0.3, 0.8)
    ]
    fast = ablator.run(circuits)["logit_difference"]
    for row, circuit in zip(fast, circuits, strict=True):
        wanted = slowly(model, examples, circuit, ablation)
        np.testing.assert_allclose(row, wanted, rtol=2e-4, atol=1e-4)
    scores = latent_support(model, examples, ablation=ablation)
    assert scores.names == ablator.universe
    everything = frozenset(ablator.universe)
    ran = ablator.run([everything, *(everything - {p} for p in ablator.universe)])
    exact = (ran["logit_difference"][0] - ran["logit_difference"][1:]).mean(1)
    assert np.corrcoef(exact, scores.mean)[0, 1] > 0.6


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_parts_that_give_what_ablates_them_are_not_run(ablation: Ablation, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model = code_model().attach("sae", TopKSAE(32, 60, seed=1), at="blocks.0.resid_post")
    late = model.attach("late", TopKSAE(32, 60, seed=2), at="blocks.1.resid_post")
    for coded, latents in ((model, 60), (late, 120)):
        examples = some(coded)
        ablator = LatentAblator(coded, examples, ablation=ablation)
        ran: list[int] = []
        run_group = LatentAblator._run_group

        def counted(self, group, cuts, chosen, ran=ran, run_group=run_group):  # type: ignore[no-untyped-def]
            ran.append(len(cuts))
            return run_group(self, group, cuts, chosen)

        monkeypatch.setattr(LatentAblator, "_run_group", counted)
        everything = frozenset(ablator.universe)
        alone = [everything - {part} for part in ablator.universe]
        values = ablator.run([everything, *alone])["logit_difference"]
        monkeypatch.undo()
        groups = len(ablator._groups)
        # latents of a codec behind another one may wake up when that one is ablated
        assert sum(ran) / groups < latents - 10
        same = [n for n, row in enumerate(values[1:]) if (row == values[0]).all()]
        for n in [*same[:2], 3, len(alone) - 2]:
            by_hand = slowly(coded, examples, alone[n], ablation)
            np.testing.assert_allclose(values[1 + n], by_hand, rtol=2e-4, atol=1e-4)


def test_support_is_the_slope_and_ranks_like_exact_ablation() -> None:
    model = coded()
    examples = some(model, 6)
    scores = latent_support(model, examples)
    ablator = LatentAblator(model, examples)
    assert scores.names == ablator.universe
    one = examples[:1]
    right, wrong = one[0].answers[0][0], one[0].wrongs[0][0]
    total = np.zeros(12)
    pair = []
    for prompt in (one[0].clean, one[0].corrupt):
        pair.append(
            model.gradients(lambda lo, _: lo[:, -1, right] - lo[:, -1, wrong], LAST, [prompt])
        )
    moved = pair[0].value(LAST) - pair[1].value(LAST)
    total = (moved * (pair[0][LAST] + pair[1][LAST]) / 2).sum((0, 1)).numpy()
    start = scores.names.index(f"{LAST}[latent=0]")
    np.testing.assert_allclose(scores.values[0, start : start + 12], total, rtol=1e-3, atol=1e-5)
    everything = frozenset(ablator.universe)
    ran = ablator.run([everything, *(everything - {p} for p in ablator.universe)])
    exact = (ran["logit_difference"][0] - ran["logit_difference"][1:]).mean(1)
    assert np.corrcoef(exact, scores.mean)[0, 1] > 0.8
    finer = latent_support(model, examples, steps=4)
    assert "4 steps" in finer.method and finer.ranking()[0] in everything


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_support_under_other_ablations_is_the_slope_towards_them(ablation: Ablation) -> None:
    model = coded()
    examples = some(model, 3)
    scores = find(model, examples, level="latent", ablation=ablation)
    sites = [LAST, f"{LAST}.error"]
    means = site_means(model, examples, sites)
    for row, example in enumerate(examples):
        right, wrong = example.answers[0][0], example.wrongs[0][0]
        slopes = model.gradients(
            lambda lo, _, r=right, w=wrong: lo[:, -1, r] - lo[:, -1, w], sites, [example.clean]
        )
        for site in sites:
            to = means[site] if ablation == "mean" else 0.0
            effect = ((slopes.value(site) - to) * slopes[site]).sum((0, 1))
            wanted = effect if site == LAST else effect.sum(0, keepdim=True)
            names = [f"{LAST}[latent={n}]" for n in range(12)] if site == LAST else [site]
            found = scores.values[row, [scores.names.index(name) for name in names]]
            np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-4)
    assert "zero" in scores.meaning or "mean" in scores.meaning


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_exact_support_is_each_part_ablated_alone(ablation: Ablation) -> None:
    model = coded()
    examples = some(model, 3)
    scores = find(model, examples, method="exact", level="latent", ablation=ablation)
    ablator = LatentAblator(model, examples, ablation=ablation)
    everything = frozenset(ablator.universe)
    ran = ablator.run([everything, *(everything - {p} for p in ablator.universe)])
    wanted = ran["logit_difference"][0] - ran["logit_difference"][1:]
    np.testing.assert_allclose(scores.values, wanted.T, rtol=1e-3, atol=2e-4)
    assert level_of(scores) == level_of(scores.ranking()) == "latent"
    picture = Circuit((f"{LAST}[latent=3]", f"{LAST}.error"), scores.names, "", "latent").diagram()
    assert [node.label for node in picture.nodes] == ["sae 3", "sae error"]


def test_evaluation_curve_and_floor_of_latents() -> None:
    model = coded()
    examples = some(model, 6)
    ranking = latent_support(model, examples).ranking(signed=True)
    circuit = Circuit(ranking[:8], LatentAblator(model, examples).universe, "attribution", "latent")
    found = evaluate(model, examples, circuit)
    ran = LatentAblator(model, examples).run([circuit.kept])["logit_difference"][0]
    np.testing.assert_allclose(found.circuit, ran, atol=1e-5)
    grown = curve(model, examples, ranking, (0, 8, 37), level="latent")
    assert grown.total == 37
    assert grown.faithfulness[0].value == pytest.approx(0, abs=1e-6)
    assert grown.faithfulness[2].value == pytest.approx(1, abs=1e-4)
    drawn = matched(circuit, rng(0, "floor"))
    assert len(drawn) == 8

    def per_site(parts: frozenset[str]) -> list[str]:
        return sorted(p.partition("[")[0] for p in parts)

    assert per_site(drawn) == per_site(circuit.kept)
    assert list(circuit.to_frame().columns) == ["latent", "kept"]


def test_wrong_usage() -> None:
    model = coded()
    examples = some(model, 2)
    with pytest.raises(ConfigError, match="Nothing is attached"):
        LatentAblator(code_model(), examples)
    with pytest.raises(ConfigError, match="steps=0"):
        latent_support(model, examples, steps=0)
    with pytest.raises(ConfigError, match="steps=2 with ablation='zero'"):
        latent_support(model, examples, steps=2, ablation="zero")
    with pytest.raises(UnknownNameError, match="No node"):
        LatentAblator(model, examples).run([frozenset({f"{LAST}[latent=12]"})])
