"""What every part writes along a reading: backward steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from microtome.circuits.stepping.recorded import projection_bias
from microtome.circuits.stepping.results import Link, Step

if TYPE_CHECKING:
    from microtome.circuits.stepping.readings import Reading
    from microtome.circuits.stepping.recorded import Recorded

BIASES = "biases"


@dataclass(frozen=True, eq=False)
class Contributions:
    """The direct effects of all sources on a reading.

    Attributes:
        parts: Name and position of each source.
        values: Their effects.
        origins: Source position that gives a head most of its effect, and that share of it.
    """

    parts: list[tuple[str, int]]
    values: torch.Tensor
    origins: dict[int, tuple[int, float]]

    def links(self, top: int) -> tuple[tuple[Link, ...], int, float]:
        """Return the strongest links, how many more there are, and the sum of those."""
        total = max(float(self.values.abs().sum()), 1e-30)
        order = torch.argsort(self.values.abs(), descending=True, stable=True)
        chosen = order[:top].tolist()
        rest = order[top:]
        found = []
        for n in chosen:
            part, pos = self.parts[n]
            other, through = self.origins.get(n, (None, 0.0))
            value = float(self.values[n])
            found.append(Link(part, pos, value, value / total, other, through))
        return tuple(found), len(rest), float(self.values[rest].sum())


def contributions(recorded: Recorded, reading: Reading, *, neurons: bool = False) -> Contributions:
    """Return what every source that writes before a reading adds to it.

    Args:
        recorded: The pass.
        reading: What is read.
        neurons: Split each MLP into its neurons.
    """
    parts: list[tuple[str, int]] = []
    values: list[torch.Tensor] = []
    origins: dict[int, tuple[int, float]] = {}
    places = list(reading.positions)
    along = reading.directions
    for name, written in recorded.embeddings.items():
        parts += [(name, p) for p in places]
        values.append((written[places] * along).sum(-1))
    biases = torch.zeros((), dtype=torch.float64)
    for layer in range(recorded.anatomy.n_layers):
        if recorded.order(layer, "attn") < reading.order:
            for head in range(recorded.attention(layer).n_heads):
                by_source, effect = _of_head(recorded, layer, head, places, along)
                for n in range(len(places)):
                    best = int(by_source[n].abs().argmax())
                    origins[len(parts) + n] = (best, float(by_source[n, best]))
                parts += [(f"a{layer}.h{head}", p) for p in places]
                values.append(effect)
            biases = biases + (projection_bias(recorded, layer)[places] * along).sum()
        mlp = recorded.anatomy.blocks[layer].mlp
        if mlp is not None and recorded.order(layer, "mlp") < reading.order:
            whole = (recorded.value(f"blocks.{layer}.mlp.out")[places] * along).sum(-1)
            if neurons and mlp.neurons_add_up:
                single = neuron_effects(recorded, layer, places, along)
                parts += [(f"m{layer}.n{n}", p) for p in places for n in range(single.shape[1])]
                values.append(single.flatten())
                biases = biases + (whole - single.sum(-1)).sum()
            else:
                parts += [(f"m{layer}", p) for p in places]
                values.append(whole)
    parts.append((BIASES, -1))
    return Contributions(parts, torch.cat([*values, biases[None]]), origins)


def _of_head(
    recorded: Recorded, layer: int, head: int, places: list[int], along: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a head's effect by source position ``[place, source]``, and in all ``[place]``."""
    read = along @ recorded.written(layer, head).T
    v = recorded.value(f"blocks.{layer}.attn.v")[:, recorded.group(layer, head)]
    pattern = recorded.value(f"blocks.{layer}.attn.pattern")[head, places]
    z = recorded.value(f"blocks.{layer}.attn.z")[places, head]
    return pattern * (read @ v.T), (z * read).sum(-1)


def neuron_effects(
    recorded: Recorded, layer: int, places: list[int], along: torch.Tensor
) -> torch.Tensor:
    """Return what each neuron writes along directions ``[place, neuron]``."""
    active = recorded.value(f"blocks.{layer}.mlp.act")[places]
    return active * (along @ recorded.neuron_writer(layer).T)


def backward_step(
    recorded: Recorded, reading: Reading, *, top: int, neurons: bool, explains: str = ""
) -> Step:
    """Return the step from a reading to what feeds it."""
    found = contributions(recorded, reading, neurons=neurons)
    links, hidden, hidden_value = found.links(top)
    explained = float(found.values.sum()) + reading.constant
    size = max(float(found.values.abs().sum()) + abs(reading.constant), 1e-30)
    label = reading.label
    if reading.other is not None:
        label += f" of {reading.pos} on {reading.other}" if reading.place.endswith("<q>") else (
            f" of {reading.other} on {reading.pos}"
        )  # fmt: skip
    return Step(
        "backward", reading.place, reading.pos, label, reading.value, reading.constant,
        links, hidden, hidden_value, abs(reading.value - explained) / size, reading.held,
        explains=explains,
    )  # fmt: skip


def neuron_step(
    recorded: Recorded, layer: int, pos: int, direction: torch.Tensor, *, top: int, explains: str
) -> Step:
    """Return the step from what an MLP writes along a direction to its neurons."""
    single = neuron_effects(recorded, layer, [pos], direction[None])[0]
    value = float(recorded.value(f"blocks.{layer}.mlp.out")[pos] @ direction)
    matrix_bias = recorded.model.module.get_submodule(recorded.mlp(layer).down or "")
    bias = getattr(matrix_bias, "bias", None)
    scale = recorded.mlp(layer).scale
    constant = 0.0 if bias is None else float(bias.detach().double().cpu() @ direction) * scale
    found = Contributions([(f"m{layer}.n{n}", pos) for n in range(len(single))], single, {})
    links, hidden, hidden_value = found.links(top)
    size = max(float(single.abs().sum()) + abs(constant), 1e-30)
    error = abs(value - constant - float(single.sum())) / size
    return Step(
        "backward", f"m{layer}", pos, "what it writes along the direction", value, constant,
        links, hidden, hidden_value, error, "", explains=explains,
    )  # fmt: skip
