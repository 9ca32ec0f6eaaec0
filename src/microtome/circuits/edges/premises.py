"""What circuits of edges rest on, measured: targets read the normed stream, writes add up to it."""

from __future__ import annotations

import torch

from microtome.circuits.edges.reading import Reading
from microtome.circuits.edges.writing import differences, write_sites
from microtome.errors import ModelSupportError
from microtome.models.compare import relative_error, tolerance
from microtome.tracing.trace import Trace

ALLOWED = 8.0
"""Multiple of the usual tolerance that a sum or a norm may be off, formed apart from the pass."""


def check(reading: Reading) -> None:
    """Require both on a random prompt.

    Raises:
        ModelSupportError: If one does not hold.
    """
    width = min(8, reading.anatomy.context or 8)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, reading.anatomy.vocab, (2, width), generator=generator)
    reads = _reads(reading)
    sites = [*write_sites(reading), reading.last_stream, *(s for r in reads for s in (r[0], r[2]))]
    trace = reading.model.trace(tokens, capture=list(dict.fromkeys(sites)), logits=None)
    _check_reads(reading, reads, trace)
    _check_writes(reading, trace)


def _reads(reading: Reading) -> list[tuple[str, str, str]]:
    """Return the stream, the norm and what is received, of every block's attention and MLP."""
    found: list[tuple[str, str, str]] = []
    for stage in reading.stages:
        for ports in stage.ports:
            found.append((stage.stream, stage.attn_norm, f"module:{ports.columns.path}:in"))
        if stage.mlp_target is not None:
            found.append((stage.mlp_stream, stage.mlp_norm, f"blocks.{stage.layer}.mlp.in"))
    return found


def _check_reads(reading: Reading, reads: list[tuple[str, str, str]], trace: Trace) -> None:
    allowed = ALLOWED * tolerance(reading.model.dtype)
    for stream, norm, received in reads:
        with torch.no_grad():
            expected = reading.norm(norm)(trace.value(stream))
        value = trace.value(received)
        if value.numel() != expected.numel() or not (
            relative_error(value.reshape(expected.shape), expected) <= allowed
        ):
            raise ModelSupportError(
                f"{received} is not the residual stream behind {norm or 'no norm'}, so edges into "
                "it are not defined in this model; use circuits of nodes."
            )


def _check_writes(reading: Reading, trace: Trace) -> None:
    """Require that two prompts' last streams differ by what the sources write differently."""
    values = {site: trace.value(site) for site in write_sites(reading)}
    one, two = ({site: v[row : row + 1] for site, v in values.items()} for row in (0, 1))
    written = differences(reading, one, two, stop=len(reading.stages)).float().sum(1)
    stream = trace.value(reading.last_stream).float()
    off = relative_error(written, stream[:1] - stream[1:])
    if not off <= ALLOWED * tolerance(reading.model.dtype):
        raise ModelSupportError(
            f"What the embedding, the heads and the MLPs write does not add up to the last stream "
            f"(relative error {off:.1e}): something else writes to it, which a circuit of edges "
            "has no part for; use circuits of nodes."
        )
