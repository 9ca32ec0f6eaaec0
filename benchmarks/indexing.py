"""Indexing the active latents of a wide coder over a million tokens: seconds and bytes."""

from __future__ import annotations

import resource
import time

import torch
from specimens.python_code.corpus import standard_library

import microtome as mt
from microtome.sae import SAE, Architecture, Origin, index
from microtome.sae.reading.examples import top_examples
from microtome.sae.reading.explanations import explain
from microtome.sae.reading.families import Families

SITE, LATENTS, K, TOKENS = "blocks.2.resid_post", 16_384, 32, 1_000_000


def table() -> str:
    """Return what indexing, and reading from the index, takes on one thread."""
    torch.set_num_threads(1)
    model = mt.load("python-code")
    width = model.trace([[1]], capture=[SITE])[SITE].shape[-1]
    make = Architecture(width, LATENTS, activation="topk", k=K)
    coder = SAE(make, origin=Origin((SITE,), (SITE,)))
    texts = [f.text for f in standard_library()]
    wall, cpu = time.perf_counter(), time.process_time()
    found = index(model, coder, texts, tokens=TOKENS)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    size = sum(
        array.nbytes
        for rows in (found.by_token, found.by_latent)
        for array in (rows.offsets, rows.numbers, rows.values)
    )
    begun = time.process_time()
    for latent in range(100):
        if found.counts[latent]:
            top_examples(found, latent)
    reading = time.process_time() - begun
    begun = time.process_time()
    families = Families.of(found)
    shared = time.process_time() - begun
    begun = time.process_time()
    for latent in range(10):
        explain(families, latent)
    explaining = (time.process_time() - begun) / 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return "\n".join(
        (
            f"{found.n_tokens:,} tokens, {LATENTS:,} latents, k {K}, one thread",
            f"index             {wall:7.1f} s ({cpu:.1f} CPU s), {size / 1e6:,.0f} MB",
            f"top examples      {10 * reading:7.2f} ms a latent",
            f"rules, shared     {shared:7.1f} CPU s",
            f"explanation       {1000 * explaining:7.0f} CPU ms a latent",
            f"peak memory       {peak:7,.0f} MB",
        )
    )
