"""Scoring every edge with auto-circuit 1.0.1, by the gradient of its masks at 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.utils.graph_utils import patchable_model
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

from benchmarks.peers.common import RIGHT, WRONG
from benchmarks.peers.edge_pairs import Way, main, pairs
from benchmarks.peers.task import Task


def ways(task: Task, module: GPT2LMHeadModel) -> Mapping[str, Way]:
    """Return the ways by name; converting and wrapping the model is not part of what is timed."""
    patchable = patchable_model(
        _converted(task, module), factorized=True, slice_output="last_seq", separate_qkv=True,
        device=torch.device("cpu"),
    )  # fmt: skip
    clean, corrupt = pairs(task)
    right, wrong = ([torch.tensor([token])] * len(clean) for token in (RIGHT, WRONG))
    loader = PromptDataLoader(
        PromptDataset(clean, corrupt, right, wrong), seq_len=clean.shape[1], diverge_idx=0,
        batch_size=len(clean), shuffle=False,
    )  # fmt: skip
    return {"eap": lambda: _scores(task, patchable, loader)}


def _converted(task: Task, module: GPT2LMHeadModel) -> HookedTransformer:
    """Return the model in the package's form; the original's tensors are let go of."""
    config = HookedTransformerConfig(
        n_layers=task.layers, d_model=task.width, n_heads=task.heads,
        d_head=task.width // task.heads, d_mlp=4 * task.width, n_ctx=1024,
        d_vocab=task.vocabulary, act_fn="gelu_new", eps=1e-5, normalization_type="LN",
        device="cpu", init_weights=False, use_attn_result=True, use_split_qkv_input=True,
        use_hook_mlp_in=True, use_attn_in=False,
    )  # fmt: skip
    found = HookedTransformer(config)
    found.load_state_dict(convert_gpt2_weights(module, config), strict=False)
    return found.eval()


def _scores(task: Task, patchable: Any, loader: Any) -> np.ndarray:
    """Return the scores ``[source, target]`` in microtome's order."""
    found = mask_gradient_prune_scores(patchable, loader, None, "logit", "avg_diff", mask_val=0.0)
    heads, layers = task.heads, task.layers
    table = np.zeros((1 + layers * (heads + 1), layers * (3 * heads + 1) + 1))
    for edge in patchable.edges:
        value = float(found[edge.dest.module_name][edge.patch_idx])
        table[_row(edge.src, heads), _column(edge.dest, heads, table.shape[1])] = value
    return table


def _row(source: Any, heads: int) -> int:
    if source.name.startswith("Resid"):
        return 0
    if source.name.startswith("A"):
        return 1 + int(source.name[1:].split(".")[0]) * (heads + 1) + source.head_idx
    return 1 + int(source.name.split()[1]) * (heads + 1) + heads


def _column(target: Any, heads: int, columns: int) -> int:
    if target.name.startswith("Resid"):
        return columns - 1
    if target.name.startswith("A"):
        layer = int(target.name[1:].split(".")[0])
        port = "QKV".index(target.name.split(".")[-1])
        return layer * (3 * heads + 1) + port * heads + target.head_idx
    return int(target.name.split()[1]) * (3 * heads + 1) + 3 * heads


if __name__ == "__main__":
    main(ways, settle=False)  # it takes minutes
