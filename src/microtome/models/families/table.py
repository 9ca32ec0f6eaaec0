"""The row type of the family table, and the sizes and settings that many rows share.

A row holds one tiny random model of a transformers family in which every option that the family
has is switched on with a value that changes the logits. A multiplier of one, a window longer than
the prompt or a soft cap that never bites would let a wrong anatomy pass for a right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Changes = Mapping[str, Any]
Options = Mapping[str, Changes]


@dataclass(frozen=True, eq=False)
class Family:
    """One tiny random model of a family.

    Attributes:
        name: The model type of transformers, with a suffix where a family has two rows.
        config: Keyword arguments of the family's configuration.
        options: What is switched on, in words, each with the changes that neutralize it: a dotted
            path into ``config`` and its neutral value, or ``weight:PATTERN`` and a constant for
            all parameters whose names match the pattern.
        kind: Which head is built, next-token (``causal``) or masked-token prediction.
        model_type: The model type of transformers where it is not ``name``.
        note: What is unusual about the family.
    """

    name: str
    config: Mapping[str, Any]
    options: Options
    kind: Literal["causal", "masked"] = "causal"
    model_type: str = ""
    note: str = ""
    special_tokens: Mapping[str, int | None] = field(
        default_factory=lambda: {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    )

    def __post_init__(self) -> None:
        """Take the name for the model type where none is given."""
        if not self.model_type:
            object.__setattr__(self, "model_type", self.name)


# Every size differs from every other one, so that an axis cannot be taken for another:
# 11 tokens, 4 heads over 2 key/value heads, 5 experts, head size 16 against 48 / 4 = 12.
VOCAB, WIDTH, NEURONS, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, CONTEXT = 97, 48, 80, 3, 4, 2, 16, 64
TOKENS = 11
EXPERTS, EXPERTS_USED, EXPERT_NEURONS, SHARED_NEURONS, WINDOW = 5, 2, 28, 36, 5

MULTI_HEAD: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
}
GROUPED: Mapping[str, Any] = {**MULTI_HEAD, "num_key_value_heads": KV_HEADS}
SIZED: Mapping[str, Any] = {**GROUPED, "head_dim": HEAD_SIZE}

# Rotary settings. The base is small so that all frequencies turn within 11 tokens.
PLAIN_ROPE: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 20.0}
PARTIAL_ROPE: Mapping[str, Any] = {**PLAIN_ROPE, "partial_rotary_factor": 0.5}
LINEAR_ROPE: Mapping[str, Any] = {**PLAIN_ROPE, "rope_type": "linear", "factor": 3.0}
LLAMA3_ROPE: Mapping[str, Any] = {
    **PLAIN_ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE: Mapping[str, Any] = {
    **PLAIN_ROPE,
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 16,
}

# Options that many families share, with what neutralizes them.
GROUPED_HEADS: Options = {"grouped key/value heads": {"num_key_value_heads": HEADS}}
ROTARY_BASE: Options = {"rotary base": {"rope_parameters.rope_theta": 10000.0}}
ROTARY_SCALING: Options = {
    "rotary base": {"rope_parameters.rope_theta": 10000.0},
    "rotary scaling": {"rope_parameters": PLAIN_ROPE},
}
PARTIAL_ROTARY: Options = {
    "rotary base": {"rope_parameters.rope_theta": 10000.0},
    "partial rotary": {"rope_parameters.partial_rotary_factor": 1.0},
}
RMS_EPSILON: Options = {"norm epsilon": {"rms_norm_eps": 1e-6}}
LAYER_EPSILON: Options = {"norm epsilon": {"layer_norm_eps": 1e-6}}
OLD_EPSILON: Options = {"norm epsilon": {"layer_norm_epsilon": 1e-6}}
ATTENTION_BIAS: Options = {"attention biases": {"attention_bias": False}}
MLP_BIAS: Options = {"MLP biases": {"mlp_bias": False}}
BIASES: Mapping[str, Any] = {"attention_bias": True, "mlp_bias": True}
BIAS_OPTIONS: Options = {**ATTENTION_BIAS, **MLP_BIAS}
UNTIED: Options = {"untied unembedding": {"tie_word_embeddings": True}}
TIED: Options = {"tied unembedding": {"tie_word_embeddings": False}}
SLIDING: Options = {"sliding window": {"sliding_window": CONTEXT}}
EXPERT_NORM: Options = {"routing weights normalized": {"norm_topk_prob": False}}

# The modern decoder: grouped heads of their own size, rotary positions, RMS norm, a gated MLP.
MODERN: Mapping[str, Any] = {
    **SIZED,
    "hidden_act": "gelu",
    "rms_norm_eps": 0.05,
    "rope_parameters": LINEAR_ROPE,
}
NARROW: Mapping[str, Any] = {key: value for key, value in MODERN.items() if key != "head_dim"}
MODERN_OPTIONS: Options = {
    "activation": {"hidden_act": "silu"},
    **GROUPED_HEADS,
    **ROTARY_SCALING,
    **RMS_EPSILON,
}

# Layer kinds in alternation, so that a windowed layer and a full one both occur.
SLIDING_FULL = ["sliding_attention", "full_attention", "sliding_attention"]
FULL_SLIDING = ["full_attention", "sliding_attention", "full_attention"]

# Different rotary settings per kind of layer.
MIXED_ROPE: Mapping[str, Any] = {
    "full_attention": LINEAR_ROPE,
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
MIXED_ROTARY: Options = {
    "rotary base of windowed layers": {"rope_parameters.sliding_attention.rope_theta": 10000.0},
    "rotary base of full layers": {"rope_parameters.full_attention.rope_theta": 10000.0},
    "rotary scaling of full layers": {"rope_parameters.full_attention": PLAIN_ROPE},
}

# Latent attention: queries and keys of 8 plain and 6 rotary channels, values of 10.
LATENT_HEADS: Mapping[str, Any] = {
    "q_lora_rank": 20,
    "kv_lora_rank": 22,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 10,
}

LOCAL_EXPERTS: Mapping[str, Any] = {
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": EXPERTS_USED,
}
NAMED_EXPERTS: Mapping[str, Any] = {"num_experts": EXPERTS, "num_experts_per_tok": EXPERTS_USED}
NEXT_EXPERT: Options = {"experts per token": {"num_experts_per_tok": 3}}

# The multipliers of the Granite family.
MULTIPLIERS: Mapping[str, Any] = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.6,
    "rms_norm_eps": 1.0,
}
MULTIPLIER_OPTIONS: Options = {
    "embedding multiplier": {"embedding_multiplier": 1.0},
    "logits divisor": {"logits_scaling": 1.0},
    "residual multiplier": {"residual_multiplier": 1.0},
    "score scale": {"attention_multiplier": 1.0},
}
