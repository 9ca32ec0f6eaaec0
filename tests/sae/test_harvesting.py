"""Harvesting: rows are the model's own values, aligned, masked, and the same after any stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.errors import (
    ConfigError,
    DataError,
    EmptyDataError,
    FormatError,
    PromptError,
    TokenizerError,
    UsageError,
)
from microtome.sae import ActivationStore, harvest
from microtome.sae.harvesting.documents import deal, read_documents
from microtome.sae.harvesting.manifest import Manifest
from microtome.tracing.model import Model
from microtome.tracing.opening import load

from ..small import code_model

SITES = ("blocks.0.mlp.in", "blocks.0.mlp.out", "blocks.1.attn.z")


@pytest.fixture(scope="module")
def model() -> Model:
    return code_model()


def documents(count: int = 30, *, seed: int = 0, longest: int = 70) -> list[list[int]]:
    """Lists of token ids of different length, without special ones."""
    stream = np.random.default_rng(seed)
    return [stream.integers(1, 300, n).tolist() for n in stream.integers(1, longest, count)]


def rows_of(store: ActivationStore) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """Each row of a store by document and place."""
    found = {}
    for number in range(len(store.manifest.shards)):
        shard = store.shard(number)
        for row in range(len(shard["doc"])):
            key = (int(shard["doc"][row]), int(shard["pos"][row]))
            assert key not in found or key[1] == -1
            found[key] = {name: value[row] for name, value in shard.items()}
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_rows_are_what_the_model_computes_for_each_token(model: Model, tmp_path: Path) -> None:
    texts = documents()
    store = harvest(
        model, texts, sites=SITES, folder=tmp_path / "a", context=32, dtype="float32",
        shard_rows=200, outliers=None,
    )  # fmt: skip
    found = rows_of(store)
    assert set(found) == {(d, p) for d, ids in enumerate(texts) for p in range(len(ids))}
    assert len(store.manifest.shards) == 6
    for number, ids in enumerate(texts):
        for start in range(0, len(ids), 32):
            piece = ids[start : start + 32]
            trace = model.trace([piece], capture=SITES, logits=None)
            for place, token in enumerate(piece):
                row = found[number, start + place]
                assert int(row["token_id"]) == token
                for site in SITES:
                    expected = trace[site][0, place].flatten()
                    torch.testing.assert_close(row[site], expected, rtol=1e-4, atol=1e-5)


def test_every_row_begins_with_bos_and_no_row_has_it_inside(tmp_path: Path) -> None:
    given = code_model()
    model = Model(
        given.module, tokenizer=given.tokenizer, anatomy=given.anatomy, name="with bos", bos=True
    )
    texts = documents(8)
    options = {"sites": "blocks.1.resid_post", "context": 16, "dtype": "float32", "outliers": None}
    masked = harvest(model, texts, folder=tmp_path / "a", **options)
    found = rows_of(masked)
    assert set(found) == {(d, p) for d, ids in enumerate(texts) for p in range(len(ids))}
    pieces = sum(-(-len(ids) // 15) for ids in texts)
    assert masked.manifest.masked == {"special": pieces, "outliers": 0}
    ids = next(t for t in texts if len(t) > 20)
    trace = model.trace([[0, *ids[15:30]]], capture="blocks.1.resid_post", logits=None)
    torch.testing.assert_close(
        found[texts.index(ids), 15]["blocks.1.resid_post"],
        trace["blocks.1.resid_post"][0, 1],
        rtol=1e-4,
        atol=1e-5,
    )
    kept = harvest(model, texts, folder=tmp_path / "b", mask_special=False, **options)
    assert kept.rows == masked.rows + pieces
    assert (-1) in {pos for _, pos in rows_of(kept)}


def test_special_tokens_are_masked_and_counted(model: Model, tmp_path: Path) -> None:
    store = harvest(
        model, [[5, 6, 0, 7], [0, 0], [8]], sites="blocks.0.resid_post", folder=tmp_path / "a"
    )
    assert set(rows_of(store)) == {(0, 0), (0, 1), (0, 3), (2, 0)}
    assert json.loads((tmp_path / "a/manifest.json").read_text())["masked"]["special"] == 3
    with pytest.raises(EmptyDataError, match="All 2 tokens were masked"):
        harvest(model, [[0, 0]], sites="blocks.0.resid_post", folder=tmp_path / "b")


def test_a_shard_may_be_empty(model: Model, tmp_path: Path) -> None:
    texts = [[5, 6], [0, 0], [7, 8]]
    store = harvest(model, texts, sites="resid_post", folder=tmp_path / "a", shard_rows=2)
    assert [s.rows for s in store.manifest.shards] == [2, 0, 2]
    store.verify()
    stream = store.batches(4, seed=0)
    assert len(next(stream)["blocks.0.resid_post"].unique(dim=0)) == 4
    stream.close()


def test_a_model_in_another_type(tmp_path: Path) -> None:
    given = code_model()
    stored = {}
    for dtype in (torch.bfloat16, torch.float64):
        model = load(given.module.to(dtype), tokenizer=given.tokenizer)
        folder = tmp_path / str(dtype)
        stored[dtype] = harvest(model, [[5, 6, 7]], sites="resid_post", folder=folder)
    assert [s.manifest.settings.dtype for s in stored.values()] == ["bfloat16", "float16"]
    assert stored[torch.float64].manifest.settings.model_dtype == "float64"


def test_rows_of_outlying_norm_are_masked_at_every_site(tmp_path: Path) -> None:
    model = code_model()
    with torch.no_grad():
        model.module.transformer.wte.weight[77] *= 1000
    texts = [[1, 2, 3, 77, 4, 5], [6, 7, 8, 9]]
    options = {"sites": ["resid_pre", "blocks.1.mlp.out"], "dtype": "float32"}
    store = harvest(model, texts, folder=tmp_path / "a", **options)
    assert (0, 3) not in rows_of(store)
    assert store.manifest.masked["outliers"] == 10 - store.rows > 0
    kept = harvest(model, texts, folder=tmp_path / "b", outliers=None, **options)
    assert kept.rows == 10
    with pytest.raises(DataError, match=r"too large for float16 in 1 rows .*'bfloat16'"):
        with torch.no_grad():
            model.module.transformer.wte.weight[77] *= 100
        harvest(
            model, texts, sites="resid_pre", folder=tmp_path / "c", outliers=None, dtype="float16"
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_moments_in_the_manifest_are_those_of_the_stored_rows(
    model: Model, tmp_path: Path, dtype: str
) -> None:
    store = harvest(
        model, documents(), sites=SITES, folder=tmp_path / "a", dtype=dtype, shard_rows=150
    )
    facts = json.loads((tmp_path / "a/manifest.json").read_text())["sites"]
    for site in SITES:
        shards = [store.shard(i)[site] for i in range(len(store.manifest.shards))]
        assert {s.dtype for s in shards} == {getattr(torch, dtype)}
        exact = torch.cat(shards).double()
        torch.testing.assert_close(store.mean(site), exact.mean(0))
        listed = torch.tensor(facts[site]["second_moment"], dtype=torch.float64)
        torch.testing.assert_close(listed, exact.square().mean(0))
        power = exact.square().sum(1).mean().item()
        assert store.scale(site) == pytest.approx((store.width(site) / power) ** 0.5)
        median = exact.norm(dim=1).median().item()
        assert facts[site]["norm_quantiles"]["0.5"] == pytest.approx(median, rel=0.02)


def test_batches_of_a_store_hold_its_rows_aligned(model: Model, tmp_path: Path) -> None:
    store = harvest(
        model, documents(), sites=SITES, folder=tmp_path / "a", dtype="float32", shard_rows=100
    )
    assert len(store.manifest.shards) > 8
    together = {
        tuple(np.round(row[SITES[0]].tolist(), 6)): row[SITES[2]] for row in rows_of(store).values()
    }
    stream = store.batches(store.rows, seed=3)
    for _ in range(2):
        batch = next(stream)
        for x, y in zip(batch[SITES[0]], batch[SITES[2]], strict=True):
            assert torch.equal(together[tuple(np.round(x.tolist(), 6))], y)
        totals = [batch[SITES[1]].double().mean(0), store.mean(SITES[1])]
        torch.testing.assert_close(*totals)
    stream.close()
    again = ActivationStore(tmp_path / "a").batches(64, seed=3, start=5)
    first = store.batches(64, seed=3)
    for _ in range(5):
        next(first)
    assert all(torch.equal(a, b) for a, b in zip(next(again).values(), next(first).values(), strict=True))  # fmt: skip  # noqa: E501
    again.close()
    first.close()


def test_batches_mix_documents_as_well_as_a_full_shuffle(model: Model, tmp_path: Path) -> None:
    # documents in shards of their own, each much longer than a batch's share
    texts = documents(60, longest=100)
    store = harvest(
        model, texts, sites="blocks.0.resid_pre", folder=tmp_path / "a", dtype="float32",
        shard_rows=200,
    )  # fmt: skip
    by_value = {
        tuple(row["blocks.0.resid_pre"].tolist()): key[0] for key, row in rows_of(store).items()
    }
    stream = store.batches(store.rows, seed=0)
    order = [by_value[tuple(x.tolist())] for x in next(stream)["blocks.0.resid_pre"]]
    stream.close()
    in_text = np.repeat(np.arange(60), [len(t) for t in texts])
    mixed = np.array(order)
    limit = 4 / np.sqrt(len(mixed))
    for lag in (1, 2, 5, 20):
        assert abs(autocorrelation(mixed, lag)) < limit
    assert autocorrelation(in_text, 1) > 0.9
    same = float((mixed[1:] == mixed[:-1]).mean())
    by_chance = float((np.bincount(in_text) / len(in_text)).__pow__(2).sum())
    assert same < 3 * by_chance


def autocorrelation(values: np.ndarray, lag: int) -> float:
    return float(np.corrcoef(values[:-lag], values[lag:])[0, 1])


def test_documents_are_dealt_whole_and_long_ones_in_stretches() -> None:
    read = read_documents([list(range(1, 11)), [], list(range(1, 200)), [3]], tokenizer=None)
    assert read.numbers == (0, 2, 3)
    shards = deal(read, 4, 3)
    places = [{(p.document, p.start) for p in shard} for shard in shards]
    assert {(0, 0), (0, 4), (0, 8)} <= places[0]
    long = sorted(p.start for shard in shards for p in shard if p.document == 2)
    assert long == list(range(0, 199, 4))
    assert all(any(d == 2 for d, _ in shard) for shard in places)
    cut = read_documents([[1, 2, 3], [4, 5, 6]], tokenizer=None, tokens=5)
    assert [ids.tolist() for ids in cut.ids] == [[1, 2, 3], [4, 5]]


def test_texts_come_from_strings_files_and_folders(model: Model, tmp_path: Path) -> None:
    texts = ["x = 1\n", "", "for i in y:\n"]
    (tmp_path / "a.txt").write_text(texts[0])
    (tmp_path / "b.txt").write_text(texts[2])
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n\n" for t in texts))
    ids = [model.tokenize(t) for t in (texts[0], texts[2])]
    read = read_documents(texts, tokenizer=model.tokenizer)
    assert [tuple(i) for i in read.ids] == ids
    assert read.numbers == (0, 2)
    lines = read_documents(tmp_path / "c.jsonl", tokenizer=model.tokenizer)
    assert lines.sha256 == read.sha256
    folder = read_documents(str(tmp_path), tokenizer=model.tokenizer)
    assert [tuple(i) for i in folder.ids] == ids * 2
    with pytest.raises(TokenizerError):
        read_documents(texts, tokenizer=None)
    with pytest.raises(DataError, match="cannot be read"):
        read_documents("no such text", tokenizer=model.tokenizer)
    with pytest.raises(EmptyDataError, match="of 2 documents"):
        read_documents(["", ""], tokenizer=model.tokenizer)
    with pytest.raises(PromptError, match="Document 1"):
        read_documents([[1], 3.5], tokenizer=None)
    (tmp_path / "d.jsonl").write_text('{"txt": 3}\n')
    with pytest.raises(DataError, match="line 1"):
        read_documents(tmp_path / "d.jsonl", tokenizer=model.tokenizer)


class Stopped(Exception):
    pass


class StopAt:
    """A progress that ends the work at its n-th report."""

    def __init__(self, n: int) -> None:
        self.left = n

    def step(self, done: int, total: int, label: str) -> None:
        assert 0 < done <= total
        assert label == "harvest"
        self.left -= 1
        if self.left == 0:
            raise Stopped


def begin(model: Model, folder: Path, **options) -> ActivationStore:
    settings = {"sites": SITES, "context": 32, "shard_rows": 150, "batch_size": 4, **options}
    return harvest(model, documents(20), folder=folder, **settings)


def test_a_stopped_harvest_goes_on_with_the_same_bytes(model: Model, tmp_path: Path) -> None:
    begin(model, tmp_path / "whole")
    for stop in (1, 5, 9):
        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(Stopped):
            begin(model, folder, progress=StopAt(stop))
        with pytest.raises(FormatError, match=r"stopped after \d of 5 shards"):
            ActivationStore(folder)
        (folder / ".acts-00004.safetensors.abc.tmp").write_bytes(b"a part")
        with pytest.raises(UsageError, match="holds a harvest already"):
            begin(model, folder)
        begin(model, folder, resume=True)
        assert contents(folder) == contents(tmp_path / "whole")
    begin(model, tmp_path / "whole", resume=True, progress=StopAt(1))


def test_lost_shards_are_written_anew(model: Model, tmp_path: Path) -> None:
    store = begin(model, tmp_path / "a")
    before = contents(tmp_path / "a")
    (tmp_path / "a/acts-00001.safetensors").unlink()
    (tmp_path / "a/acts-00003.safetensors").write_bytes(before["acts-00003.safetensors"][:-1])
    again = begin(model, tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == before
    assert again.fingerprint == store.fingerprint


def test_a_harvest_goes_on_only_under_the_same_settings(model: Model, tmp_path: Path) -> None:
    begin(model, tmp_path / "a")
    for options, message in (
        ({"context": 16}, "context: 32, now 16"),
        ({"seed": 1}, "seed: 0, now 1"),
        ({"sites": SITES[0]}, "sites: "),
    ):
        with pytest.raises(ConfigError, match=message):
            begin(model, tmp_path / "a", resume=True, **options)
    with pytest.raises(ConfigError, match="model: "):
        begin(code_model(seed=1), tmp_path / "a", resume=True)


def test_one_site_of_every_block_and_one_head(model: Model, tmp_path: Path) -> None:
    store = begin(model, tmp_path / "a", sites=["mlp.out", "blocks.1.attn.z[head=2]"])
    assert store.sites == ("blocks.0.mlp.out", "blocks.1.mlp.out", "blocks.1.attn.z[head=2]")
    assert store.width("blocks.1.attn.z[head=2]") == 8


def test_the_manifest_says_what_the_activations_were_made_of(model: Model, tmp_path: Path) -> None:
    store = begin(model, tmp_path / "a")
    manifest = Manifest.read(tmp_path / "a")
    assert manifest.settings.model == model.fingerprint
    assert len(manifest.settings.tokenizer) == len(manifest.settings.text) == 64
    assert manifest.settings.dtype == "float16"
    assert manifest.origin["threads"] == 1
    assert manifest.rows == store.rows
    assert sum(s.tokens for s in manifest.shards) == manifest.settings.tokens
    assert manifest.settings.tokens == store.rows + sum(manifest.masked.values())
