"""The step of a dissection that names latents, on small models and on the shipped specimen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import code_model

from microtome.behaviors import get, quote_closing
from microtome.circuits import Ablator, Circuit
from microtome.dissection import Config, Dissection, dissect
from microtome.dissection.latents import kept_by, name_latents, with_coder
from microtome.errors import ConfigError, ShapeError
from microtome.sae import SAE, Architecture, Origin, save
from microtome.sae import load as load_coder
from microtome.tracing.opening import load

SITE = "blocks.1.resid_post"


def coder(width: int, d_sae: int, *, sites: tuple[str, ...] = (SITE,), seed: int = 0) -> SAE:
    make = Architecture(width, d_sae, activation="topk", k=8)
    return SAE(make, seed=seed, origin=Origin(sources=sites, targets=sites))


def test_what_a_circuit_keeps_of_latents() -> None:
    model = with_coder(code_model(), coder(32, 48))
    examples = quote_closing(20).prepare(model)[:6]
    universe = Ablator(model, examples).universe
    whole = kept_by(model, Circuit(universe, universe, "all"), examples, f"{SITE}/sae")
    moved = ~np.isnan(whole)
    assert 3 < moved.sum() < 48
    np.testing.assert_allclose(whole[moved], 1.0, atol=1e-5)
    # the embedding is never ablated, so an empty circuit still brings something about
    some = Circuit(universe[:3], universe, "some")
    part = kept_by(model, some, examples, f"{SITE}/sae")
    site = f"{SITE}/sae"
    along = total = torch.zeros(48, dtype=torch.float64)
    for example in examples:
        ends = [model.trace([p], capture=site)[site] for p in (example.clean, example.corrupt)]
        mixed = _patched_one_by_one(model, example, some, site)
        along = along + ((ends[0] - ends[1]) * (mixed - ends[1])).double().sum((0, 1))
        total = total + (ends[0] - ends[1]).double().square().sum((0, 1))
    wanted = (along / total).detach().numpy()
    np.testing.assert_allclose(part[moved], wanted[moved], atol=1e-4)
    assert np.abs(part[moved] - 1).max() > 0.05


def _patched_one_by_one(model, example, circuit, site):  # type: ignore[no-untyped-def]
    """The latents with every head and MLP outside a circuit replaced by hand."""
    from microtome.tracing.sites import at

    gone = [p for p in circuit.universe if p not in circuit.kept]
    other = model.trace([example.corrupt], capture=["attn.z", "mlp.out"])
    changes = []
    for part in gone:
        block = part[1:].partition(".h")[0]
        name = f"blocks.{block}.mlp.out" if part[0] == "m" else f"blocks.{block}.attn.z"

        def put(value, name=name, part=part):  # type: ignore[no-untyped-def]
            new = value.clone()
            if part[0] == "m":
                return other[name]
            head = int(part.partition(".h")[2])
            new[:, :, head] = other[name][:, :, head]
            return new

        changes.append(at(name).apply(put))
    return model.trace([example.clean], capture=site, interventions=changes)[site]


def test_latents_are_ranked_confirmed_and_explained() -> None:
    model = with_coder(code_model(), coder(32, 48))
    examples = quote_closing(60).prepare(model)
    splits = tuple(examples.split(s) for s in ("train", "validation", "test"))
    universe = Ablator(model, splits[2]).universe
    circuit = Circuit(universe[:4], universe, "some")
    found = name_latents(model, coder(32, 48), splits, circuit, k=5)  # type: ignore[arg-type]
    assert len(found.table) == 5 and found.considered == 48
    assert found.table["latent"].is_unique
    assert list(found.table["estimated"].abs()) == sorted(
        found.table["estimated"].abs(), reverse=True
    )
    assert (found.table["low"] <= found.table["effect"]).all()
    site = f"{SITE}/sae"
    first = int(found.table["latent"].iloc[0])
    metric = []
    for example in splits[2]:
        corrupt = model.trace([example.corrupt], capture=site)
        from microtome.tracing.sites import at

        logits = [
            model.trace([prompt], interventions=changes).last()[0]
            for prompt, changes in (
                (example.clean, []),
                (example.clean, [at(f"{site}[latent={first}]").patch(corrupt)]),
                (example.corrupt, []),
            )
        ]
        right, wrong = example.answers[0][0], example.wrongs[0][0]
        metric.append([float((row[right] - row[wrong]).detach()) for row in logits])
    base, moved, other = np.array(metric).T
    wanted = (moved - base).mean() / (other - base).mean()
    assert found.table["effect"].iloc[0] == pytest.approx(wanted, abs=1e-4)
    assert found.tokens > 100 and not found.own_text
    assert found.table["when"].str.len().min() > 5
    # behind the last block nothing but latents and error carry the difference
    assert found.error.value == pytest.approx(1 - _without_error(model, splits[2], site), abs=1e-3)
    assert len(found.random) == 20 and np.isfinite(found.random).all()
    assert "best of 20 random sets" in found.sentence and site in found.sentence


def _without_error(model, examples, site):  # type: ignore[no-untyped-def]
    """Faithfulness with only the error ablated."""
    from microtome.circuits import LatentAblator

    ran = LatentAblator(model, examples)
    everything = frozenset(ran.universe)
    values = ran.run([everything, frozenset(), everything - {f"{site}.error"}])["logit_difference"]
    full, empty, kept = values.mean(1)
    return float((kept - empty) / (full - empty))


@pytest.fixture(scope="module")
def dissected() -> Dissection:
    return dissect(
        load("python-code"),
        get("quote-closing", n=60),
        sae=load_coder("python-code"),
        config=Config(nulls=1, edges="off", names=False),
    )


def test_a_dissection_names_latents(dissected: Dissection, tmp_path: Path) -> None:
    assert dissected.latents is not None and not dissected.notes
    found = dissected.latents
    assert len(found.table) == 10
    # ten of 2,048 latents do nearly all of it, no ten others do
    assert found.together.faithfulness.low > 0.8 and found.random.max() < 0.2
    first = found.table.iloc[:3]
    assert (first["low"] > 0.1).all() and (first["kept"] > 0.7).all()
    assert first["when"].str.contains("quotation|['\"]").all()
    page = dissected.to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "What latents of blocks.2.resid_post/sae carry it" in page
    folder = dissected.save_folder(tmp_path / "out")
    assert (folder / "latents.csv").is_file()
    assert json.loads((folder / "run.json").read_text())["latents"]["site"].endswith("/sae")
    back = Dissection.load(folder / "dissection.json")
    assert back.latents is not None
    assert back.latents.table["latent"].tolist() == dissected.latents.table["latent"].tolist()


def test_coders_that_do_not_fit_are_refused_before_anything_runs(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from microtome.cli.app import app

    model = code_model()
    with pytest.raises(ConfigError, match="one site"):
        dissect(model, quote_closing(20), sae=coder(32, 8, sites=()))
    with pytest.raises(ShapeError, match="d_in"):
        dissect(model, quote_closing(20), sae=coder(16, 8))
    ran = CliRunner().invoke(app, ["dissect", "--sae-text", str(tmp_path)])
    assert isinstance(ran.exception, ConfigError)
    folder = save(coder(32, 8), tmp_path / "coder")
    wrong = ["dissect", "python-code", "--sae", str(folder)]
    ran = CliRunner().invoke(app, [*wrong, "--out", str(tmp_path / "out")])
    assert isinstance(ran.exception, ShapeError)
