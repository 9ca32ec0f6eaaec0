"""The tiny random models: every family builds, and every option it lists changes its logits."""

from __future__ import annotations

import dataclasses
import socket
from functools import cache
from typing import Any

import pytest
import torch
import transformers

from microtome.errors import UnknownNameError
from microtome.models.families import construction as families
from microtome.models.families import table

NAMES = families.names()

# An option counts as active from this share of the logits' own spread.
ACTIVE = 0.02

REQUIRED = """
    gpt2 gpt_neox opt llama mistral mixtral gemma gemma2 gemma3_text gemma3n_text gemma4_text qwen2
    qwen2_moe qwen3 qwen3_moe qwen3_next phi phi3 phimoe olmo olmo2 olmo3 olmoe cohere cohere2
    stablelm starcoder2 granite granitemoe granitemoeshared gpt_bigcode gpt_oss smollm3 glm glm4
    glm4_moe nemotron helium ernie4_5 ernie4_5_moe exaone4 hunyuan_v1_dense hunyuan_v1_moe arcee
    llama4_text biogpt persimmon apertus seed_oss minimax ministral lfm2 deepseek_v2 deepseek_v3
    dots1 jamba bamba falcon bloom mpt xglm gptj codegen gpt_neo doge vaultgemma modernbert-decoder
    diffllama falcon_h1 mamba bert roberta distilbert electra albert modernbert deberta-v2
    xlm-roberta mpnet
"""

# Settings that no row needs to set, with the reason in the group's name.
NOT_OPTIONS = {
    "training and initialization": """
        router_aux_loss_coef aux_loss_coef router_jitter_noise z_loss_coefficient
        output_router_logits input_jitter_noise rescale_prenorm_residual lambda_std_dev
        time_step_min time_step_max
        time_step_floor time_step_limit time_step_scale linear_a_log_min linear_a_log_max
        linear_dt_min linear_dt_max sinusoidal_pos_embds pretraining_tp
    """,
    "speed or precision alone": """
        use_cache reorder_and_upcast_attn slow_but_exact attention_softmax_in_fp32
        scale_attention_softmax_in_fp32 use_mambapy use_associative_scan residual_in_fp32
        mamba_ssm_cache_dtype enable_moe_fp32_combine num_logits_to_keep deterministic_flash_attn
        use_mamba_kernels moe_shared_expert_overlap
    """,
    "replaced by a setting that is set, such as a list of layer kinds": """
        max_window_layers sliding_window_pattern no_rope_layer_interval decoder_sparse_step
        global_attn_every_n_layers moe_layer_interval full_attn_idxs attn_layer_period
        attn_layer_offset expert_layer_period expert_layer_offset moe_layers layers_block_type
        num_hidden_layers max_position_embeddings moe_intermediate_size mlp_layer_types layer_types
        block_auto_adjust_ff_dim
    """,
    "heads that are not built: pooling, classification, later tokens, folding": """
        pooler_hidden_act classifier_pooling classifier_bias classifier_activation
        summary_type summary_use_proj summary_activation summary_proj_to_labels
        summary_first_dropout summary_last_dropout sparse_prediction sparse_pred_ignore_index
        num_mtp_layers num_nextn_predict_layers mtp_layers_block_type is_folding_model
        esmfold_config vocab_list add_cross_attention is_decoder use_bidirectional_attention
    """,
    "sizes that other sizes imply": """
        mamba_expand mamba_d_head expand attention_hidden_size attention_head_dim n_mamba_heads
        time_step_rank task_type_vocab_size inner_group_num
    """,
}

# Settings of single families that the model does not read or refuses to have set.
NOT_READ = {
    "biogpt": "layer_norm_eps",
    "dbrx": "tie_word_embeddings",
    "deberta": "tie_word_embeddings",
    "deberta-v2": "tie_word_embeddings",
    "deepseek_v2": "head_dim norm_topk_prob",
    "doge": "norm_topk_prob",  # divides in place, which no gradient passes
    "electra": "num_attention_heads",  # has 4 by default
    "gpt_oss": "hidden_act",
    "laguna": "moe_apply_router_weight_on_input",
    "minicpm3": "head_dim",
    "mpnet": "relative_attention_num_buckets",
    "mpt": "learned_pos_emb logit_scale no_bias embedding_fraction norm_type",
    "nemotron_h": "tie_word_embeddings attention_bias sliding_window mamba_proj_bias "
    "n_shared_experts",
    "opt": "_remove_final_layer_norm",  # reads old files only
    "phimoe": "num_experts_per_tok",
    "rembert": "tie_word_embeddings",
}


@cache
def model(name: str) -> torch.nn.Module:
    """Return the family's model, built once for all tests."""
    return families.build(name)


@cache
def logits(name: str) -> torch.Tensor:
    """Return the family's logits on the probe."""
    return forward(model(name))


