"""Contextual decomposition and relevance rules against models written out; ensembles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.circuits.slow_edges import Slow, Writes, ablated_writes, tiny_gpt2, tiny_llama
from tests.circuits.test_edge_agreement import toy
from tests.small import code_model
from tests.sweeps.test_sweeps import pairs

from microtome.circuits import find
from microtome.circuits.edges.port_gradients import port_gradients
from microtome.circuits.edges.reading import Reading
from microtome.circuits.search import PATENT_NOTICE, stable_edges
from microtome.circuits.search.contextual import shared
from microtome.circuits.search.ensembles import Stable, mean_ranks
from microtome.circuits.search.objectives import objective
from microtome.circuits.search.relevance import rules
from microtome.errors import ConfigError, MetricError
from microtome.models.families import build
from microtome.tracing.opening import load


class Held(Slow):
    """A model written out whose norms and patterns can be held, and its activations' ratios."""

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if self.gpt2:
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt().detach()
        x = x * self.w[f"{name}.weight"]
        return x + self.w[f"{name}.bias"] if self.gpt2 else x

    def _head(self, layer: int, port: str, number: int, x: torch.Tensor) -> torch.Tensor:
        found = super()._head(layer, port, number, x)
        return found if port == "v" else found.detach()

    def _mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        if self.gpt2:
            name = f"transformer.h.{layer}"
            x = self._norm(x, f"{name}.ln_2")
            x = x @ self.w[f"{name}.mlp.c_fc.weight"] + self.w[f"{name}.mlp.c_fc.bias"]
            x = x * (torch.nn.functional.gelu(x, approximate="tanh") / x).detach()
            return x @ self.w[f"{name}.mlp.c_proj.weight"] + self.w[f"{name}.mlp.c_proj.bias"]
        name = f"model.layers.{layer}"
        x = self._norm(x, f"{name}.post_attention_layernorm")
        pre = x @ self.w[f"{name}.mlp.gate_proj.weight"].T
        gate = pre * (torch.nn.functional.silu(pre) / pre).detach()
        up = x @ self.w[f"{name}.mlp.up_proj.weight"].T
        halves = 0.5 * (gate * up.detach() + gate.detach() * up)
        return halves @ self.w[f"{name}.mlp.down_proj.weight"].T


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_relevance_is_that_of_the_model_written_out(make, capsys) -> None:  # type: ignore[no-untyped-def]
    module, examples = make(), pairs((6,))
    held, e = Held(module), examples[0]
    found = find(load(module), examples, method="relp")
    assert PATENT_NOTICE in capsys.readouterr().err and "patented" in PATENT_NOTICE
    clean: Writes = {}
    held.logits(e.clean, writes=clean)
    ablated = ablated_writes(
        held, {"clean": examples.clean, "corrupt": examples.corrupt}, 0, "resample"
    )
    for number, edge in list(enumerate(found.universe))[::5]:
        share = torch.zeros((), dtype=torch.float64, requires_grad=True)
        near = {n: clean[n] + share * (ablated[n] - clean[n]) for n in clean}
        logits = held.logits(e.clean, near, frozenset({edge}))
        metric = logits[e.answers[0][0]] - logits[e.wrongs[0][0]] + 0.0 * share
        (slope,) = torch.autograd.grad(metric, share)
        wanted = -float(slope)
        assert found.mean[number] == pytest.approx(wanted, rel=1e-3, abs=1e-4), edge


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma"])
def test_the_rules_leave_the_forward_pass_as_it_is(family: str) -> None:
    model, examples = load(build(family)), pairs((6, 7))
    reading = Reading.of(model)
    chosen = objective(model, examples, "logit_difference", "A test")
    plain = port_gradients(reading, chosen, examples)
    ruled = port_gradients(reading, chosen, examples, changes=rules(reading))
    torch.testing.assert_close(ruled.metric, plain.metric, rtol=1e-4, atol=1e-5)
    site = "blocks.0.resid_pre"
    assert float((ruled[site] - plain[site]).abs().max()) > 1e-4


def test_relevance_is_closer_to_exact_patching_where_values_move() -> None:
    model, examples = toy()
    exact = find(model, examples, method="exact-edges")
    into = [i for i, e in enumerate(exact.universe) if "<q>" not in e and "<k>" not in e]
    near = {m: np.corrcoef(find(model, examples, method=m).mean[into], exact.mean[into])[0, 1]
            for m in ("eap", "relp")}  # fmt: skip
    assert near["relp"] > near["eap"] and near["relp"] > 0.95
    queries = [i for i, e in enumerate(exact.universe) if "<q>" in e or "<k>" in e]
    assert (find(model, examples, method="relp").mean[queries] == 0).all()


