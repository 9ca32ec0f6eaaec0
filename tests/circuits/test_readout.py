"""Models that answer at their first position, with labels: every method reads there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.small import classifier

from microtome import behaviors, sweeps
from microtome.attribution import direct_logit_attribution, input_attribution, support_at_both_ends
from microtome.behaviors.examples import Examples
from microtome.circuits import Ablator, EdgeAblator, find
from microtome.errors import EmptyDataError, MetricError, ModelSupportError
from microtome.models.readout import Readout
from microtome.sweeps.pairs import pair_patching
from microtome.tracing.model import Model
from microtome.tracing.sites import at


@pytest.fixture(scope="module")
def model() -> Model:
    return classifier()


@pytest.fixture(scope="module")
def examples(model: Model) -> Examples:
    return behaviors.bracket_balance(20, end=" [end]").prepare(model).split("train")


def by_hand(model: Model, examples: Examples, side: str) -> np.ndarray:
    """Logit difference at the first position, each prompt run alone by the module itself."""
    found = []
    for example in examples:
        tokens = torch.tensor([getattr(example, side)])
        with torch.no_grad():
            logits = model.module(tokens).logits[0, 0]
        found.append(float(logits[example.answers[0][0]] - logits[example.wrongs[0][0]]))
    return np.array(found)


def test_answers_are_labels(model: Model, examples: Examples) -> None:
    assert {e.answers[0][0] for e in examples} == {0, 1}
    for example in examples:
        assert example.answers[0][0] == int(example.features["balanced"])
        assert len(example.answers[0]) == 1 and example.clean[0] == 0 and example.clean[-1] == 2
    other = behaviors.pair("( )", ") (", answer="yes", wrong="no")
    with pytest.raises(EmptyDataError, match="no label of the model"):
        other.prepare(model)


def test_scores_are_read_at_the_first_position(model: Model, examples: Examples) -> None:
    clean, corrupt = (by_hand(model, examples, side) for side in ("clean", "corrupt"))
    assert np.abs(clean - corrupt).min() > 1e-3
    for side, wanted in (("clean", clean), ("corrupt", corrupt)):
        found = behaviors.score(model, examples, side=side).values  # type: ignore[arg-type]
        assert found == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(MetricError, match="first position"):
        behaviors.score(model, examples, metric="sequence_log_probability")


@pytest.mark.parametrize("kind", [Ablator, EdgeAblator])
def test_circuits_lie_between_both_runs(model: Model, examples: Examples, kind: type) -> None:
    runner = kind(model, examples)
    full, empty = runner.run([frozenset(runner.universe), frozenset()])["logit_difference"]
    assert full == pytest.approx(by_hand(model, examples, "clean"), abs=1e-4)
    if kind is EdgeAblator:
        assert empty == pytest.approx(by_hand(model, examples, "corrupt"), abs=1e-4)


def test_only_the_first_position_reaches_the_logits(model: Model, examples: Examples) -> None:
    """Exact patching of that edge moves the stream that the unembedding reads, there alone."""
    edge = "m1->logits"
    exact = find(model, examples, method="exact-edges")
    with torch.no_grad():
        wanted = []
        for e in examples:
            both = model.trace([e.clean, e.corrupt], capture=["mlp.out", "blocks.1.resid_post"])
            moved = both["blocks.1.resid_post"][:1].clone()
            moved += both["blocks.1.mlp.out"][1:] - both["blocks.1.mlp.out"][:1]
            logits = model.tail(torch.cat([both["blocks.1.resid_post"][:1], moved]),
                                torch.zeros(2, 1, dtype=torch.long))[:, 0]  # fmt: skip
            difference = logits[:, e.answers[0][0]] - logits[:, e.wrongs[0][0]]
            wanted.append(float(difference[0] - difference[1]))
    place = exact.universe.index(edge)
    assert float(exact.strength(signed=True)[place]) == pytest.approx(np.mean(wanted), abs=1e-4)
    flow = find(model, examples, method="information-flow")
    into = [n for n, name in enumerate(flow.universe) if name.endswith("->logits")]
    assert float(np.abs(flow.strength()[into]).sum()) == pytest.approx(1.0, abs=1e-4)


def test_attribution_reads_there(model: Model, examples: Examples) -> None:
    clean = by_hand(model, examples, "clean")
    direct = direct_logit_attribution(model, examples)
    parts = direct.heads.sum((1, 2)) + direct.mlps.sum(1)
    parts = (
        parts + direct.embedding + direct.biases.reshape(len(examples), -1).sum(1) + direct.constant
    )
    assert parts == pytest.approx(clean, abs=1e-3)
    contextual = find(model, examples, method="contextual-decomposition")
    assert np.isfinite(contextual.values).all() and np.abs(contextual.values).max() > 1e-3
    # near the patched value the gradient sees what exact patching sees; far from it, the sign
    support = support_at_both_ends(model, examples).mean(0)
    ablated = find(model, examples, method="exact").values.mean(0)
    assert np.corrcoef(support, ablated)[0, 1] > 0.5
    inputs = input_attribution(model, examples, steps=20)
    assert float(np.max(np.abs(inputs.completeness_error))) < 1e-3


def test_sweeps_read_there(model: Model, examples: Examples) -> None:
    length = len(examples[0].clean)
    same = examples.take([n for n, e in enumerate(examples) if len(e.clean) == length])
    clean, corrupt = (by_hand(model, same, side) for side in ("clean", "corrupt"))
    swept = sweeps.sweep(model, same, "resid_pre", base="clean")
    assert swept.base == pytest.approx(clean, abs=1e-4)
    assert swept.source == pytest.approx(corrupt, abs=1e-4)
    place = length - 2
    for number, example in enumerate(same):
        there = model.trace([example.corrupt], capture="blocks.1.resid_pre")["blocks.1.resid_pre"]
        change = at(f"blocks.1.resid_pre[pos={place}]").patch(there)
        logits = model.trace([example.clean], interventions=[change]).logits
        assert logits is not None
        wanted = logits[0, 0, example.answers[0][0]] - logits[0, 0, example.wrongs[0][0]]
        assert swept.values[number, 1, place] == pytest.approx(float(wanted), abs=1e-4)
    paths = sweeps.path_patching(model, examples, "logits", senders=["a0.h0"])
    assert paths.base == pytest.approx(by_hand(model, examples, "clean"), abs=1e-4)
    assert paths.source == pytest.approx(by_hand(model, examples, "corrupt"), abs=1e-4)
    pairs = pair_patching(model, examples, parts=["a0.h0", "m1"])
    assert pairs.base == pytest.approx(by_hand(model, examples, "clean"), abs=1e-4)


def test_a_causal_model_cannot_answer_at_its_first_position() -> None:
    from microtome.models.families import build
    from microtome.tracing.opening import load

    with pytest.raises(ModelSupportError, match="first position"):
        load(build("gpt2"), readout=Readout("first"))
