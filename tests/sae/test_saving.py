"""Coders on disk: round trips of every format and make, folding, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.sae.makes import MAKES, made

from microtome.errors import ConfigError, FormatError, UnknownNameError
from microtome.sae import FORMATS, SAE, Architecture, load, save
from microtome.sae.folding import fold_scale, unit_decoder


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_coder_reads_back_as_it_was_or_is_refused_with_the_reason(
    name: str, format: str, tmp_path: Path
) -> None:
    coder = made(name)
    if FORMATS[format].objection(coder):
        with pytest.raises(ConfigError, match="format='microtome' takes it"):
            save(coder, tmp_path / "a", format=format)
        assert not list(tmp_path.iterdir())
        return
    again = load(save(coder, tmp_path / "a", format=format))
    x = torch.randn(50, coder.d_in, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(again.encode(x), coder.encode(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again(x), coder(x), atol=1e-5, rtol=1e-5)


def test_the_own_format_keeps_everything(tmp_path: Path) -> None:
    coder = made("crosscoder")
    again = load(save(coder, tmp_path / "a"))
    assert again.architecture == coder.architecture
    assert again.origin == coder.origin
    for name, value in coder.weights.items():
        assert torch.equal(again.weights[name], value)


def test_a_save_that_loses_the_coder_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    coder = made("relu")
    with torch.no_grad():
        coder.weights["W_dec"] *= 1e6
    with pytest.raises(FormatError, match=r"FVU|NaN or infinity"):
        save(coder, tmp_path / "a", dtype="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["topk", "batchtopk", "gated", "transcoder", "kronecker"])
def test_a_folded_scale_leaves_the_map_as_it_was(name: str) -> None:
    coder, x = made(name), torch.randn(20, 6)
    out = 3.0 if coder.architecture.center else 0.5
    expected = made(name)(3.0 * x) / out
    fold_scale(coder, 3.0, output_scale=out)
    torch.testing.assert_close(coder(x), expected)


def test_scales_that_cannot_be_folded_are_refused() -> None:
    with pytest.raises(ConfigError, match="has one"):
        fold_scale(made("relu"), 2.0, output_scale=3.0)
    with pytest.raises(ConfigError, match="positive"):
        fold_scale(made("relu"), 0.0)
    with pytest.raises(ConfigError, match="tied"):
        fold_scale(made("tied"), 2.0)


@pytest.mark.parametrize("name", ["relu", "batchtopk", "jumprelu", "gated"])
def test_a_unit_decoder_reconstructs_the_same(name: str) -> None:
    coder, x = made(name), torch.randn(20, 6)
    expected = coder(x)
    unit_decoder(coder)
    torch.testing.assert_close(coder(x), expected)
    torch.testing.assert_close(coder.weights["W_dec"].norm(dim=1), torch.ones(12))


def _saelens(tmp_path: Path, **changes: object) -> Path:
    place = save(made("topk"), tmp_path / "s", format="saelens")
    path = place / "cfg.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return place


def test_the_flat_format_before_saelens_6_is_read_as_topk(tmp_path: Path) -> None:
    place = _saelens(
        tmp_path,
        metadata=None,
        architecture=None,
        k=None,
        activation_fn_str="topk",
        activation_fn_kwargs={"k": 3},
        hook_point="blocks.2.hook_resid_pre",
        apply_b_dec_to_input=None,
    )
    coder = load(place)
    assert coder.architecture == made("topk").architecture
    assert coder.origin.sources == ("blocks.2.resid_pre",)


def test_decoder_norms_move_into_the_latents_where_saelens_rescales(tmp_path: Path) -> None:
    coder, x = load(_saelens(tmp_path, rescale_acts_by_decoder_norm=True)), torch.randn(30, 6)
    theirs = made("topk")
    norms = theirs.weights["W_dec"].norm(dim=1)
    pre = (
        (x - theirs.weights["b_dec"]) @ theirs.weights["W_enc"].T + theirs.weights["b_enc"]
    ) * norms
    kept = torch.zeros_like(pre).scatter(1, pre.topk(3).indices, 1.0)
    expected = (pre.relu() * kept / norms) @ theirs.weights["W_dec"] + theirs.weights["b_dec"]
    torch.testing.assert_close(coder(x), expected)


def test_a_scaling_factor_beside_a_checkpoint_is_folded_in(tmp_path: Path) -> None:
    place = _saelens(tmp_path, normalize_activations="expected_average_only_in")
    with pytest.raises(FormatError, match=r"activation_scaler\.json"):
        load(place)
    (place / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 2.0}))
    x = torch.randn(10, 6)
    torch.testing.assert_close(load(place)(x), made("topk")(2 * x) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "temporal"),
        ({"normalize_activations": "layer_norm"}, "row by row"),
        ({"d_in": 7}, r"W_enc .* expected \(7, 12\)"),
        ({"d_sae": "12"}, "expected int"),
        ({"k": None}, "no 'k'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        load(_saelens(tmp_path, **changes))


@pytest.mark.parametrize("format", ["microtome", "saelens", "sparsify", "dictionary-learning"])
def test_truncated_weights_are_refused(format: str, tmp_path: Path) -> None:
    place = save(made("topk"), tmp_path / "a", format=format)
    file = next(p for p in place.iterdir() if p.suffix in (".safetensors", ".pt"))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(FormatError, match=r"truncated|cannot read"):
        load(place)


def test_an_archive_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    place = save(made("topk"), tmp_path / "a", format="dictionary-learning")
    mark = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (mark,))  # type: ignore[return-value]

    torch.save({"encoder.weight": Hostile()}, place / "ae.pt")
    with pytest.raises(FormatError, match="tensors alone"):
        load(place)
    assert not mark.exists()


def test_gemma_scope_files_are_read_without_objects(tmp_path: Path) -> None:
    coder = made("jumprelu")
    place = save(coder, tmp_path / "a", format="gemma-scope")
    assert load(place / "params.npz").architecture.d_sae == 12
    np.savez(tmp_path / "params.npz", W_enc=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="plain arrays"):
        load(tmp_path)


def test_places_and_names_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="no coder"):
        load(tmp_path)
    with pytest.raises(UnknownNameError, match="saelens"):
        save(made("relu"), tmp_path / "a", format="saelen")
    with pytest.raises(ConfigError, match="bfloat16"):
        save(made("relu"), tmp_path / "a", dtype="bf16")
    (tmp_path / "sae.json").write_text('{"format": "microtome.sae", "version": 2}')
    with pytest.raises(FormatError, match="update"):
        load(tmp_path)


def test_matryoshka_groups_of_dictionary_learning_become_prefixes(tmp_path: Path) -> None:
    place = save(made("batchtopk"), tmp_path / "a", format="dictionary-learning")
    state = torch.load(place / "ae.pt", weights_only=True)
    flat = {
        "W_enc": state["encoder.weight"].T.contiguous(),
        "W_dec": state["decoder.weight"].T.contiguous(),
        "b_enc": state["encoder.bias"],
        "b_dec": state["b_dec"],
        "k": state["k"],
        "threshold": state["threshold"],
        "group_sizes": torch.tensor([4, 8]),
    }
    torch.save(flat, place / "ae.pt")
    path = place / "config.json"
    path.write_text(path.read_text().replace("BatchTopKSAE", "MatryoshkaBatchTopKSAE"))
    coder = load(place)
    assert coder.architecture == Architecture(6, 12, activation="batchtopk", k=3, prefixes=(4, 12))
    assert isinstance(coder, SAE)


def test_a_coder_that_bfloat16_changes_can_be_rounded_first(tmp_path: Path) -> None:
    coder = made("jumprelu")
    with pytest.raises(FormatError, match=r"dtype='float16'.*coder\.bfloat16\(\)\.float\(\)"):
        save(coder, tmp_path / "a", dtype="bfloat16")
    save(coder, tmp_path / "b", dtype="float16")
    rounded = made("jumprelu").bfloat16().float()
    again = load(save(rounded, tmp_path / "c", dtype="bfloat16"))
    for name, weight in rounded.weights.items():
        assert torch.equal(again.weights[name], weight), name
