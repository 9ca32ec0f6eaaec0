"""The last MLP computed only where it is read: same logits and gradients, and no trace left."""

from __future__ import annotations

import pytest
import torch

from microtome.models.families import build
from microtome.tracing.narrowing import _last_mlp, last_mlp_narrow
from microtome.tracing.opening import load

PROMPTS = [(5, 6, 7, 8, 9, 10), (11, 12, 13), (14, 15, 16, 17)]
LENGTHS = [len(p) for p in PROMPTS]
FAMILIES = (
    "gpt2", "llama", "gpt_neox", "gemma2", "gemma3_text", "olmo2", "falcon", "mixtral", "phi",
    "bloom-plain", "cohere2", "opt", "jamba", "gpt_oss",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_stay_as_they_are(family: str) -> None:
    model = load(build(family))
    last = model.anatomy.n_layers - 1  # type: ignore[union-attr]
    sites = ["blocks.0.mlp.out", f"blocks.{last}.mlp.out"]

    def metric(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 7] - logits[:, -1, 3]

    whole = model.gradients(metric, sites, PROMPTS, logits="last")
    with last_mlp_narrow(model, LENGTHS):
        narrow = model.gradients(metric, sites, PROMPTS, logits="last")
    torch.testing.assert_close(narrow.metric, whole.metric, rtol=1e-4, atol=1e-5)
    for site in sites:
        scale = float(whole[site].abs().max())
        torch.testing.assert_close(narrow[site], whole[site], rtol=1e-3, atol=1e-5 * scale)


def test_it_does_less_and_leaves_no_hook() -> None:
    model = load(build("gpt2"))
    module = _last_mlp(model)
    assert module is not None
    seen = []
    handle = module.c_fc.register_forward_hook(  # type: ignore[union-attr,operator]
        lambda _m, args, _o: seen.append(tuple(args[0].shape[:2]))
    )
    with last_mlp_narrow(model, LENGTHS):
        seen.clear()
        model.trace(PROMPTS, logits="last")
    model.trace(PROMPTS, logits="last")
    handle.remove()
    assert seen == [(3, 1), (3, 6)]
    with pytest.raises(RuntimeError), last_mlp_narrow(model, LENGTHS):
        raise RuntimeError
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_routed_experts_and_encoders_are_left_alone() -> None:
    assert _last_mlp(load(build("mixtral"))) is None
