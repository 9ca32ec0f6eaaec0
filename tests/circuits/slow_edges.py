"""A slow second opinion: GPT-2 and Llama written out, every target's input summed edge by edge.

Nothing here uses hooks or the package. Each target's input is the sum of what its sources write,
now or ablated, plus the biases written so far; runs one prompt at a time in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

Writes = dict[str, torch.Tensor]


def tiny_gpt2() -> GPT2LMHeadModel:
    """Two layers of three heads, with biases that are not zero."""
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=61, n_positions=32, n_embd=24, n_layer=2, n_head=3, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _shaken(GPT2LMHeadModel(config).eval())


def tiny_llama(layers: int = 2) -> LlamaForCausalLM:
    """Layers of four query heads over two key/value heads, without biases."""
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=36, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        initializer_range=0.4, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return _shaken(LlamaForCausalLM(config).eval())


def _shaken(module):
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module


class Slow:
    """A model written out.

    Attributes:
        layers: Number of blocks.
        heads: Query heads.
        groups: Key/value heads.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.w = {k: v.detach().double() for k, v in module.state_dict().items()}
        self.gpt2 = isinstance(module, GPT2LMHeadModel)
        config = module.config
        self.layers = config.num_hidden_layers
        self.heads = config.num_attention_heads
        self.groups = self.heads if self.gpt2 else config.num_key_value_heads
        self.size = config.hidden_size // self.heads
        self.eps = config.layer_norm_epsilon if self.gpt2 else config.rms_norm_eps

    def logits(
        self,
        tokens: tuple[int, ...],
        ablated: Writes | None = None,
        excluded: frozenset[str] = frozenset(),
        *,
        writes: Writes | None = None,
        places: Sequence[str] = (),
    ) -> torch.Tensor:
        """Return the logits at the end; excluded edges carry the ablated writes.

        With the name of every position's place, ``u->v@place`` is excluded there only.
        """
        now: Writes = {} if writes is None else writes
        now["embed"] = self._embed(tokens)
        constant = torch.zeros_like(now["embed"])
        names = ["embed"]

        def read(target: str) -> torch.Tensor:
            parts = []
            for s in names:
                edges = [f"{s}->{target}", *(f"{s}->{target}@{place}" for place in places)]
                off = torch.tensor([e in excluded for e in edges])
                rows = off[1:] | off[0] if places else off[:1].expand(len(tokens))
                other = now[s] if ablated is None else ablated[s].expand_as(now[s])
                parts.append(torch.where(rows[:, None], other, now[s]))
            return torch.stack(parts).sum(0) + constant

        for layer in range(self.layers):
            z = self._attention(layer, read)
            for head in range(self.heads):
                now[f"a{layer}.h{head}"] = z[head]
            names += [f"a{layer}.h{head}" for head in range(self.heads)]
            if self.gpt2:
                constant = constant + self.w[f"transformer.h.{layer}.attn.c_proj.bias"]
            now[f"m{layer}"] = self._mlp(layer, read(f"m{layer}"))
            names.append(f"m{layer}")
        return self._end(read("logits"))[-1]

    def _embed(self, tokens: tuple[int, ...]) -> torch.Tensor:
        if self.gpt2:
            wte, wpe = self.w["transformer.wte.weight"], self.w["transformer.wpe.weight"]
            return wte[list(tokens)] + wpe[: len(tokens)]
        return self.w["model.embed_tokens.weight"][list(tokens)]

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if self.gpt2:
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        x = x * self.w[f"{name}.weight"]
        return x + self.w[f"{name}.bias"] if self.gpt2 else x

    def _attention(self, layer: int, read: Callable[[str], torch.Tensor]) -> list[torch.Tensor]:
        letter = "h" if self.groups == self.heads else "g"
        q = [self._head(layer, "q", h, read(f"a{layer}.h{h}<q>")) for h in range(self.heads)]
        k = [
            self._head(layer, "k", g, read(f"a{layer}.{letter}{g}<k>")) for g in range(self.groups)
        ]
        v = [
            self._head(layer, "v", g, read(f"a{layer}.{letter}{g}<v>")) for g in range(self.groups)
        ]
        written = []
        for head in range(self.heads):
            group = head // (self.heads // self.groups)
            scores = q[head] @ k[group].T / math.sqrt(self.size)
            future = torch.ones_like(scores).triu(1).bool()
            z = scores.masked_fill(future, -math.inf).softmax(-1) @ v[group]
            span = slice(head * self.size, (head + 1) * self.size)
            if self.gpt2:
                written.append(z @ self.w[f"transformer.h.{layer}.attn.c_proj.weight"][span])
            else:
                weight = self.w[f"model.layers.{layer}.self_attn.o_proj.weight"]
                written.append(z @ weight[:, span].T)
        return written

    def _head(self, layer: int, port: str, number: int, x: torch.Tensor) -> torch.Tensor:
        span = slice(number * self.size, (number + 1) * self.size)
        if self.gpt2:
            x = self._norm(x, f"transformer.h.{layer}.ln_1")
            width = self.heads * self.size
            start = "qkv".index(port) * width
            weight = self.w[f"transformer.h.{layer}.attn.c_attn.weight"][:, start : start + width]
            bias = self.w[f"transformer.h.{layer}.attn.c_attn.bias"][start : start + width]
            return x @ weight[:, span] + bias[span]
        x = self._norm(x, f"model.layers.{layer}.input_layernorm")
        out = x @ self.w[f"model.layers.{layer}.self_attn.{port}_proj.weight"][span].T
        return out if port == "v" else self._turned(out)

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary embedding, halves of the head turned against each other."""
        half = self.size // 2
        speed = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(len(x), dtype=torch.float64)[:, None] * speed
        one, two = x[:, :half], x[:, half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([one * cos - two * sin, two * cos + one * sin], 1)

    def _mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        if self.gpt2:
            name = f"transformer.h.{layer}"
            x = self._norm(x, f"{name}.ln_2")
            x = x @ self.w[f"{name}.mlp.c_fc.weight"] + self.w[f"{name}.mlp.c_fc.bias"]
            x = torch.nn.functional.gelu(x, approximate="tanh")
            return x @ self.w[f"{name}.mlp.c_proj.weight"] + self.w[f"{name}.mlp.c_proj.bias"]
        name = f"model.layers.{layer}"
        x = self._norm(x, f"{name}.post_attention_layernorm")
        gate = torch.nn.functional.silu(x @ self.w[f"{name}.mlp.gate_proj.weight"].T)
        up = x @ self.w[f"{name}.mlp.up_proj.weight"].T
        return (gate * up) @ self.w[f"{name}.mlp.down_proj.weight"].T

    def _end(self, x: torch.Tensor) -> torch.Tensor:
        name = "transformer.ln_f" if self.gpt2 else "model.norm"
        return self._norm(x, name) @ self.w["lm_head.weight"].T


def ablated_writes(
    slow: Slow, prompts: Mapping[str, list[tuple[int, ...]]], row: int, kind: str
) -> Writes:
    """Return what every source writes ablated, for one row."""
    runs: dict[str, list[Writes]] = {"clean": [], "corrupt": []}
    for side, tokens in prompts.items():
        for prompt in tokens:
            written: Writes = {}
            slow.logits(prompt, writes=written)
            runs[side].append(written)
    if kind == "resample":
        return runs["corrupt"][row]
    first = runs["clean"][0]
    if kind == "zero":
        return {name: torch.zeros_like(value) for name, value in first.items()}
    every = [*runs["clean"], *runs["corrupt"]]
    return {name: torch.cat([w[name] for w in every]).mean(0, keepdim=True).expand_as(value)
            for name, value in first.items()}  # fmt: skip
