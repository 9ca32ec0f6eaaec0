"""The component graph: its counts, order, ports and connected parts."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from microtome.circuits.graph import ComponentGraph, nodes_on, port_of, split_edge
from microtome.errors import ModelSupportError, UnknownNameError
from microtome.tracing.model import Model
from microtome.tracing.opening import load


def gpt2(layers: int, heads: int) -> Model:
    config = GPT2Config(
        n_layer=layers, n_head=heads, n_embd=heads * 4, vocab_size=11, n_positions=16
    )
    return load(GPT2LMHeadModel(config).eval())


def llama() -> Model:
    config = LlamaConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32,
        intermediate_size=16, vocab_size=11, max_position_embeddings=16,
    )  # fmt: skip
    return load(LlamaForCausalLM(config).eval())


def test_the_gpt2_small_shape_has_its_32491_edges() -> None:
    graph = ComponentGraph.of(gpt2(12, 12))
    assert (len(graph.sources), len(graph.targets)) == (157, 445)
    assert graph.n_edges == 32_491
    assert graph.possible.sum() == 32_491


def test_order_of_a_sequential_block() -> None:
    graph = ComponentGraph.of(gpt2(2, 2))
    edges = set(graph.edges)
    assert {"a0.h0->m0", "embed->a0.h0<q>", "m0->a1.h1<k>", "embed->logits", "m1->logits"} <= edges
    assert not {"a0.h0->a0.h1<q>", "m0->m0", "m1->a0.h0<v>", "m0->a0.h0<q>"} & edges


def test_parallel_blocks_do_not_feed_their_own_mlp() -> None:
    config = GPTNeoXConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=16, intermediate_size=32,
        vocab_size=11, max_position_embeddings=16, use_parallel_residual=True,
    )  # fmt: skip
    edges = set(ComponentGraph.of(load(GPTNeoXForCausalLM(config).eval())).edges)
    assert "a0.h0->m0" not in edges
    assert "a0.h0->m1" in edges


def test_key_value_groups_are_one_target_for_all_their_heads() -> None:
    graph = ComponentGraph.of(llama())
    assert [t for t in graph.targets if t.startswith("a1.g")] == [
        "a1.g0<k>", "a1.g1<k>", "a1.g0<v>", "a1.g1<v>"
    ]  # fmt: skip
    assert graph.readers("a1.g1<k>") == ("a1.h2", "a1.h3")
    assert graph.readers("a1.h2<q>") == ("a1.h2",)


def test_edges_become_masks_and_names_again() -> None:
    graph = ComponentGraph.of(llama())
    chosen = ("embed->a0.h1<q>", "a0.h3->m0", "m1->logits")
    mask = graph.mask(chosen)
    assert mask.sum() == 3
    assert graph.named(mask) == chosen
    assert nodes_on(chosen, graph) == ("a0.h1", "a0.h3", "m0", "m1")
    assert [graph.edges[i] for i in graph.numbers(chosen)] == list(chosen)


def test_edges_on_no_path_are_dropped() -> None:
    graph = ComponentGraph.of(gpt2(2, 2))
    path = ("embed->a0.h0<v>", "a0.h0->a1.h1<k>", "a1.h1->logits")
    dead = ("a0.h1->m1", "embed->m0", "m1->logits")
    kept = graph.connected(graph.mask((*path, *dead)))
    assert graph.named(kept) == path
    assert not graph.connected(graph.mask(dead)).any()
    assert (graph.connected(graph.possible) == graph.possible).all()


def test_wrong_names_are_refused_with_the_nearest() -> None:
    graph = ComponentGraph.of(gpt2(2, 2))
    with pytest.raises(UnknownNameError, match="a0.h1->m1"):
        graph.mask(["a0.h1->m11"])
    with pytest.raises(UnknownNameError, match="no target"):
        port_of("a0.h1<z>")
    with pytest.raises(UnknownNameError, match="no edge"):
        split_edge("a0.h1")
    assert [port_of(t) for t in ("a0.h1<q>", "m1", "logits")] == ["q", "in", "logits"]
    assert np.array_equal(graph.numbers([]), np.array([], dtype=int))


def test_a_module_without_a_stream_has_no_graph() -> None:
    from torch import nn

    with pytest.raises(ModelSupportError, match="component graph"):
        ComponentGraph.of(load(nn.Sequential(nn.Linear(3, 3))))
