"""What training in one call and the figures of a coder are given, where it is none of the known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import code_model

from microtome.errors import (
    ConfigError,
    DataError,
    EmptyDataError,
    MicrotomeError,
    PromptError,
    ShapeError,
    SiteError,
    UsageError,
)
from microtome.sae import SAE, Architecture, Config, absorption, disentanglement, stability, train
from microtome.sae.coder import Origin
from microtome.sae.evaluation.facts import facts_of
from microtome.sae.evaluation.labelled import pool
from microtome.sae.evaluation.rows import read_rows
from microtome.sae.evaluation.tokens import at_tokens, first_letters
from microtome.tracing.model import Model

SITE = "blocks.0.resid_post"
TEXTS = [f"x = {i}" for i in range(20)] + [f"def f{i}(a):" for i in range(20)]
LABELS = ["a"] * 20 + ["b"] * 20
CONFIG = Config(k=4, d_sae=32, steps=2, batch_size=16, eval_rows=16)
HALF = json.loads('"x = \\ud800"')


@pytest.fixture(scope="module")
def model() -> Model:
    return code_model()


def coder(seed: int = 0) -> SAE:
    made = SAE(Architecture(32, 64, k=8), seed=seed)
    made.origin = Origin(sources=(SITE,), targets=(SITE,))
    return made


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"text": ""}, EmptyDataError, "text is ''"),  # and not every file of the current folder
        ({"text": " \n"}, EmptyDataError, "give a file, a folder"),
        ({"text": 5}, PromptError, "text is int"),
        ({"text": {"a": 1}}, PromptError, "text is dict"),
        ({"text": ["x = 1", HALF]}, PromptError, "half of a surrogate pair at character 4"),
        ({"text": TEXTS, "site": 5}, SiteError, "got 5"),
        ({"text": TEXTS, "tokens": 2.5}, ConfigError, "tokens=2.5; expected an integer"),
        ({"text": TEXTS, "context": "a"}, ConfigError, "context='a'; expected 2 to 128"),
        ({"text": TEXTS, "tokens": 1}, EmptyDataError, "1 row of activations"),
    ],
)
def test_text_and_sites_that_are_none(
    given: dict[str, Any], error: type[MicrotomeError], message: str, model: Model
) -> None:
    with pytest.raises(error, match=message):
        train(model, CONFIG, **{"site": SITE, **given})


def test_what_is_no_config_or_device_is_refused_before_a_harvest(
    model: Model, tmp_path: Path
) -> None:
    for config, error, message in (
        ("corpus.txt", UsageError, "config is str, 'corpus.txt'"),
        ({"k": 4}, UsageError, "config is dict"),
        (Config(device="cuda:99"), ConfigError, "cuda:99"),
    ):
        with pytest.raises(error, match=message):
            train(model, config, site=SITE, text=TEXTS, folder=tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_prompt_with_half_a_pair_is_refused(model: Model) -> None:
    with pytest.raises(PromptError, match="half of a surrogate pair"):
        model.trace([HALF])


def test_line_separators_inside_json_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [("a\u2028b", "c"), ("a\x85b\u2029", "d")]
    lines = [json.dumps({"text": t, "label": n}, ensure_ascii=False) for t, n in rows]
    path.write_bytes("\r\n".join(lines).encode())
    assert read_rows(path, ("text", "label")) == rows
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="line 1: expected a JSON object"):
        read_rows(path, ("text", "label"))


def test_no_figures_are_made_of_weights_that_are_no_numbers(model: Model) -> None:
    broken = coder(1)
    with torch.no_grad():
        broken.weights["W_dec"][3, 0] = float("nan")
    for measure in (pool, at_tokens):
        with pytest.raises(ShapeError, match="W_dec of the coder holds NaN"):
            measure(model, broken, TEXTS, LABELS)  # type: ignore[operator]
    with pytest.raises(ShapeError, match="W_dec of coder 'other' holds NaN"):
        stability([coder(), broken], names=["one", "other"])


@pytest.mark.parametrize("at", [float("nan"), -0.1, 5.0])
def test_a_cosine_that_is_none_is_refused(at: float) -> None:
    with pytest.raises(ConfigError, match="expected a cosine from 0 to 1"):
        stability([coder(), coder(1)], at=at)


def test_absorption_without_a_class_to_measure(model: Model) -> None:
    data = at_tokens(model, coder(), TEXTS, LABELS)
    with pytest.raises(EmptyDataError, match="the best of 0 has"):
        absorption(data, coder(), classes=[])
    for least in (float("nan"), 2.0):
        with pytest.raises(ConfigError, match="least_f1"):
            absorption(data, coder(), least_f1=least)


def test_a_probe_without_a_hit_is_left_out_at_any_f1(model: Model) -> None:
    data = at_tokens(model, coder(), TEXTS + ["y = 1"] * 4, [*LABELS, *"cccc"])
    values = data.values.copy()
    values[data.labels == 2] = values[data.labels == 0].mean(0)  # nothing to tell it by
    same = type(data)(
        values, data.latents, data.mean_latents, data.labels, data.classes, data.train
    )
    found = absorption(same, coder(), least_f1=0.0)
    assert found.left_out == {"c": 0.0} and "c" not in found.classes
    assert np.isfinite(found.fraction).all()


def test_an_interchange_without_facts_or_with_no_batch(model: Model) -> None:
    with pytest.raises(EmptyDataError, match="there are no facts"):
        disentanglement(model, coder(), [])
    facts = facts_of({"value": {"l": " v"}}, {"l": ["{entity} is"]})
    with pytest.raises(ConfigError, match="batch_size=0"):
        disentanglement(model, coder(), facts, batch_size=0)


def test_a_template_may_hold_other_braces(model: Model) -> None:
    prompts, labels, _ = first_letters(model, ["value"], template="{x: {word} }")
    assert labels == ["v"] and "{x:" in model.tokenizer.decode(prompts[0])
    with pytest.raises(ConfigError, match="n is -1"):
        first_letters(model, n=-1)
