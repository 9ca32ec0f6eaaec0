"""``microtome circuit graph``: page, picture, JSON for viewers, refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.small import code_model, save_model
from typer.testing import CliRunner, Result

from microtome.circuits import exchange
from microtome.cli.app import app
from microtome.errors import FormatError, MicrotomeError
from microtome.sae import SAE, Architecture, Origin, save

PROMPT = "data = 'value"


@dataclass(frozen=True)
class Folders:
    """A model, a cross-layer transcoder, and a folder with a transcoder of each block."""

    model: str
    across: str
    single: str


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    place = tmp_path_factory.mktemp("coders")
    reads, writes = (tuple(f"blocks.{n}.mlp.{end}" for n in range(2)) for end in ("in", "out"))
    sites = {"sources": (32, 32), "targets": (32, 32), "activation": "relu"}
    across = Architecture(64, 32, reach="later", center=False, **sites)  # type: ignore[arg-type]
    save(SAE(across, origin=Origin(reads, writes)), place / "across")
    for n in range(2):
        one = Architecture(32, 20, activation="topk", k=4, center=False)
        coder = SAE(one, seed=n, origin=Origin((reads[n],), (writes[n],)))
        save(coder, place / "single" / f"block{n}")
    model = save_model(code_model(), place / "model")
    return Folders(str(model), str(place / "across"), str(place / "single"))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["circuit", "graph", *arguments, "--threads", "1"])


def refused(code: str, *arguments: str) -> str:
    error = call(*arguments).exception
    assert isinstance(error, MicrotomeError) and error.code == code, error
    return str(error)


@pytest.mark.parametrize("which", ["across", "single"])
def test_json_says_what_the_exported_file_does(
    folders: Folders, which: str, tmp_path: Path
) -> None:
    export = tmp_path / "quotes.json"
    options = ("--coder", getattr(folders, which), "--export", str(export), "--slug", "quotes")
    options += ("--nodes", "1", "--edges", "1")
    found = json.loads(call(folders.model, PROMPT, *options, "--json").stdout)
    assert 0 < found["replacement"] < 1 and found["unsummed"] < 1e-4
    document = exchange.read_attribution_graph(export)
    assert document.slug == "quotes" and len(document.links) == len(found["edges"])
    assert {link.weight for link in document.links} == {e["effect"] for e in found["edges"]}
    read = exchange.graph_of_latents(document)
    assert read.prompt == found["prompt"]
    kinds = {node["kind"] for node in found["nodes"]}
    assert kinds == {"embedding", "error", "latent", "logit"}


@pytest.mark.parametrize("content", ['{"block0/latent3": "a"}', '{"0/3": null}', '{"0/3": 5}'])
def test_labels_that_can_name_no_latent_are_refused(
    folders: Folders, content: str, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(content)
    options = ("--coder", folders.across, "--labels", str(labels))
    said = refused(FormatError.code, folders.model, PROMPT, *options)
    assert "expected a text by block and latent" in said


def test_page_and_picture(folders: Folders, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({f"0/{n}": f"reads <b> {n}" for n in range(16)}))
    options = (folders.model, PROMPT, "--coder", folders.across, "--labels", str(labels))
    options += ("--nodes", "1", "--edges", "1")
    page = tmp_path / "graph.html"
    result = call(*options, "--out", str(page))
    assert result.exit_code == 0, result.output
    assert "replacement" in result.stdout and "embed@" in result.stdout
    text = page.read_text(encoding="utf-8")
    assert (
        "<svg" in text
        and "<b>" not in text
        and "reads &lt;b&gt;" in text
        and "completeness" in text
    )
    assert "http://" not in text.replace("http://www.w3.org", "")
    picture = tmp_path / "graph.svg"
    assert call(*options, "--out", str(picture), "--max-edges", "5").exit_code == 0
    assert picture.read_text(encoding="utf-8").startswith("<svg")


def test_from_text_to_a_graph_by_commands_alone(folders: Folders, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    lines = [{"text": f"data = 'value{n}'\nname = 'item{n}'\n"} for n in range(30)]
    text.write_text("\n".join(json.dumps(line) for line in lines))
    acts, run = str(tmp_path / "acts"), str(tmp_path / "run")
    commands = (
        ["harvest", folders.model, str(text), "--site", "mlp.in", "--site", "mlp.out",
         "--out", acts],
        ["train", acts, "--out", run, "--site", "mlp.in->mlp.out", "--reach", "later",
         "--latents", "64", "--k", "8", "--steps", "30", "--batch-size", "64", "--json"],
    )  # fmt: skip
    for command in commands:
        result = CliRunner().invoke(app, ["sae", *command, "--threads", "1"])
        assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(
        call(folders.model, PROMPT, "--coder", run + "/sae", "--nodes", "1", "--json").stdout
    )
    assert found["unsummed"] < 1e-4 and found["followed"] > 0


def test_refusals(folders: Folders, tmp_path: Path) -> None:
    options = (folders.model, PROMPT, "--coder")
    assert "no coder" in refused("MT071", *options, folders.model + "/nothing")
    assert "ends in .html" in refused("MT001", *options, folders.across, "--out", "graph.png")
    assert "nodes=2" in refused("MT003", *options, folders.across, "--nodes", "2")
    plain = tmp_path / "plain"
    save(SAE(Architecture(32, 8, activation="relu")), plain)
    assert "does not say where" in refused("MT003", *options, str(plain))
