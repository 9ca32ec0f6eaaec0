"""Rows of the families with linear biases on the scores (ALiBi), or with such a variant."""

from __future__ import annotations

from microtome.models.families.table import (
    CONTEXT,
    HEADS,
    KV_HEADS,
    LAYERS,
    LINEAR_ROPE,
    NEURONS,
    OLD_EPSILON,
    ROTARY_SCALING,
    TIED,
    UNTIED,
    VOCAB,
    WIDTH,
    Family,
)

FAMILIES = (
    Family(
        "bloom",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "layer_norm_epsilon": 0.05,
            "apply_residual_connection_post_layernorm": True,
        },
        {
            "residual taken after the norm": {"apply_residual_connection_post_layernorm": False},
            **OLD_EPSILON,
            **TIED,
        },
        note="ALiBi; the residual connection starts after the norm",
    ),
    Family(
        "bloom-plain",
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
        {"norm biases": {"weight:*norm*bias": 0.0}, **TIED},
        model_type="bloom",
        note="ALiBi",
    ),
    Family(
        "mpt",
        {
            "vocab_size": VOCAB,
            "d_model": WIDTH,
            "n_heads": HEADS,
            "n_layers": LAYERS,
            "expansion_ratio": 2,
            "max_seq_len": CONTEXT,
            "layer_norm_epsilon": 0.05,
            "attn_config": {"clip_qkv": 0.8, "softmax_scale": 0.6},
        },
        {
            "clipped queries, keys, values": {"attn_config.clip_qkv": None},
            "score scale": {"attn_config.softmax_scale": None},
            **OLD_EPSILON,
            **TIED,
        },
    ),
    Family(
        "falcon",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_kv_heads": KV_HEADS,
            "ffn_hidden_size": NEURONS,
            "layer_norm_epsilon": 0.05,
            "new_decoder_architecture": True,
            "max_position_embeddings": CONTEXT,
            "bias": True,
            "activation": "relu",
            "rope_parameters": LINEAR_ROPE,
        },
        {
            "grouped key/value heads": {"num_kv_heads": HEADS},
            "two norms before parallel branches": {"num_ln_in_parallel_attn": 1},
            "biases": {"bias": False},
            "activation": {"activation": "gelu"},
            **ROTARY_SCALING,
            **OLD_EPSILON,
            **TIED,
        },
    ),
    Family(
        "falcon-alibi",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "ffn_hidden_size": NEURONS,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
            "tie_word_embeddings": False,
        },
        {
            "ALiBi": {"alibi": False},
            "one key/value head per head": {"multi_query": True},
            "sequential attention and MLP": {"parallel_attn": True},
            **UNTIED,
        },
        model_type="falcon",
    ),
    Family(
        "falcon-multi_query",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "ffn_hidden_size": NEURONS,
        },
        {
            "one key/value head for all": {"multi_query": False},
            "parallel attention and MLP": {"parallel_attn": False},
        },
        model_type="falcon",
    ),
)
