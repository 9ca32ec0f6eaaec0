"""Bad disks, damaged shards, other models and settings out of range: clear errors, nothing lost."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from microtome.errors import (
    ConfigError,
    DataError,
    FormatError,
    ModelSupportError,
    OutputError,
    ShapeError,
    SiteAbsentError,
    SiteError,
    TokenizerError,
    UnknownNameError,
)
from microtome.sae import ActivationStore, harvest
from microtome.tracing.model import Model
from microtome.tracing.opening import load

from ..small import code_model
from .test_harvesting import SITES, StopAt, begin, contents


@pytest.fixture(scope="module")
def model() -> Model:
    return code_model()


def full_disk(after: int) -> Callable[..., None]:
    """A writer of safetensors whose disk is full in the middle of one shard."""
    from safetensors.torch import save_file

    written = []

    def write(tensors, path, *rest):
        save_file(tensors, path, *rest)
        written.append(path)
        if len(written) > after:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

    return write


def test_a_disk_that_fills_up_in_mid_shard_loses_nothing(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(model, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full_disk(2))
        with pytest.raises(OutputError, match=r"No space left.*2 of 5 shards are whole.*resume"):
            begin(model, tmp_path / "a")
    assert set(contents(tmp_path / "a")) == {
        "manifest.json",
        "acts-00000.safetensors",
        "acts-00001.safetensors",
    }
    begin(model, tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_too_little_room_is_noticed_before_the_work(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="read fewer tokens"):
        begin(model, tmp_path / "a", progress=StopAt(1))


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = code_model()
    with torch.no_grad():
        model.module.transformer.wte.weight[9] = float("nan")
    with pytest.raises(ShapeError, match=r"token 2 of document 1 \(id 9\)"):
        harvest(model, [[1, 2], [3, 4, 9]], sites="blocks.0.resid_pre", folder=tmp_path / "a")


def test_damaged_stores_are_refused(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    begin(model, folder)
    good = contents(folder)
    shard = good["acts-00002.safetensors"]

    def verify() -> None:
        ActivationStore(folder).verify()

    def read() -> None:
        store = ActivationStore(folder)
        next(store.batches(store.rows, seed=0))

    verify()
    changed = shard[:-3] + bytes([shard[-3] ^ 1]) + shard[-2:]
    for damaged, message in (
        (shard[: len(shard) // 2], "is truncated"),
        (shard + b"0", "is damaged"),
        (changed, "other SHA-256"),
    ):
        (folder / "acts-00002.safetensors").write_bytes(damaged)
        for check in (verify, read):
            with pytest.raises(FormatError, match=message + ".*resume"):
                check()
    ActivationStore(folder, hashes=False).shard(2)
    (folder / "acts-00002.safetensors").unlink()
    for check in (verify, read):
        with pytest.raises(FormatError, match="is missing"):
            check()
    other = json.loads(good["manifest.json"])
    for text, message in (
        (good["manifest.json"][:-100].decode(), "not valid JSON"),
        ("[]", "not a manifest"),
        (json.dumps({**other, "version": 2}), "update microtome"),
        (json.dumps({**other, "rows": 3, "shards": other["shards"][:-1]}), "do not fit together"),
        (json.dumps({**other, "settings": {}}), "is damaged"),
        (json.dumps({**other, "sites": {SITES[0]: {}}}), "damaged moments"),
    ):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(FormatError, match=message):
            ActivationStore(folder)
    with pytest.raises(FormatError, match="sae harvest"):
        ActivationStore(tmp_path / "nothing")


def test_activations_of_another_model_are_refused(model: Model, tmp_path: Path) -> None:
    begin(model, tmp_path / "a")
    assert ActivationStore(tmp_path / "a", model=model).width("blocks.1.attn.z") == 32
    with pytest.raises(DataError, match="of another model"):
        ActivationStore(tmp_path / "a", model=code_model(seed=1))


def test_settings_out_of_range_are_refused(model: Model, tmp_path: Path) -> None:
    for options, error, message in (
        ({"context": 1000}, ConfigError, "expected 2 to 128"),
        ({"context": 1}, ConfigError, "expected 2 to 128"),
        ({"tokens": 0}, ConfigError, "tokens=0"),
        ({"batch_size": 0}, ConfigError, "batch_size=0"),
        ({"outliers": 0.5}, ConfigError, "above 1"),
        ({"seed": -1}, ConfigError, "seed is -1"),
        ({"dtype": "float61"}, UnknownNameError, "nearest: float16"),
        ({"sites": "blocks.0.mlp.outt"}, SiteError, "mlp.out"),
        ({"sites": "blocks.0.mlp.gate"}, SiteAbsentError, "mlp.gate"),
        ({"sites": "blocks.0.attn.pattern"}, SiteError, "no row for each token"),
        ({"sites": "blocks.0.mlp.out[pos=-1]"}, SiteError, "selects positions"),
        ({"sites": []}, SiteError, "no sites"),
    ):
        with pytest.raises(error, match=message):
            begin(model, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
    image = load(torch.nn.Sequential(torch.nn.Linear(3, 3)).eval())
    with pytest.raises(ModelSupportError, match="harvest"):
        begin(image, tmp_path / "a", sites="module:0:out")


def test_a_bos_rule_needs_a_tokenizer(model: Model, tmp_path: Path) -> None:
    bare = Model(model.module, anatomy=model.anatomy, bos=True)
    with pytest.raises(TokenizerError):
        begin(bare, tmp_path / "a")
