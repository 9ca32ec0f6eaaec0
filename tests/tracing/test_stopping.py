"""A pass that stops behind the last captured site captures what a whole pass does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from microtome.models.families import build
from microtome.tracing.model import Model
from microtome.tracing.opening import load
from microtome.tracing.passes import one_pass
from microtome.tracing.sites import at
from microtome.tracing.trace import Trace

TOKENS = [[1, 2, 3, 4], [5, 6, 7]]


def stopped(model: Model, capture: Any, logits: Any = None) -> Trace:
    return one_pass(
        model, TOKENS, capture=capture, interventions=(), logits=logits, to=None, dtype=None,
        grad=False, stop=True,
    )  # fmt: skip


def blocks_run(model: Model, run: Any) -> tuple[list[int], Any]:
    """What a function returns, and the blocks that ran."""
    ran: list[int] = []
    hooks = [
        model.module.get_submodule(block.path).register_forward_pre_hook(
            lambda *_, number=number: ran.append(number)
        )
        for number, block in enumerate(model.anatomy.blocks)
    ]
    try:
        return ran, run()
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "qwen2_moe"])
def test_a_stopped_pass_captures_the_same_values(name: str) -> None:
    model = load(build(name))
    for layer in (0, model.anatomy.n_layers - 1):
        inside = [i.name for i in model.sites() if i.readable and i.name.startswith(f"blocks.{layer}.")]  # fmt: skip  # noqa: E501
        whole = model.trace(TOKENS, capture=inside)
        ran, found = blocks_run(model, lambda inside=inside: stopped(model, inside))
        assert ran == list(range(layer + 1))
        assert found.logits is None
        assert all(torch.equal(found[site], whole[site]) for site in inside)
    after, _ = blocks_run(model, lambda: model.trace(TOKENS))
    assert after == list(range(model.anatomy.n_layers))


def test_a_pass_runs_whole_where_something_behind_is_wanted() -> None:
    model = load(build("gpt2"))
    every = list(range(model.anatomy.n_layers))
    site = "blocks.0.mlp.out"
    assert blocks_run(model, lambda: stopped(model, site, logits="all"))[0] == every
    assert blocks_run(model, lambda: stopped(model, [site, "final.norm"]))[0] == every
    with model.under([at("blocks.1.mlp.out").zero()]):
        assert blocks_run(model, lambda: stopped(model, site))[0] == every
