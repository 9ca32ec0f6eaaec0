"""Files that no one should have written, folders that are taken, disks that are full."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.sae.makes import MAKES, made

from microtome.errors import ConfigError, FormatError, OutputError, ShapeError
from microtome.sae import FORMATS, SAE, Architecture, Origin, load, save

CONFIGS = {
    "saelens": "cfg.json",
    "sparsify": "cfg.json",
    "dictionary-learning": "config.json",
    "microtome": "sae.json",
}


def edited(place: Path, format: str, make: str, change: dict[str, Any]) -> Path:
    """Save a coder and change fields of its configuration, ``a.b`` being b in a."""
    place = save(made(make), place / "edited", format=format)
    path = place / CONFIGS[format]
    config = json.loads(path.read_text())
    for name, value in change.items():
        inner = config
        *outer, last = name.split(".")
        for key in outer:
            inner = inner[key]
        inner[last] = value
    path.write_text(json.dumps(config))
    return place


FLAT = {"metadata.sae_lens_version": "5.9"}


@pytest.mark.parametrize(
    ("format", "make", "change"),
    [
        ("saelens", "topk", {"k": 99}),
        ("saelens", "topk", {"k": 0}),
        ("saelens", "topk", {"k": 2.7}),
        ("saelens", "topk", {"k": float("nan")}),
        ("saelens", "topk", {"k": float("inf")}),
        ("saelens", "topk", {"k": True}),
        ("saelens", "topk", {"d_in": -6}),
        ("saelens", "topk", {"metadata": [1]}),
        ("saelens", "topk", {"metadata.sae_lens_version": "new"}),
        ("saelens", "topk", {"architecture": ["topk"]}),
        ("saelens", "relu", {**FLAT, "activation_fn": "tanh-relu"}),
        ("saelens", "topk", {**FLAT, "activation_fn": "topk", "activation_fn_kwargs": [3]}),
        ("sparsify", "topk", {"k": 99}),
        ("sparsify", "topk", {"k": 0}),
        ("sparsify", "topk", {"num_latents": 5}),
        ("dictionary-learning", "topk", {"trainer": 5}),
        ("dictionary-learning", "topk", {"trainer.dict_class": "Other"}),
        ("microtome", "kronecker", {"architecture.kronecker": [1, 2]}),
        ("microtome", "kronecker", {"architecture.kronecker": [-2, -3, 2]}),
        ("microtome", "crosscoder", {"architecture.sources": [2.0, 4.0]}),
        ("microtome", "relu", {"architecture.center": "no"}),
        ("microtome", "relu", {"origin.sources": "abc"}),
        ("microtome", "relu", {"origin.sources": [1]}),
        ("microtome", "relu", {"origin.details": None}),
    ],
)
def test_a_configuration_of_no_coder_is_refused_with_its_path(
    format: str, make: str, change: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=CONFIGS[format]):
        load(edited(tmp_path, format, make, change))


@pytest.mark.parametrize("format", CONFIGS)
@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b"\xff\xfe", b"null"])
def test_a_configuration_that_is_no_object_is_refused(
    format: str, text: bytes, tmp_path: Path
) -> None:
    place = save(made("topk"), tmp_path / "a", format=format)
    (place / CONFIGS[format]).write_bytes(text)
    with pytest.raises(FormatError, match=CONFIGS[format]):
        load(place)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(entry: object, tmp_path: Path) -> None:
    place = save(made("topk"), tmp_path / "a")
    header = json.dumps({"W_enc": entry}).encode()
    (place / "sae.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    with pytest.raises(FormatError, match="cannot read"):
        load(place)


def test_a_header_too_deep_to_parse_is_refused(tmp_path: Path) -> None:
    place = save(made("topk"), tmp_path / "a")
    header = b"[" * 100_000
    (place / "sae.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FormatError, match="header"):
        load(place)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32])
def test_weights_of_a_type_that_is_not_computed_with_are_refused(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    place = save(made("topk"), tmp_path / "a")
    weights = load_file(place / "sae.safetensors")
    save_file(weights | {"W_enc": weights["W_enc"].to(dtype)}, place / "sae.safetensors")
    with pytest.raises(FormatError, match="W_enc"):
        load(place)


def test_weights_of_two_types_are_read_in_the_wider_one(tmp_path: Path) -> None:
    place = save(made("topk"), tmp_path / "a", format="saelens")
    weights = load_file(place / "sae_weights.safetensors")
    weights["W_enc"] = weights["W_enc"].double()
    save_file(weights, place / "sae_weights.safetensors")
    x = torch.randn(4, 6)
    torch.testing.assert_close(load(place)(x.double()).float(), made("topk")(x))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", torch.tensor([1, 2])),
        ("k", torch.tensor(float("nan"))),
        ("k", torch.tensor(99)),
        ("group_sizes", torch.tensor([1, 2])),
        ("group_sizes", torch.tensor([3.5, 8.5])),
        ("group_sizes", torch.tensor(3)),
        ("threshold", torch.tensor([1.0, 2.0])),
        ("encoder.weight", torch.zeros(12, 6).to_sparse()),
        ("encoder.weight", torch.zeros(12, 6, device="meta")),
    ],
)
def test_a_state_dictionary_of_no_coder_is_refused(
    name: str, value: torch.Tensor, tmp_path: Path
) -> None:
    place = save(made("batchtopk"), tmp_path / "a", format="dictionary-learning")
    torch.save(torch.load(place / "ae.pt", weights_only=True) | {name: value}, place / "ae.pt")
    with pytest.raises(FormatError):
        load(place)


def test_the_april_coder_of_dictionary_learning_subtracts_no_bias(tmp_path: Path) -> None:
    place = save(made("relu"), tmp_path / "a", format="dictionary-learning")
    state = torch.load(place / "ae.pt", weights_only=True)
    state["decoder.bias"] = state.pop("bias")
    torch.save(state, place / "ae.pt")
    path = place / "config.json"
    path.write_text(path.read_text().replace('"AutoEncoder"', '"AutoEncoderNew"'))
    x = torch.randn(9, 6)
    latents = (x @ state["encoder.weight"].T + state["encoder.bias"]).relu()
    torch.testing.assert_close(load(place).encode(x), latents)
    expected = latents @ state["decoder.weight"].T + state["decoder.bias"]
    torch.testing.assert_close(load(place)(x), expected)


def test_a_gated_coder_that_subtracts_nothing_is_written_to_one_that_does(tmp_path: Path) -> None:
    make = Architecture(6, 12, activation="gated", center=False)
    coder = SAE(make, weights={k: v.detach() for k, v in made("gated").weights.items()})
    again = load(save(coder, tmp_path / "a", format="dictionary-learning"))
    x = torch.randn(20, 6)
    torch.testing.assert_close(again.encode(x), coder.encode(x))


def test_the_threshold_of_a_checkpoint_is_in_units_of_the_rescaled_latents(tmp_path: Path) -> None:
    coder = made("topk")
    place = edited(
        tmp_path,
        "saelens",
        "topk",
        {"architecture": "batchtopk", "rescale_acts_by_decoder_norm": True},
    )
    weights = load_file(place / "sae_weights.safetensors")
    weights["topk_threshold"] = torch.tensor(0.7, dtype=torch.float64)
    save_file(weights, place / "sae_weights.safetensors")
    x = torch.randn(40, 6)
    pre = (x - coder.weights["b_dec"]) @ coder.weights["W_enc"].T + coder.weights["b_enc"]
    scaled = pre * coder.weights["W_dec"].norm(dim=1)
    torch.testing.assert_close(load(place).encode(x), scaled.relu() * (scaled > 0.7))


def test_a_decoder_row_of_zeros_stays_one(tmp_path: Path) -> None:
    place = edited(tmp_path, "saelens", "topk", {"rescale_acts_by_decoder_norm": True})
    weights = load_file(place / "sae_weights.safetensors")
    weights["W_dec"][0] = 0
    save_file(weights, place / "sae_weights.safetensors")
    assert bool(torch.isfinite(load(place)(torch.randn(30, 6))).all())


def test_a_fine_tuned_factor_is_not_dropped_in_silence(tmp_path: Path) -> None:
    place = save(made("relu"), tmp_path / "a", format="saelens")
    weights = load_file(place / "sae_weights.safetensors")
    save_file(
        weights | {"scaling_factor": torch.full((12,), 2.0)}, place / "sae_weights.safetensors"
    )
    with pytest.raises(FormatError, match="scaling_factor"):
        load(place)
    save_file(weights | {"scaling_factor": torch.ones(12)}, place / "sae_weights.safetensors")
    assert load(place).d_sae == 12


@pytest.mark.parametrize(
    "text", ["{}", '{"scaling_factor": null}', '{"scaling_factor": -1}', '{"scaling_factor": NaN}']
)
def test_a_scale_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    change = {"normalize_activations": "expected_average_only_in"}
    place = edited(tmp_path, "saelens", "topk", change)
    (place / "activation_scaler.json").write_text(text)
    with pytest.raises(FormatError, match="scaling_factor"):
        load(place)


def test_a_coder_moved_to_another_site_is_written_with_its_new_hook(tmp_path: Path) -> None:
    coder = load(save(made("relu"), tmp_path / "a", format="saelens"))
    coder.origin = Origin(
        ("blocks.7.resid_pre",), ("blocks.7.resid_pre",), details=coder.origin.details
    )
    again = load(save(coder, tmp_path / "b", format="saelens"))
    assert again.origin.sources == ("blocks.7.resid_pre",)


def test_a_coder_beside_one_of_another_format_is_refused(tmp_path: Path) -> None:
    save(made("topk"), tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    with pytest.raises(ConfigError, match="mistaken"):
        save(made("tied"), tmp_path / "a", format="sparsify")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    save(made("topk"), tmp_path / "b")
    assert load(save(made("relu"), tmp_path / "b")).architecture.activation == "relu"
    assert (tmp_path / "b" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_leaves_nothing_and_is_named(format: str, tmp_path: Path) -> None:
    make = Architecture(64, 512, activation="jumprelu" if format == "gemma-scope" else "topk")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            save(SAE(make), tmp_path / "a", format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("far", [0, 40])
@pytest.mark.parametrize("weight", ["W_enc", "W_dec", "b_dec", "threshold"])
def test_what_changes_between_writing_and_reading_is_noticed(
    weight: str, far: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder = made("jumprelu")
    with torch.no_grad():  # far out, inputs of an ordinary size activate nothing
        coder.weights["threshold"].add_(far)
    known = FORMATS["microtome"]

    def write(coder: SAE, folder: Path, dtype: torch.dtype) -> None:
        known.write(coder, folder, dtype)
        path = folder / "sae.safetensors"
        weights = load_file(path)
        weights[weight] *= 0.5
        save_file(weights, path)

    monkeypatch.setitem(FORMATS, "microtome", replace(known, write=write))
    with pytest.raises(FormatError, match="refused to save"):
        save(coder, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_sample_that_says_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="rows that differ"):
        save(made("topk"), tmp_path / "a", sample=torch.ones(5, 6))
    with pytest.raises(ShapeError, match="NaN"):
        save(made("topk"), tmp_path / "a", sample=torch.full((5, 6), float("nan")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", MAKES)
def test_half_precision_is_read_close_or_refused(name: str, format: str, tmp_path: Path) -> None:
    coder = made(name)
    if FORMATS[format].objection(coder):
        return
    x = torch.randn(50, coder.d_in, generator=torch.Generator().manual_seed(5))
    try:
        again = load(save(coder, tmp_path / "a", format=format, dtype="float16"))
    except FormatError as error:
        assert "refused to save" in str(error)
        return
    assert all(w.dtype == torch.float32 for w in again.weights.values())
    apart = (again(x) - coder(x)).detach().square().sum() / coder(x).detach().square().sum()
    assert float(apart) < 1e-3
