"""Attribution graphs of latents, against dense linear algebra by hand and the frozen model."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from tests.codecs import DenseSAE, SkipTranscoder, Squares
from tests.small import code_model

from microtome.circuits import LatentGraph, exchange, latent_graph
from microtome.circuits.latent_graphs.frozen import FrozenModel
from microtome.circuits.latent_graphs.influence import influences, shares, smallest_set
from microtome.circuits.latent_graphs.results import KINDS
from microtome.errors import ConfigError, FormatError, ModelSupportError, UnknownNameError
from microtome.models.families import build
from microtome.sae import SAE, Architecture
from microtome.tracing.model import Model
from microtome.tracing.opening import load

PROMPT = "x = 'abc"


@cache
def coded() -> Model:
    """Transcoders, with a skip connection, over both MLPs of a small GPT-2."""
    model = code_model()
    for block in range(2):
        model = model.attach(
            "tc",
            SkipTranscoder(32, 24, 32, seed=block),
            at=f"blocks.{block}.mlp.in",
            to=f"blocks.{block}.mlp.out",
        )
    return model


@cache
def whole() -> LatentGraph:
    return latent_graph(coded(), PROMPT, name="tc", max_logits=4)


@cache
def cross_layer() -> Model:
    """A cross-layer transcoder with random weights over both MLPs of a small GPT-2."""
    sites = {"sources": (32, 32), "targets": (32, 32), "activation": "relu"}
    make = Architecture(64, 48, reach="later", center=False, **sites)  # type: ignore[arg-type]
    coder = SAE(make, seed=3)
    with torch.no_grad():
        for name in ("b_enc", "b_dec"):
            coder.weights[name] += 0.1 * torch.linspace(-2, 1, len(coder.weights[name]))
    return code_model().attach("clt", coder, at="mlp.in", to="mlp.out")


@cache
def across() -> LatentGraph:
    return latent_graph(cross_layer(), PROMPT, name="clt", max_logits=4)


class ByHand:
    """GPT-2 with frozen patterns and norms as plain float64 matrices, one prompt."""

    def __init__(self, model: Model, prompt: str) -> None:
        self.model, self.gpt = model, model.module.transformer
        sites = ["blocks.0.resid_pre", "final.norm"]
        for n in range(2):
            sites += [f"blocks.{n}.{s}" for s in ("attn.pattern", "mlp.in", "mlp.out")]
            sites += [f"blocks.{n}.resid_pre", f"blocks.{n}.resid_mid"]
        trace = model.trace([prompt], capture=[*sites, "blocks.1.resid_post"])
        self.at = {s: trace[s][0].detach().double() for s in trace.sites}
        self.codecs = [one.codec for one in model.codecs]
        self.latents = [
            c.encode(self.at[f"blocks.{n}.mlp.in"].float()).detach().double()
            for n, c in enumerate(self.codecs)
        ]
        self.errors = [
            self.at[f"blocks.{n}.mlp.out"] - self.made(n, f, self.at[f"blocks.{n}.mlp.in"])
            for n, f in enumerate(self.latents)
        ]

    def made(self, n: int, latents: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        codec = self.codecs[n]
        return (
            latents @ codec.w_dec.detach().double()
            + codec.b_dec.detach().double()
            + read @ codec.w_skip.detach().double()
        )

    def norm(self, module: torch.nn.Module, x: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        scale = (whole.var(-1, unbiased=False, keepdim=True) + module.eps).sqrt()
        weight, bias = (p.detach().double() for p in (module.weight, module.bias))
        return (x - x.mean(-1, keepdim=True)) / scale * weight + bias

    def attention(self, n: int, x: torch.Tensor) -> torch.Tensor:
        part = self.gpt.h[n].attn
        weight, bias = part.c_attn.weight.detach().double(), part.c_attn.bias.detach().double()
        value = (x @ weight + bias)[:, 64:].reshape(-1, 4, 8)
        mixed = torch.einsum("hqk,khd->qhd", self.at[f"blocks.{n}.attn.pattern"], value)
        out = part.c_proj
        return mixed.reshape(-1, 32) @ out.weight.detach().double() + out.bias.detach().double()

    def __call__(self, embedding, latents, errors):  # type: ignore[no-untyped-def]
        """Return what each transcoder and the unembedding read."""
        x, read = embedding, []
        for n in range(2):
            block = self.gpt.h[n]
            x = x + self.attention(n, self.norm(block.ln_1, x, self.at[f"blocks.{n}.resid_pre"]))
            read.append(self.norm(block.ln_2, x, self.at[f"blocks.{n}.resid_mid"]))
            x = x + self.made(n, latents[n], read[-1]) + errors[n]
        return read, self.norm(self.gpt.ln_f, x, self.at["blocks.1.resid_post"])

    def values(self, embedding, latents, errors, graph: LatentGraph) -> np.ndarray:  # type: ignore[no-untyped-def]
        """Return the value of each target of a graph."""
        read, final = self(embedding, latents, errors)
        pre = [
            r @ c.w_enc.detach().double() + c.b_enc.detach().double()
            for r, c in zip(read, self.codecs, strict=True)
        ]
        logits = final[-1] @ self.model.module.lm_head.weight.detach().double().T
        found = []
        for n in graph.targets:
            number = int(graph.numbers[n])
            if graph.blocks[n] == 2:
                found.append(logits[number] - logits.mean())
            else:
                found.append(pre[graph.blocks[n]][graph.positions[n], number])
        return torch.stack(found).numpy()

    def only(self, graph: LatentGraph, node: int | None):  # type: ignore[no-untyped-def]
        """Return the sources with one node alone, or none."""
        embedding = torch.zeros_like(self.at["blocks.0.resid_pre"])
        latents = [torch.zeros_like(f) for f in self.latents]
        errors = [torch.zeros_like(e) for e in self.errors]
        if node is not None:
            block, place = int(graph.blocks[node]), int(graph.positions[node])
            kind = KINDS[graph.kinds[node]]
            if kind == "embedding":
                embedding[place] = self.at["blocks.0.resid_pre"][place]
            elif kind == "error":
                errors[block][place] = self.errors[block][place]
            else:
                number = int(graph.numbers[node])
                latents[block][place, number] = self.latents[block][place, number]
        return embedding, latents, errors


class AcrossByHand(ByHand):
    """The same with a cross-layer transcoder: an MLP is what latents of all blocks so far give."""

    def __init__(self, model: Model, prompt: str) -> None:
        self.coder = model.attached("clt")
        w = [{n: p.detach().double() for n, p in one.codec.weights.items()} for one in self.coder]  # type: ignore[attr-defined]
        self.weights = w
        first = w[0]["W_dec"]
        self.decoders = {(0, 0): first[:, :32], (0, 1): first[:, 32:], (1, 1): w[1]["W_dec"]}
        super().__init__(model, prompt)
        self.errors = [
            self.at[f"blocks.{n}.mlp.out"] - self.standing(n, self.latents) for n in range(2)
        ]

    def made(self, n: int, latents: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(read)

    def standing(self, n: int, latents: list[torch.Tensor]) -> torch.Tensor:
        bias = self.weights[n]["b_dec"][:32]
        return bias + sum(latents[m] @ self.decoders[m, n] for m in range(n + 1))

    def __call__(self, embedding, latents, errors):  # type: ignore[no-untyped-def]
        given = [self.standing(n, latents) + errors[n] for n in range(2)]
        return super().__call__(embedding, latents, given)

    def values(self, embedding, latents, errors, graph: LatentGraph) -> np.ndarray:  # type: ignore[no-untyped-def]
        read, final = self(embedding, latents, errors)
        logits = final[-1] @ self.model.module.lm_head.weight.detach().double().T
        found = []
        for n in graph.targets:
            block, number = int(graph.blocks[n]), int(graph.numbers[n])
            if block == 2:
                found.append(logits[number] - logits.mean())
            else:
                w = self.weights[block]
                row = read[block][graph.positions[n]]
                found.append(row @ w["W_enc"][number] + w["b_enc"][number])
        return torch.stack(found).numpy()


def test_every_edge_of_a_cross_layer_transcoder_equals_dense_linear_algebra() -> None:
    graph, hand = across(), AcrossByHand(cross_layer(), PROMPT)
    none = hand.values(*hand.only(graph, None), graph)
    np.testing.assert_allclose(graph.bias, none, atol=1e-4)
    sources = [n for n in range(len(graph)) if KINDS[graph.kinds[n]] != "logit"]
    assert len(sources) > 60
    for node in sources:
        alone = hand.values(*hand.only(graph, node), graph) - none
        np.testing.assert_allclose(graph.effects[:, node], alone, atol=1e-4)
    np.testing.assert_allclose(
        graph.effects.sum(1) + graph.bias, graph.activations[graph.targets], atol=1e-4
    )
    assert graph.unsummed < 1e-5
    # a latent of block 0 acts on the logits through both MLPs: more than through its own alone
    last = graph.positions == graph.positions.max()
    latents = np.flatnonzero(graph.of_kind("latent") & (graph.blocks == 0) & last)
    rows = np.flatnonzero(graph.of_kind("logit")[graph.targets])
    hand.decoders[0, 1] = torch.zeros_like(hand.decoders[0, 1])
    own = hand.values(*hand.only(graph, int(latents[0])), graph) - hand.values(
        *hand.only(graph, None), graph
    )
    assert not np.allclose(own[rows], graph.effects[rows, latents[0]], atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_cross_layer_graphs_of_other_families_add_up(family: str) -> None:
    model = load(build(family))
    assert model.anatomy is not None
    width, layers = model.anatomy.d_model, model.anatomy.n_layers
    make = Architecture(
        width * layers, 10 * layers, activation="batchtopk", k=4 * layers, reach="later",
        sources=(width,) * layers, targets=(width,) * layers, center=False, skip=True,
    )  # fmt: skip
    coder = SAE(make)
    with torch.no_grad():
        for n, part in enumerate(make.source_slices):  # each source has a way past to later targets
            coder.weights["W_skip"][part.start :, part] = 0.05 * (n + 1)
    model = model.attach("clt", coder, at="mlp.in", to="mlp.out")
    graph = latent_graph(model, [1, 2, 3, 4], name="clt", max_logits=2)
    assert graph.unsummed < 1e-4
    assert graph.followed > 0
    assert 0 < graph.replacement < 1


def test_every_edge_equals_dense_linear_algebra() -> None:
    graph, hand = whole(), ByHand(coded(), PROMPT)
    none = hand.values(*hand.only(graph, None), graph)
    np.testing.assert_allclose(graph.bias, none, atol=1e-4)
    sources = [n for n in range(len(graph)) if KINDS[graph.kinds[n]] != "logit"]
    assert len(sources) > 60
    for node in sources:
        alone = hand.values(*hand.only(graph, node), graph) - none
        np.testing.assert_allclose(graph.effects[:, node], alone, atol=1e-4)
    assert not graph.effects[:, graph.of_kind("logit")].any()


def test_effects_and_bias_add_up_to_pre_activations_and_logits() -> None:
    graph, model = whole(), coded()
    sums = graph.effects.sum(1) + graph.bias
    trace = model.trace([PROMPT], capture=["mlp.in", "mlp.in/tc"])
    logits = trace.last()[0]
    for row, node in enumerate(graph.targets):
        block, place, number = graph.blocks[node], graph.positions[node], int(graph.numbers[node])
        if block == 2:
            wanted = float(logits[number] - logits.mean())
            assert graph.activations[node] == pytest.approx(wanted, abs=1e-4)
        else:
            codec = model.codecs[block].codec
            read = trace[f"blocks.{block}.mlp.in"][0, place]
            wanted = float((read @ codec.w_enc[:, number] + codec.b_enc[number]).detach())
            stands = float(trace[f"blocks.{block}.mlp.in/tc"][0, place, number])
            assert graph.activations[node] == pytest.approx(stands, abs=1e-5)
        assert sums[row] == pytest.approx(wanted, abs=2e-4)
    assert graph.unsummed < 1e-5
    assert graph.followed > 10


def test_edges_are_finite_differences_of_the_frozen_model() -> None:
    graph, model = whole(), coded()
    frozen = FrozenModel.of(model, PROMPT, "tc")
    embedding = frozen.embedding.unsqueeze(0)
    added = {b: frozen.written(b).unsqueeze(0) for b in frozen.writers}
    plain = frozen.run(embedding, added)
    torch.testing.assert_close(plain.inputs[1].detach(), frozen.recorded(1), rtol=1e-4, atol=1e-4)
    node = next(
        int(n) for n in graph.targets if graph.blocks[n] == 0 and graph.of_kind("latent")[n]
    )
    place, number = int(graph.positions[node]), int(graph.numbers[node])
    moved = {b: value.clone() for b, value in added.items()}
    step = 0.5 * float(graph.activations[node])
    moved[0][0, place] += step * model.codecs[0].codec.w_dec[number].detach()
    other = frozen.run(embedding, moved)
    followed = [row for row, n in enumerate(graph.targets) if graph.blocks[n] == 1]
    assert followed
    for row in followed:
        target = int(graph.targets[row])
        column = model.codecs[1].codec.w_enc[:, int(graph.numbers[target])]
        change = (other.inputs[1] - plain.inputs[1])[0, int(graph.positions[target])] @ column
        assert graph.effects[row, node] == pytest.approx(float(change.detach()) / 0.5, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_other_families_add_up(family: str) -> None:
    model = load(build(family))
    assert model.anatomy is not None
    width = model.anatomy.d_model
    for block in range(model.anatomy.n_layers):
        model = model.attach(
            "tc",
            DenseSAE(width, 12, seed=block),
            at=f"blocks.{block}.mlp.in",
            to=f"blocks.{block}.mlp.out",
        )
    graph = latent_graph(model, [1, 2, 3, 4], name="tc", max_logits=2)
    assert graph.unsummed < 1e-4
    assert graph.followed > 0
    assert 0 < graph.replacement < 1


def test_influence_is_the_inverse_and_scores_follow_it() -> None:
    graph = whole()
    size = len(graph)
    matrix = np.zeros((size, size))
    matrix[graph.targets] = shares(graph.effects)
    # batches of followed latents leave none with influence out
    weights = graph.probabilities.astype(np.float64)
    inverse = np.linalg.inv(np.eye(size) - matrix) - np.eye(size)
    wanted = weights @ inverse
    np.testing.assert_allclose(graph.influence, wanted, atol=1e-9)
    loose = graph.of_kind("latent") & ~np.isin(np.arange(size), graph.targets)
    assert not wanted[loose].any()
    tokens, errors = wanted[graph.of_kind("embedding")].sum(), wanted[graph.of_kind("error")].sum()
    assert graph.replacement == pytest.approx(tokens / (tokens + errors))
    output = (wanted + weights)[graph.targets]
    fine = 1 - matrix[graph.targets][:, graph.of_kind("error")].sum(1)
    assert graph.completeness == pytest.approx(fine @ output / output.sum())


def test_a_budget_counts_what_is_not_followed_as_error() -> None:
    few = latent_graph(coded(), PROMPT, name="tc", max_logits=4, max_latents=5, batch_size=3)
    assert few.followed == 5 < whole().followed
    assert few.replacement < whole().replacement
    rows = {int(n): row for row, n in enumerate(whole().targets)}
    for row, node in enumerate(few.targets):
        np.testing.assert_allclose(few.effects[row], whole().effects[rows[int(node)]], atol=1e-5)


def test_pruning_keeps_the_asked_share_and_no_loose_ends() -> None:
    graph = whole()
    pruned = graph.prune(nodes=0.6, edges=0.9)
    assert len(pruned) < len(graph)
    ends = pruned.of_kind("embedding").sum(), pruned.of_kind("logit").sum()
    assert ends == (graph.of_kind("embedding").sum(), graph.of_kind("logit").sum())
    for node in np.flatnonzero(pruned.of_kind("latent")):
        assert pruned.effects[:, node].any()
        assert pruned.effects[pruned.targets.tolist().index(node)].any()
    assert all(pruned.effects[:, node].any() for node in np.flatnonzero(pruned.of_kind("error")))
    rows = {n: r for r, n in enumerate(np.array(graph.node_names)[graph.targets])}
    for name, value in zip(pruned.to_frame()["source"], pruned.to_frame()["effect"], strict=True):
        assert value in graph.effects[:, graph.node(name)]
    assert set(np.array(pruned.node_names)[pruned.targets]) <= set(rows)
    assert pruned.replacement == graph.replacement
    everything = graph.prune(nodes=1.0, edges=1.0)
    assert everything.prune(nodes=1.0, edges=1.0).node_names == everything.node_names


def test_pruning_by_hand() -> None:
    assert smallest_set(np.array([4.0, 1.0, 3.0, 2.0]), 0.7).tolist() == [True, False, True, False]
    assert smallest_set(np.array([0.0, 0.0]), 0.5).tolist() == [False, False]
    # token 0 -> latent 1 -> logit; error 2 -> logit with a third of the weight of the latent
    effects = np.array([[0.0, -3.0, 1.0], [2.0, 0.0, 0.0]])
    found = influences(shares(effects), np.array([-1, 1]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(found, [0.75, 0.75, 0.25])


@pytest.mark.parametrize("made", [whole, across])
def test_a_graph_survives_circuit_tracer_json(tmp_path, made) -> None:  # type: ignore[no-untyped-def]
    graph = made().prune()
    graph = LatentGraph(**{**vars(graph), "labels": {f"0/{n}": f"label {n}" for n in range(24)}})
    document = exchange.latents_as_graph(graph, slug="quotes")
    place = exchange.write_attribution_graph(tmp_path, document)
    back = exchange.graph_of_latents(exchange.read_attribution_graph(place))
    there = graph.to_frame().sort_values(["source", "target"], ignore_index=True)
    again = back.to_frame().sort_values(["source", "target"], ignore_index=True)
    assert there.equals(again)
    wanted = graph.nodes_frame().sort_values("node", ignore_index=True)
    read = back.nodes_frame().sort_values("node", ignore_index=True)
    used = wanted["node"].isin(read["node"])
    columns = ["kind", "block", "position", "token", "number", "activation", "probability"]
    assert wanted[used][columns].reset_index(drop=True).equals(read[columns])
    assert (back.replacement, back.completeness) == (graph.replacement, graph.completeness)
    assert back.n_blocks == 2 and back.pruned_nodes == 0.8 and back.texts == graph.texts
    kept = LatentGraph.load(graph.save(tmp_path / "graph.json"))
    assert kept.node_names == graph.node_names and kept.texts == graph.texts


def test_errors_never_take_the_name_of_a_latent() -> None:
    graph = whole()
    document = exchange.latents_as_graph(graph)
    names = [node.node_id for node in document.nodes]
    assert len(set(names)) == len(names)
    latents = {
        n.node_id for n in document.nodes if n.feature_type == exchange.circuit_tracer.LATENT
    }
    for node in document.nodes:
        if node.feature_type == exchange.circuit_tracer.ERROR:
            plain = f"0_{node.layer}_{node.ctx_idx}"
            assert node.node_id == (
                plain if plain not in latents else plain.replace("_", "_error_", 1)
            )
    back = exchange.graph_of_latents(document)
    assert back.of_kind("error").sum() == sum(
        n.feature_type == exchange.circuit_tracer.ERROR for n in document.nodes
    )


def test_wrong_usage() -> None:
    model = coded()
    with pytest.raises(ConfigError, match="No codec"):
        latent_graph(model, PROMPT, name="nothing")
    with pytest.raises(ConfigError, match="max_logits=0"):
        latent_graph(model, PROMPT, name="tc", max_logits=0)
    with pytest.raises(ConfigError, match="nodes=0"):
        whole().prune(nodes=0)
    with pytest.raises(UnknownNameError, match="L9.9@9"):
        whole().node("L9.9@9")
    make = Architecture(64, 8, sources=(32, 32), targets=(32, 32))
    cross = code_model().attach("cross", SAE(make), at="resid_post")
    with pytest.raises(ConfigError, match="reads 2 sites together"):
        latent_graph(cross, PROMPT, name="cross")
    sae = code_model().attach("sae", DenseSAE(32, 8), at="blocks.0.resid_post")
    with pytest.raises(ConfigError, match="needs transcoders of MLPs"):
        latent_graph(sae, PROMPT, name="sae")
    square = code_model().attach("sq", Squares(32, 8), at="blocks.0.mlp.in", to="blocks.0.mlp.out")
    with pytest.raises(ConfigError, match="do not add up"):
        latent_graph(square, PROMPT, name="sq")
    document = exchange.latents_as_graph(whole())
    from dataclasses import replace

    node = next(n for n in document.nodes if n.feature_type == exchange.circuit_tracer.LATENT)
    wrong = replace(document, nodes=(replace(node, feature=node.feature + 1),), links=())
    with pytest.raises(FormatError, match="for latent"):
        exchange.graph_of_latents(wrong)


def test_latents_that_are_not_linear_are_refused() -> None:
    class Bent(DenseSAE):
        def bypass(self, values: torch.Tensor) -> torch.Tensor | None:
            return values.square()

    model = code_model().attach("tc", Bent(32, 8), at="blocks.0.mlp.in", to="blocks.0.mlp.out")
    with pytest.raises(ModelSupportError, match="not linear"):
        latent_graph(model, PROMPT, name="tc")
