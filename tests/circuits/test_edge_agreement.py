"""Agreement with auto-circuit's arrays on shared weights, and of estimates with exact patching.

The arrays hold the gradient of each edge's mask summed over a batch whose metric is the batch's
mean, so that they are means over pairs: the scale of EAP is 1. Mask-IG is the sum over masks at
0, 1/5, ..., 1, which is 6 times the mean over them.
"""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from microtome.behaviors import Example, Examples
from microtome.circuits import EdgeAblator, find
from microtome.circuits.edges.scores import EdgeScores
from microtome.tracing.model import Model
from microtome.tracing.opening import load

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MICROTOME_SHARED_DATA") or ROOT.parent / "shared" / "data")
PEERS = DATA.parent / "bench" / "peers"
ARRAYS = PEERS / "data"

TOLERANCE = 1e-4
"""Largest error as a share of the largest score."""


def common() -> ModuleType:
    """The peers' shared definition of model, batch and metric."""
    path = PEERS / "circuits_common.py"
    if not path.is_file():
        pytest.skip(f"{path} is not in the shared folder")
    spec = importlib.util.spec_from_file_location("circuits_common", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def examples_of(batch: tuple[np.ndarray, ...]) -> Examples:
    clean, corrupt, good, bad = (part.tolist() for part in batch)
    return Examples(
        tuple(
            Example(i, tuple(c), tuple(d), ((g,),), ((b,),), f"c{i % 5}", "t", "train", {}, {}, "")
            for i, (c, d, g, b) in enumerate(zip(clean, corrupt, good, bad, strict=True))
        )
    )


def toy() -> tuple[Model, Examples]:
    """Two layers of four heads and 110 edges, with the weights of numpy's PCG64."""
    shared = common()
    config = GPT2Config(
        n_layer=2, n_head=4, n_embd=64, vocab_size=500, n_positions=1024, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    module = GPT2LMHeadModel(config).eval()
    assert shared.fill_state_dict(module, 0) == "2c5402e88e38bcc6"
    return load(module), examples_of(shared.make_batch(d_vocab=500))


def error(scores: EdgeScores, name: str, scale: float) -> float:
    """Largest difference from an array, as a share of its largest entry."""
    wanted = np.load(ARRAYS / f"circuits_auto_circuit_{name}.npz")["scores"]
    assert scores.matrix().shape == wanted.shape
    found = np.nan_to_num(scores.matrix()) * scale
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_edge_attribution_is_auto_circuits() -> None:
    assert error(find(*toy(), method="eap"), "EAP_2l", 1.0) < TOLERANCE


def test_mask_gradients_are_auto_circuits() -> None:
    scores = find(*toy(), method="mask-ig", steps=5, nodes="ends")
    assert error(scores, "EAP-IG_2l", 6.0) < TOLERANCE


@pytest.mark.slow
def test_edge_attribution_of_gpt2_small_is_auto_circuits() -> None:
    shared = common()
    config = GPT2Config(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, n_positions=1024)
    module = GPT2LMHeadModel(config).eval()
    assert shared.fill_state_dict(module, 0) == "4b23df4f5e02f3de"
    scores = find(load(module), examples_of(shared.make_batch()), method="eap")
    assert len(scores.universe) == 32_491
    assert error(scores, "EAP_12l", 1.0) < TOLERANCE


@pytest.mark.parametrize(
    ("method", "least"),
    [("eap", 0.90), ("eap-ig", 0.99), ("clean-corrupted", 0.98), ("eap-ig-activations", 0.99),
     ("mask-ig", 0.92)],
)  # fmt: skip
def test_estimates_correlate_with_every_edge_patched_alone(method: str, least: float) -> None:
    model, examples = toy()
    exact = find(model, examples, method="exact-edges")
    assert np.corrcoef(find(model, examples, method=method).mean, exact.mean)[0, 1] > least


def test_routes_know_nothing_of_the_behavior() -> None:
    model, examples = toy()
    exact = find(model, examples, method="exact-edges")
    routes = find(model, examples, method="information-flow")
    assert abs(np.corrcoef(routes.mean, exact.mean)[0, 1]) < 0.2


def test_every_edge_alone_takes_less_than_a_second() -> None:
    model, examples = toy()
    ablator = EdgeAblator(model, examples)
    cuts = [np.array([number]) for number in range(ablator.graph.n_edges)]
    ablator.run_without(cuts[:2])
    began = time.process_time()
    ablator.run_without(cuts)
    assert ablator.graph.n_edges == 110
    assert time.process_time() - began < 1.0
