"""TransformerLens: its bridge around the same model, weights unprocessed.

``default`` is ``transformer_lens.patching``, ``batched`` hooks on rows of its own, ``restart`` the
same with ``forward(start_at_layer=...)``.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, models
from transformer_lens import TransformerBridge, patching
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.peers import common
from benchmarks.peers.common import Inputs, Ready, Terms
from benchmarks.peers.task import Task

no_grad = torch.no_grad()
KEPT = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")


def bridge(task: Task, model: GPT2LMHeadModel) -> Any:
    """Return the wrapped model; booting wants a tokenizer that can be read from disk."""
    words = {str(number): number for number in range(task.vocabulary)}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")),
        bos_token="1",
        eos_token="2",
        pad_token="3",
        unk_token="0",
    )
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        wrapped = TransformerBridge.boot_transformers(
            "gpt2",
            hf_model=model,
            tokenizer=tokenizer,
            device=task.device,
            dtype=getattr(torch, task.dtype),
        )
    wrapped.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    return wrapped


class Subject:
    """The workloads."""

    def __init__(self, task: Task, model: Any, inputs: Inputs) -> None:
        self.task, self.model, self.inputs = task, model, inputs

    @no_grad
    def forward(self) -> torch.Tensor:
        """Workload a."""
        return self.model(self.inputs.big)[:, -1]

    @no_grad
    def capture(self) -> torch.Tensor:
        """Workload b."""
        _, kept = self.model.run_with_cache(
            self.inputs.big, names_filter=lambda name: name.endswith(KEPT)
        )
        return kept[f"blocks.{self.task.layers - 1}.hook_resid_post"][:, -1]

    def _store(self, ids: torch.Tensor, ending: str) -> Any:
        return self.model.run_with_cache(ids, names_filter=lambda name: name.endswith(ending))[1]

    @no_grad
    def own(self, sweep: Any, ending: str, axis: str) -> torch.Tensor:
        """Workloads c and d by the package's own function, on a sample by its index frame."""
        kept, task = self._store(self.inputs.clean, ending), self.task
        columns = range(0, task.columns, task.every)
        pairs = [(layer, column) for layer in range(task.layers) for column in columns]
        sample = {
            "index_axis_names": None,
            "index_df": pd.DataFrame(pairs, columns=["layer", axis]),
        }
        found = sweep(
            self.model,
            self.inputs.corrupt,
            kept,
            lambda logits: common.logit_difference(logits)[0],
            **(sample if task.every > 1 else {}),
        )
        grid = common.empty(task)
        grid[:, :: task.every] = found.view(task.layers, -1).to(grid)
        return grid

    @no_grad
    def positions(self, *, late: bool = False) -> torch.Tensor:
        """Workload c, the runs of a layer together."""
        clean, corrupt = self._store(self.inputs.clean, KEPT[0]), self.inputs.corrupt
        base = self._store(corrupt, KEPT[0]) if late else {}
        (places,), grid = common.chosen(self.task, together=True), common.empty(self.task)
        rows = torch.arange(len(places))
        for layer in range(self.task.layers):
            name = f"blocks.{layer}.hook_resid_pre"

            def patch(stream: torch.Tensor, hook: object, name: str = name) -> torch.Tensor:
                stream = stream.clone()
                stream[rows, places] = clean[name][0, places]
                return stream

            if late:
                stream = patch(base[name].expand(len(places), -1, -1), None)
                logits = self.model(stream, start_at_layer=layer)
            else:
                ids = corrupt.expand(len(places), -1)
                logits = self.model.run_with_hooks(ids, fwd_hooks=[(name, patch)])
            grid[layer, places] = common.logit_difference(logits).float()
        return grid

    @no_grad
    def heads(self) -> torch.Tensor:
        """Workload d, the runs of a layer together."""
        clean = self._store(self.inputs.clean, "hook_z")
        (heads,), grid = common.chosen(self.task, together=True), common.empty(self.task)
        rows, ids = torch.arange(len(heads)), self.inputs.corrupt.expand(len(heads), -1)
        for layer in range(self.task.layers):
            name = f"blocks.{layer}.attn.hook_z"

            def patch(z: torch.Tensor, hook: object, name: str = name) -> torch.Tensor:
                z = z.clone()
                z[rows, :, heads] = clean[name][0][:, heads].transpose(0, 1)
                return z

            logits = self.model.run_with_hooks(ids, fwd_hooks=[(name, patch)])
            grid[layer, heads] = common.logit_difference(logits).float()
        return grid

    def attribution(self) -> torch.Tensor:
        """Workload e: towards the embedding, so that no gradients of weights are made."""

        def wanted(name: str) -> bool:
            return name.endswith(("hook_z", "hook_mlp_out"))

        with torch.no_grad():
            _, clean = self.model.run_with_cache(self.inputs.cleans, names_filter=wanted)
        values: dict[str, torch.Tensor] = {}
        slopes: dict[str, torch.Tensor] = {}
        read = (
            lambda name: wanted(name) or name == "hook_embed",
            lambda value, hook: values.__setitem__(hook.name, value),
        )
        back = (wanted, lambda slope, hook: slopes.__setitem__(hook.name, slope))
        with self.model.hooks(fwd_hooks=[read], bwd_hooks=[back]):
            metric = common.logit_difference(self.model(self.inputs.corrupts)).sum()
            torch.autograd.grad(metric, values["hook_embed"])

        def terms(name: str) -> list[Terms]:
            names = [f"blocks.{layer}.{name}" for layer in range(self.task.layers)]
            return [(clean[n], values[n], slopes[n]) for n in names]

        return common.attribution(self.task, terms("attn.hook_z"), terms("hook_mlp_out"))


def wrap(task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> Ready:
    """Return the workloads of one variant."""
    subject = Subject(task, bridge(task, model), inputs)
    if task.variant == "default":
        positions: Any = lambda: subject.own(  # noqa: E731
            patching.get_act_patch_resid_pre, "hook_resid_pre", "pos"
        )
        heads: Any = lambda: subject.own(  # noqa: E731
            patching.get_act_patch_attn_head_out_all_pos, "hook_z", "head"
        )
    else:
        positions = lambda: subject.positions(late=task.variant == "restart")  # noqa: E731
        heads = subject.heads
    return Ready(
        version("transformer_lens"),
        {
            "a": subject.forward,
            "b": subject.capture,
            "c": positions,
            "d": heads,
            "e": subject.attribution,
        },
    )


if __name__ == "__main__":
    common.main("transformer_lens", wrap, attention="eager")
