"""Sweeps of modules that others have touched: hooks, replaced parts, training mode, threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from tests.sweeps.test_sweeps import pairs
from torch import nn

from microtome.errors import ConfigError, ModelSupportError
from microtome.models.families import build
from microtome.sweeps import pair_patching, path_patching, plan, sweep
from microtome.tracing.condition import strange_part
from microtome.tracing.model import Model
from microtome.tracing.opening import load
from microtome.tracing.sites import at

EXAMPLES = pairs((8, 8, 8))


def agrees(model: Model, site: str) -> bool:
    """Whether the first try of a sweep equals the naive way, without falling back."""
    fast = sweep(model, EXAMPLES, site)
    slow = sweep(model, EXAMPLES, site, rules=())
    assert "fell_back_from" not in fast.certificate
    return bool(np.allclose(fast.values, slow.values, atol=2e-5))


def block(model: Model, number: int) -> nn.Module:
    assert model.anatomy is not None
    return model.module.get_submodule(model.anatomy.blocks[number].path)


def louder(_module: nn.Module, _args: Any, output: Any) -> Any:
    return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "gemma2"])
@pytest.mark.parametrize("site", ["resid_pre", "attn.z", "attn.out", "mlp.out"])
def test_hooks_of_the_user_keep_their_effect(family: str, site: str) -> None:
    model = load(build(family))
    assert agrees(model, site)
    hook = block(model, 1).register_forward_hook(louder)
    assert agrees(model, site)
    hook.remove()
    with model.under([at("blocks.1.attn.z[head=0]").zero()]):
        assert agrees(model, site)
    assert "restart" in plan(model, EXAMPLES, site).rules


def test_what_is_found_is_named_and_reading_hooks_do_not_count() -> None:
    model = load(build("gpt2"))
    model.module(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    assert strange_part(model.module) == ""
    hook = block(model, 0).register_forward_hook(louder)
    assert "forward hook" in plan(model, EXAMPLES).declined["restart"]
    with pytest.raises(ModelSupportError, match="GPT2Block carries a forward hook"):
        path_patching(model, EXAMPLES, "logits")
    assert pair_patching(model, EXAMPLES, parts=["a0.h0", "m1"]).certificate["restarted"] is False
    hook.remove()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_replaced_forward_keeps_its_effect(family: str) -> None:
    model = load(build(family))
    assert agrees(model, "resid_pre")
    changed = block(model, 0)
    own = changed.forward
    changed.forward = lambda *args, **named: louder(changed, args, own(*args, **named))
    assert agrees(model, "resid_pre")
    assert agrees(model, "mlp.out")


class Wrapped(nn.Module):
    """A projection with something beside it, as adapters are put in."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(tokens) * 1.3
        return out


@pytest.mark.parametrize(
    ("family", "path"), [("gpt2", "attn.c_attn"), ("llama", "self_attn.q_proj")]
)
def test_a_part_that_was_replaced_is_measured_again(family: str, path: str) -> None:
    model = load(build(family))
    assert "fast" in plan(model, EXAMPLES).rules
    assert agrees(model, "resid_pre")
    owner = block(model, 0).get_submodule(path.split(".")[0])
    name = path.split(".")[1]
    setattr(owner, name, Wrapped(getattr(owner, name)).eval())
    assert "fast" not in plan(model, EXAMPLES).rules
    assert agrees(model, "resid_pre")


def test_a_part_in_training_mode_is_refused_and_nothing_wrong_is_remembered() -> None:
    model = load(build("gpt2"))
    block(model, 0).train()
    with pytest.raises(ConfigError, match=r"A \w+ of .* is in training mode"):
        sweep(model, EXAMPLES)
    with pytest.raises(ConfigError, match="training mode"):
        model.record([[1, 2, 3]])
    model.module.eval()
    assert "suffix" in plan(model, EXAMPLES).rules
    block(model, 0).mlp.act = nn.Sequential(nn.GELU(approximate="tanh"))  # in training mode
    assert agrees(model, "resid_pre")


def test_a_sweep_beside_another_thread_on_the_same_module() -> None:
    model = load(build("llama"))
    alone = sweep(model, EXAMPLES, "attn.out")
    expected = model.trace([[1, 2, 3]], capture="attn.out")["blocks.0.attn.out"]
    errors: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                found = model.trace([[1, 2, 3]], capture="attn.out")["blocks.0.attn.out"]
                assert torch.equal(found, expected)
        except BaseException as error:  # an assertion of this thread has to reach the test
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(5):
            beside = sweep(model, EXAMPLES, "attn.out")
            np.testing.assert_array_equal(beside.values, alone.values)
    finally:
        stop.set()
        thread.join()
    assert not errors


def test_a_module_made_in_inference_mode() -> None:
    with torch.inference_mode():
        module = build("llama")
    model = load(module)
    assert agrees(model, "resid_pre")
    assert model.fingerprint == load(build("llama")).fingerprint