def forward(module: torch.nn.Module) -> torch.Tensor:
    """Return a module's logits on two rows of the probe."""
    with torch.no_grad():
        result: torch.Tensor = module(families.probe(rows=2)).logits
    return result


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_finite_and_varied(name: str) -> None:
    module = model(name)
    assert not module.training
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert logits(name).shape == (2, table.TOKENS, table.VOCAB)
    assert torch.isfinite(logits(name)).all()
    assert logits(name).std() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_bits(name: str) -> None:
    again = families.build(name)
    other = families.build(name, seed=1)
    assert torch.equal(forward(again), logits(name))
    assert not torch.allclose(forward(other), logits(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_option_changes_the_logits(name: str) -> None:
    inactive, redrawn = {}, {}
    for option, changes in families.family(name).options.items():
        neutral = families.build(name, neutral=option)
        change = float((forward(neutral) - logits(name)).std() / logits(name).std())
        if not change > ACTIVE:
            inactive[option] = change
        if "tied" not in option and not any("weight:" in path for path in changes):
            redrawn[option] = _different_weights(model(name), neutral)
    assert not inactive
    # The option alone has changed the logits: what both models have, they have alike.
    assert not any(redrawn.values()), redrawn


def _different_weights(one: torch.nn.Module, other: torch.nn.Module) -> list[str]:
    """Return the parameters that have the same name and shape but other values."""
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    both = [key for key in mine if key in theirs and mine[key].shape == theirs[key].shape]
    assert len(both) > 5
    return [key for key in both if not torch.equal(mine[key], theirs[key])]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_moves_the_logits(name: str) -> None:
    module = families.build(name)
    weights = torch.randn(logits(name).shape, generator=torch.Generator().manual_seed(0))
    (module(families.probe(rows=2)).logits * weights).sum().backward()
    still = [
        key
        for key, parameter in module.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not parameter.grad.any())
        # Selects experts without weighing them (its option is tested), or belongs to another head.
        and not key.endswith(("correction_bias", "expert_bias"))
        and "contact_head" not in key
    ]
    assert not still


@pytest.mark.parametrize("model_type", sorted({families.family(n).model_type for n in NAMES}))
def test_no_setting_is_left_at_its_default(model_type: str) -> None:
    rows = [row for row in map(families.family, NAMES) if row.model_type == model_type]
    known = {word for words in NOT_OPTIONS.values() for word in words.split()}
    known |= set(NOT_READ.get(model_type, "").split())
    ignored = known | set(transformers.PretrainedConfig().to_dict())
    config_class: Any = transformers.CONFIG_MAPPING[model_type]
    left = [
        field.name
        for field in dataclasses.fields(config_class)
        if field.name not in ignored
        and not any(mark in field.name for mark in ("drop", "token_id", "init"))
        and not any(_is_set(row, field) for row in rows)
    ]
    assert not left


def _is_set(row: table.Family, field: dataclasses.Field[Any]) -> bool:
    """Return whether a row sets the field off its default, or names it as an option."""
    named = any(path.split(".")[0] == field.name for path in _paths(row))
    return named or (field.name in row.config and row.config[field.name] != field.default)


def _paths(row: table.Family) -> list[str]:
    return [path for changes in row.options.values() for path in changes]


def test_the_table_covers_the_families() -> None:
    types = {families.family(name).model_type for name in NAMES}
    assert not set(REQUIRED.split()) - types
    assert len(types) >= 65
    assert len(NAMES) == len(set(NAMES))


def test_sizes_can_be_told_apart() -> None:
    sizes = [
        table.VOCAB, table.WIDTH, table.NEURONS, table.LAYERS, table.HEADS, table.KV_HEADS,
        table.HEAD_SIZE, table.CONTEXT, table.TOKENS, table.EXPERTS, table.EXPERT_NEURONS,
        table.SHARED_NEURONS, table.WIDTH // table.HEADS,
    ]  # fmt: skip
    assert len(sizes) == len(set(sizes))
    assert table.WINDOW < table.TOKENS


def test_building_leaves_the_random_state_and_the_network_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = torch.random.get_rng_state()
    families.build("qwen3_next")
    families.probe()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_probe_has_no_special_tokens() -> None:
    ids = families.probe(rows=3)
    assert ids.shape == (3, table.TOKENS)
    assert int(ids.min()) >= families.FIRST_ORDINARY_TOKEN
    assert int(ids.max()) < table.VOCAB
    assert not torch.equal(ids, families.probe(rows=3, seed=1))


def test_the_attention_implementation_is_passed_on() -> None:
    module: Any = families.build("llama", attn_implementation="eager")
    assert module.config._attn_implementation == "eager"
    assert torch.allclose(forward(module), logits("llama"), atol=1e-4)


def test_an_unknown_family_is_an_error_with_the_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match=r"no model family 'lama'.*nearest: .*llama"):
        families.build("lama")


def test_an_unknown_option_is_an_error_with_the_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match=r"'gemma2' has no option.*sliding window"):
        families.build("gemma2", neutral="sliding windows")