class Carried(Slow):
    """Both parts of every activation carried through a model written out."""

    def parts(self, tokens: tuple[int, ...], node: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Relevant and irrelevant part of the logits at the end, for what a node writes."""
        writes: Writes = {}
        self.logits(tokens, writes=writes)
        one = torch.zeros_like(writes["embed"])
        two = writes["embed"]
        for layer in range(self.layers):
            name = f"transformer.h.{layer}" if self.gpt2 else f"model.layers.{layer}"
            norm = f"{name}.ln_1" if self.gpt2 else f"{name}.input_layernorm"
            first, second = self._both(one, two, norm)
            patterns = self._patterns(layer, one + two)
            for head in range(self.heads):
                a, b = (self._through(layer, head, patterns[head], p) for p in (first, second))
                if self.gpt2:
                    b = b + self._value_bias(layer, head)
                if f"a{layer}.h{head}" == node:
                    a, b = a + b, torch.zeros_like(b)
                one, two = one + a, two + b
            if self.gpt2:
                two = two + self.w[f"{name}.attn.c_proj.bias"]
            norm = f"{name}.ln_2" if self.gpt2 else f"{name}.post_attention_layernorm"
            first, second = self._both(one, two, norm)
            bias = self.w[f"{norm}.bias"] if self.gpt2 else torch.zeros_like(first[0])
            rest = second - bias
            f = lambda x, layer=layer: self._neurons(layer, x)  # noqa: E731
            a = (
                f(bias + first) - f(bias + 0 * first) + f(bias + first + rest) - f(bias + rest)
            ) / 2
            b = (f(bias + rest) - f(bias + 0 * rest) + f(bias + first + rest) - f(bias + first)) / 2
            b = b + f(bias + 0 * first)
            if f"m{layer}" == node:
                a, b = a + b, torch.zeros_like(b)
            one, two = one + a, two + b
        first, second = self._both(one, two, "transformer.ln_f" if self.gpt2 else "model.norm")
        return first[-1] @ self.w["lm_head.weight"].T, second[-1] @ self.w["lm_head.weight"].T

    def _both(self, one: torch.Tensor, two: torch.Tensor, name: str) -> tuple[torch.Tensor, ...]:
        whole = one + two
        if self.gpt2:
            whole, one = whole - whole.mean(-1, keepdim=True), one - one.mean(-1, keepdim=True)
        scale = (whole.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        first = one / scale * self.w[f"{name}.weight"]
        return first, self._norm_of(whole / scale, name) - first

    def _norm_of(self, x: torch.Tensor, name: str) -> torch.Tensor:
        x = x * self.w[f"{name}.weight"]
        return x + self.w[f"{name}.bias"] if self.gpt2 else x

    def _patterns(self, layer: int, stream: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for head in range(self.heads):
            group = head // (self.heads // self.groups)
            q, k = self._head(layer, "q", head, stream), self._head(layer, "k", group, stream)
            scores = q @ k.T / math.sqrt(self.size)
            future = torch.ones_like(scores).triu(1).bool()
            found.append(scores.masked_fill(future, -math.inf).softmax(-1))
        return found

    def _through(
        self, layer: int, head: int, pattern: torch.Tensor, x: torch.Tensor
    ) -> torch.Tensor:
        group = head // (self.heads // self.groups)
        value = slice(group * self.size, (group + 1) * self.size)
        out = slice(head * self.size, (head + 1) * self.size)
        if self.gpt2:
            name = f"transformer.h.{layer}.attn"
            width = 2 * self.heads * self.size
            v = x @ self.w[f"{name}.c_attn.weight"][:, width:][:, value]
            return pattern @ v @ self.w[f"{name}.c_proj.weight"][out]
        name = f"model.layers.{layer}.self_attn"
        v = x @ self.w[f"{name}.v_proj.weight"][value].T
        return pattern @ v @ self.w[f"{name}.o_proj.weight"][:, out].T

    def _value_bias(self, layer: int, head: int) -> torch.Tensor:
        name = f"transformer.h.{layer}.attn"
        span = slice(head * self.size, (head + 1) * self.size)
        bias = self.w[f"{name}.c_attn.bias"][2 * self.heads * self.size :][span]
        return bias @ self.w[f"{name}.c_proj.weight"][span]

    def _neurons(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        if self.gpt2:
            name = f"transformer.h.{layer}.mlp"
            x = x @ self.w[f"{name}.c_fc.weight"] + self.w[f"{name}.c_fc.bias"]
            x = torch.nn.functional.gelu(x, approximate="tanh")
            return x @ self.w[f"{name}.c_proj.weight"] + self.w[f"{name}.c_proj.bias"]
        name = f"model.layers.{layer}.mlp"
        gate = torch.nn.functional.silu(x @ self.w[f"{name}.gate_proj.weight"].T)
        up = x @ self.w[f"{name}.up_proj.weight"].T
        return (gate * up) @ self.w[f"{name}.down_proj.weight"].T


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_both_parts_add_up_and_the_relevant_one_is_the_score(make) -> None:  # type: ignore[no-untyped-def]
    module, examples = make(), pairs((6, 7))
    slow = Carried(module)
    found = find(load(module), examples, method="contextual-decomposition")
    for row, e in enumerate(examples):
        whole = slow.logits(e.clean)
        for number, name in enumerate(found.names):
            one, two = slow.parts(e.clean, name)
            torch.testing.assert_close(one + two, whole, rtol=1e-9, atol=1e-9)
            wanted = float(one[e.answers[0][0]] - one[e.wrongs[0][0]])
            assert found.values[row, number] == pytest.approx(wanted, rel=1e-3, abs=1e-3), name


def test_a_part_and_the_rest_share_a_function_exactly() -> None:
    base, one, two = (torch.linspace(a, a + 1, 5, dtype=torch.float64) for a in (0.1, -1.0, 0.3))
    whole = base + one + two
    halves = [shared(torch.tanh, base, part, whole) for part in (one, two)]
    torch.testing.assert_close(sum(halves), torch.tanh(whole) - torch.tanh(base))
    torch.testing.assert_close(shared(lambda x: 3 * x, base, one, whole), 3 * one)


@pytest.mark.parametrize("family", ["gpt_neox", "qwen3"])
def test_last_parts_are_relevant_as_they_are_written(family: str) -> None:
    """Nothing comes behind the last MLP, so its relevance is its direct contribution."""
    from microtome.attribution import direct_logit_attribution

    model, examples = load(build(family)), pairs((6, 7))
    found = find(model, examples, method="contextual-decomposition")
    direct = direct_logit_attribution(model, examples)
    np.testing.assert_allclose(found.values[:, -1], direct.mlps[:, -1], rtol=1e-3, atol=1e-4)
    if family == "gpt_neox":  # its blocks are parallel: the last heads feed the logits alone
        heads = direct.heads[:, -1]
        last = found.values[:, -1 - heads.shape[1] : -1]
        np.testing.assert_allclose(last, heads, rtol=1e-3, atol=1e-4)


def test_relevance_beyond_the_corrupt_run_agrees_with_exact_patching() -> None:
    model, examples = toy()
    exact = find(model, examples, method="exact")
    found = find(model, examples, method="contextual-decomposition", ablation="resample")
    assert found.names == exact.names
    assert np.corrcoef(found.mean, exact.mean)[0, 1] > 0.95
    with pytest.raises(MetricError, match="linear in the logits"):
        find(model, examples, method="contextual-decomposition", metric="loss")


def test_ranks_by_hand() -> None:
    found = mean_ranks(np.array([[3.0, 1.0, 2.0, 2.0], [10.0, 40.0, 30.0, 20.0]]))
    np.testing.assert_allclose(found, np.array([4 + 1, 1 + 4, 2.5 + 3, 2.5 + 2]) / 2 / 4)


def test_an_ensemble_averages_ranks() -> None:
    model, examples = load(tiny_gpt2()), pairs((6, 6))
    methods = ("eap", "mask-ig")
    found = find(model, examples, method="rank-ensemble", methods=methods)
    single = np.stack([find(model, examples, method=m).strength() for m in methods])
    np.testing.assert_allclose(found.mean, mean_ranks(single))
    with pytest.raises(ConfigError, match="at least two"):
        find(model, examples, method="rank-ensemble", methods=("eap",))


def test_stable_edges_are_those_that_every_cluster_supports(tmp_path) -> None:  # type: ignore[no-untyped-def]
    scores = find(code_model(), pairs((6, 6)), method="eap")
    count = len(scores.universe)
    sums = np.zeros((10, count))
    sums[:, 0] = 5.0  # in every cluster
    sums[0, 1] = 60.0  # in one of ten: drawn in 1 - 0.9 ** 10 = 65 % of the resamples
    sums[:, 2:] = 1.0 - np.arange(count - 2) / count
    given = replace(
        scores, mean=sums.mean(0), clusters=tuple("abcdefghij"), cluster_sizes=np.ones(10),
        cluster_sums=sums, n=10,
    )  # fmt: skip
    found = stable_edges(given, edges=2, resamples=2000)
    assert found.share[0] == 1.0 and found.share.sum() == pytest.approx(2.0)
    assert found.share[1] == pytest.approx(1 - 0.9**10, abs=0.04)
    assert found.circuit().parts == (scores.universe[0],)
    assert set(given.select(edges=2).parts) == set(scores.universe[:2])
    again = Stable.load(found.save(tmp_path / "stable.json"))
    np.testing.assert_array_equal(again.share, stable_edges(given, edges=2, resamples=2000).share)
    assert list(found.to_frame()["edge"][:1]) == [scores.universe[0]]
    both = stable_edges([given, given], edges=2)
    np.testing.assert_array_equal(both.share, stable_edges(given, edges=2).share)
    for wrong in ({"edges": 0}, {"edges": 2, "least": 0.0}, {"edges": 2, "resamples": 0}):
        with pytest.raises(ConfigError, match="expected 1 to"):
            stable_edges(given, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no scores by cluster"):
        stable_edges(replace(given, cluster_sums=None), edges=2)
    with pytest.raises(ConfigError, match="same edges and clusters"):
        stable_edges([given, replace(given, clusters=tuple("klmnopqrst"))], edges=2)
