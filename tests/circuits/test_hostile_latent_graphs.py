"""Attribution graphs from other hands: files that say less, or something else; wrong numbers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.circuits.test_latent_graphs import PROMPT, coded, whole

from microtome.circuits import exchange, latent_graph
from microtome.errors import ConfigError, FormatError
from microtome.models.readout import parse_readout

OWN = "microtome_latents"


def written(folder: Path) -> dict[str, Any]:
    path = folder / "graph.json"
    graph = exchange.latents_as_graph(whole().prune(), slug="abc")
    exchange.write_attribution_graph(path, graph)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def read(folder: Path, record: dict[str, Any]) -> Any:
    path = folder / "changed.json"
    path.write_text(json.dumps(record))
    return exchange.graph_of_latents(exchange.read_attribution_graph(path))


def test_a_graph_of_another_program_is_written_again(tmp_path: Path) -> None:
    record = written(tmp_path)
    del record["metadata"][OWN]
    graph = read(tmp_path, record)
    assert np.isnan(graph.bias).all() and np.isnan(graph.unsummed)
    path = tmp_path / "again.json"
    exchange.write_attribution_graph(path, exchange.latents_as_graph(graph.prune(edges=0.9)))
    again = exchange.graph_of_latents(exchange.read_attribution_graph(path))
    assert again.node_names == graph.prune(edges=0.9).node_names
    np.testing.assert_array_equal(again.effects, graph.prune(edges=0.9).effects)


@pytest.mark.parametrize("name", ["n_blocks", "active", "followed", "bias", "values"])
@pytest.mark.parametrize("value", ["x", [], 3.5])
def test_fields_of_another_kind_are_named(name: str, value: Any, tmp_path: Path) -> None:
    record = written(tmp_path)
    with pytest.raises(FormatError, match=name):
        changed = copy.deepcopy(record)
        changed["metadata"][OWN][name] = value
        read(tmp_path, changed)
    own = record["metadata"][OWN][name]
    if isinstance(own, dict):
        own[next(iter(own))] = "x"
        with pytest.raises(FormatError, match=f"a number of '{name}'.*expected a finite number"):
            read(tmp_path, record)


@pytest.mark.parametrize("name", ["max_logits", "max_latents", "batch_size"])
def test_numbers_that_are_not_whole_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=2.5"):
        latent_graph(coded(), PROMPT, name="tc", **{name: 2.5})  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [[["no"], ["yes"]], ["no", 3], ["no", "no"], [""]])
def test_labels_that_are_no_texts_are_refused(labels: list[Any]) -> None:
    with pytest.raises(ConfigError, match="labels of a readout"):
        parse_readout({"labels": labels})
