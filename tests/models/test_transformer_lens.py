"""TransformerLens state dicts: equal to their equations, read where they answer, refused if odd."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.special import erf
from tests.small import lens_arrays

import microtome as mt
from microtome.circuits import ComponentGraph
from microtome.errors import (
    ConfigError,
    MicrotomeError,
    ModelFileError,
    ModelNotFoundError,
    ModelSupportError,
    UnsafeFileError,
)
from microtome.models.lens_tensors import Shape
from microtome.models.readout import Readout
from microtome.models.transformer_lens import LensSettings, load_state_dict

SHAPE = Shape(layers=2, heads=2, size=4, width=8, neurons=12, context=9, vocab=11, labels=3)
ATTENTION_ONLY = Shape(
    layers=2, heads=2, size=4, width=8, neurons=0, context=9, vocab=11, labels=11
)

Arrays = Mapping[str, np.ndarray]

ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "gelu_fast": lambda x: x * (1 + np.tanh(0.7978845608 * x * (1 + 0.044715 * x * x))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def random_arrays(shape: Shape = SHAPE, *, norms: bool = True) -> dict[str, np.ndarray]:
    return lens_arrays(shape, norms=norms)


def as_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(a) for name, a in arrays.items()}


def by_equations(
    w: Arrays, ids: list[int], settings: LensSettings, real: int | None = None
) -> np.ndarray:
    """Logits ``[pos, label]``, head by head in float64, from the definitions alone."""
    real = len(ids) if real is None else real

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        if settings.normalization_type is None:
            return x
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + settings.eps)
        return x * w[f"{name}.w"] + w[f"{name}.b"] if settings.normalization_type == "LN" else x

    w = {name: a.astype(np.float64) for name, a in w.items()}
    stream = w["embed.W_E"][ids] + w["pos_embed.W_pos"][: len(ids)]
    layer = 0
    while f"blocks.{layer}.attn.W_Q" in w:
        at = f"blocks.{layer}"
        read = norm(stream, f"{at}.ln1")
        added = w[f"{at}.attn.b_O"].copy() + np.zeros_like(stream)
        for head in range(w[f"{at}.attn.W_Q"].shape[0]):
            q, k, v = (
                read @ w[f"{at}.attn.W_{p}"][head] + w[f"{at}.attn.b_{p}"][head] for p in "QKV"
            )
            scores = q @ k.T / (settings.attn_scale or np.sqrt(q.shape[-1]))
            hidden = np.arange(len(ids))[None] >= real
            if settings.attention_dir == "causal":
                hidden = hidden | (np.arange(len(ids))[None] > np.arange(len(ids))[:, None])
            scores = np.where(hidden, -np.inf, scores)
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            added += pattern / pattern.sum(-1, keepdims=True) @ v @ w[f"{at}.attn.W_O"][head]
        stream = stream + added
        if f"{at}.mlp.W_in" in w:
            pre = norm(stream, f"{at}.ln2") @ w[f"{at}.mlp.W_in"] + w[f"{at}.mlp.b_in"]
            after = ACTIVATIONS[settings.act_fn or ""](pre)
            stream = stream + after @ w[f"{at}.mlp.W_out"] + w[f"{at}.mlp.b_out"]
        layer += 1
    return norm(stream, "ln_final") @ w["unembed.W_U"] + w["unembed.b_U"]


def error(found: torch.Tensor, wanted: np.ndarray) -> float:
    """Largest difference as a share of the largest value."""
    return float(np.abs(found.numpy() - wanted).max() / np.abs(wanted).max())


FIRST = Readout("first", ("no", "perhaps", "yes"))


@pytest.mark.parametrize(
    "settings",
    [
        *(LensSettings(name, eps=0.02) for name in ACTIVATIONS),
        LensSettings("relu", "bidirectional", readout=FIRST),
        LensSettings("gelu", "bidirectional", "LNPre", attn_scale=1.0),
        LensSettings("gelu", normalization_type="LNPre", eps=0.1),
        LensSettings("relu", normalization_type=None, attn_scale=3.0),
    ],
    ids=str,
)
def test_the_module_computes_the_equations(settings: LensSettings) -> None:
    arrays = random_arrays(norms=settings.normalization_type == "LN")
    model = mt.load(load_state_dict(as_tensors(arrays), settings))
    ids = [3, 1, 4, 1, 5, 9, 2]
    logits = model.trace([ids, ids[:4]]).logits
    assert logits is not None
    for row, prompt in enumerate((ids, ids[:4])):
        wanted = by_equations(arrays, prompt, settings)
        assert error(logits[row, : len(prompt)], wanted) < 1e-5
    assert model.anatomy is not None
    assert model.anatomy.causal == (settings.attention_dir == "causal")
    assert model.verify().passed
    assert [s.name for s in model.sites() if s.name == "blocks.1.mlp.act"]


def test_padding_is_hidden_in_both_directions() -> None:
    settings = LensSettings("relu", "bidirectional", readout=FIRST)
    arrays = random_arrays()
    model = mt.load(load_state_dict(as_tensors(arrays), settings))
    logits = model.trace([[3, 1, 4, 1, 5, 9], [3, 1, 4, 1]], logits="last").logits
    assert logits is not None and logits.shape == (2, 1, 3)
    padded = by_equations(arrays, [3, 1, 4, 1, 0, 0], settings, real=4)
    assert error(logits[1, 0], padded[0]) < 1e-5


def test_attention_only_models_have_heads_alone() -> None:
    settings = LensSettings(None)
    arrays = random_arrays(ATTENTION_ONLY)
    model = mt.load(load_state_dict(as_tensors(arrays), settings))
    logits = model.trace([[3, 1, 4, 1, 5]]).logits
    assert logits is not None
    assert error(logits[0], by_equations(arrays, [3, 1, 4, 1, 5], settings)) < 1e-5
    graph = ComponentGraph.of(model)
    assert graph.sources == ("embed", "a0.h0", "a0.h1", "a1.h0", "a1.h1")


def write(folder: Path, config: Mapping[str, Any], arrays: Arrays, *, npz: bool = False) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if npz:
        np.savez(folder / "model.npz", **arrays)  # type: ignore[arg-type]
    else:
        save_file(dict(arrays), str(folder / "model.safetensors"))
    return folder


CONFIG = {
    "act_fn": "relu", "attention_dir": "bidirectional", "normalization_type": "LN", "eps": 1e-5,
    "attn_scale": 2.0, "n_layers": 2, "n_heads": 2, "d_head": 4, "d_model": 8, "d_mlp": 12,
    "n_ctx": 9, "d_vocab": 11, "d_vocab_out": 3, "positional_embedding_type": "standard",
    "gated_mlp": False, "seed": None, "device": "cpu",
    "readout": {"place": "first", "labels": ["no", "perhaps", "yes"]},
}  # fmt: skip


@pytest.mark.parametrize("npz", [False, True])
def test_a_folder_opens(tmp_path: Path, npz: bool) -> None:
    masks = {"blocks.0.attn.mask": np.tril(np.ones((9, 9), dtype=bool)),
             "blocks.0.attn.IGNORE": np.array([-1e5], dtype=np.float32)}  # fmt: skip
    arrays = random_arrays()
    model = mt.load(write(tmp_path, CONFIG, {**arrays, **masks}, npz=npz))
    assert model.readout == FIRST and model.name == tmp_path.name
    trace = model.trace([[3, 1, 4]], logits="last")
    assert trace.logits is not None
    settings = LensSettings("relu", "bidirectional", attn_scale=2.0)
    assert error(trace.logits[0, 0], by_equations(arrays, [3, 1, 4], settings)[0]) < 1e-5
    assert mt.load(tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def changed(arrays: Arrays, **changes: np.ndarray | None) -> dict[str, np.ndarray]:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return {k: v for k, v in {**arrays, **named}.items() if v is not None}


EYE = np.eye(8, dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "settings", "error", "text"),
    [
        (changed(random_arrays(), blocks__1__attn__W_K=None), LensSettings("relu"),
         ModelFileError, r"1 missing: blocks\.1\.attn\.W_K"),
        (changed(random_arrays(), blocks__0__attn__W_X=EYE), LensSettings("relu"),
         ModelFileError, r"1 unknown: blocks\.0\.attn\.W_X"),
        (changed(random_arrays(), blocks__0__mlp__b_out=EYE), LensSettings("relu"),
         ModelFileError, r"wrong shape: blocks\.0\.mlp\.b_out is \(8, 8\), expected \(8,\)"),
        (changed(random_arrays(), embed__W_E=None), LensSettings("relu"),
         ModelFileError, r"embed\.W_E is missing"),
        (changed(random_arrays(), embed__W_E=np.zeros((8, 11), np.float32)), LensSettings("relu"),
         ModelFileError, "look transposed"),
        (changed(random_arrays(), pos_embed__W_pos=None, blocks__0__attn__rotary_sin=EYE),
         LensSettings("relu"), ModelSupportError, "rotary positions"),
        (random_arrays(norms=False), LensSettings("relu"), ModelFileError, "LNPre"),
        (random_arrays(), LensSettings("relu", normalization_type="LNPre"), ModelFileError, "=LN"),
        (random_arrays(), LensSettings("relu", sizes={"d_mlp": 13}), ModelFileError,
         "d_mlp=13, the tensors 12"),
        (random_arrays(), LensSettings("relu", readout=Readout(labels=("a", "b"))), ModelFileError,
         "3 logits, but 2 labels"),
        (random_arrays(), LensSettings(None), ConfigError, "act_fn is None"),
        (random_arrays(Shape(1, 3, 4, 8, 2, 5, 7, 7)), LensSettings("relu"), ModelSupportError,
         "3 heads of size 4 make 12"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    arrays: Arrays, settings: LensSettings, error: type[MicrotomeError], text: str
) -> None:
    with pytest.raises(error, match=text):
        load_state_dict(as_tensors(arrays), settings)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"act_fn": "solu_ln"}, ConfigError, "solu_ln"),
        ({"gated_mlp": True}, ModelSupportError, "gated_mlp=True"),
        ({"positional_embedding_type": "rotary"}, ModelSupportError, "rotary"),
        ({"normalization_type": "RMS"}, ConfigError, "RMS"),
        ({"attention_dir": "causal"}, ConfigError, "first position"),
        ({"attention_dir": "sideways"}, ConfigError, "sideways"),
        ({"eps": 0.0}, ConfigError, "eps=0.0"),
        ({"n_heads": 4}, ModelFileError, "n_heads=4"),
        ({"readout": {"position": 1}}, ConfigError, "readout is"),
        ({"readout": {"place": "middle"}}, ConfigError, "middle"),
        ({"readout": {"place": "first", "labels": ["a", "a"]}}, ConfigError, "different texts"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[MicrotomeError], text: str
) -> None:
    with pytest.raises(error, match=text):
        mt.load(write(tmp_path, {**CONFIG, **change}, random_arrays()))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    settings = LensSettings("relu")
    with pytest.raises(ModelNotFoundError, match=r"none\.safetensors"):
        load_state_dict(tmp_path / "none.safetensors", settings)
    for name, error in (
        ("m.pt", UnsafeFileError),
        ("m.npz", ModelFileError),
        ("m.safetensors", ModelFileError),
    ):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(error):
            load_state_dict(tmp_path / name, settings)
    with pytest.raises(ModelFileError, match=r"holds 3 \*\.safetensors"):
        mt.load(write(tmp_path, CONFIG, random_arrays()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match="HookedTransformerConfig"):
        mt.load(tmp_path / "empty")


WRONG = (
    "())(()()(((((())()()())))((()))())",
    "(()))(()(((()))((((()((((())(())))))))))",
)
"""The two strings that the classifier is known to call balanced and that are not."""


def test_the_bracket_classifier_is_right_on_its_data(shared_data: Any) -> None:
    folder = shared_data / "models/brackets"
    settings = LensSettings(
        "relu", "bidirectional", readout=Readout("first", ("unbalanced", "balanced"))
    )
    model = mt.load(load_state_dict(folder / "model.safetensors", settings))
    assert sum(p.numel() for p in model.module.parameters()) == 60_986
    rows = json.loads((folder / "brackets_data_20k.json").read_text(encoding="utf-8"))[:4000]
    rows += [(text, False) for text in WRONG]
    tokens = [[0, *(3 if c == "(" else 4 for c in text), 2] for text, _ in rows]
    found = [model.trace(tokens[n : n + 500], logits="last").logits for n in range(0, 4002, 500)]
    answers = torch.cat([f[:, 0].argmax(-1) for f in found if f is not None]).bool().tolist()
    wrong = [n for n, (_, balanced) in enumerate(rows) if balanced != answers[n]]
    assert wrong == [4000, 4001]
    assert model.verify().passed
