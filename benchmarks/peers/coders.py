"""Reads and writes coders with the package whose format they are in, in its environment.

``python coders.py PEER read FOLDER KIND ...`` loads the coder in FOLDER/KIND, encodes and decodes
the inputs in FOLDER/KIND.npz and puts the results beside them; ``write`` makes a coder of its own
first. All kinds in one process: these packages take long to import.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch


def saelens(action: str, folder: Path, kind: str, inputs: torch.Tensor) -> tuple[Any, Any]:
    """Return latents and reconstruction by SAELens."""
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class

    if action == "write":
        make, config = get_sae_class(kind)
        common: dict[str, Any] = {"d_in": inputs.shape[1], "d_sae": 4 * inputs.shape[1]}
        if kind in ("topk", "abstopk"):
            common |= {"k": 3, "rescale_acts_by_decoder_norm": kind == "topk"}
        if "transcoder" in kind:
            common |= {"d_out": inputs.shape[1] - 2, "apply_b_dec_to_input": False}
        coder = make(config(**common))
        _randomize(coder)
        coder.save_model(folder)
    coder = SAE.load_from_disk(folder)
    coder.eval()
    return coder.encode(inputs), coder(inputs)


def sparsify(action: str, folder: Path, kind: str, inputs: torch.Tensor) -> tuple[Any, Any]:
    """Return latents and reconstruction by sparsify."""
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    if action == "write":
        skip = kind == "skip"
        config = SparseCoderConfig(
            num_latents=4 * inputs.shape[1], k=3, skip_connection=skip, transcode=skip
        )
        coder = SparseCoder(inputs.shape[1], config)
        _randomize(coder)
        coder.save_to_disk(folder)
    coder = SparseCoder.load_from_disk(folder, device="cpu")
    found = coder.encode(inputs)
    latents = torch.zeros(len(inputs), coder.num_latents)
    latents.scatter_(1, found.top_indices, found.top_acts)
    return latents, coder(inputs).sae_out


def dictionary_learning(
    action: str, folder: Path, kind: str, inputs: torch.Tensor
) -> tuple[Any, Any]:
    """Return latents and reconstruction by dictionary_learning."""
    # Its pinned nnsight cannot be imported beside current transformers, and is not used here.
    sys.modules.setdefault("nnsight", types.ModuleType("nnsight"))
    sys.modules["nnsight"].LanguageModel = object  # type: ignore[attr-defined]
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    d, m = inputs.shape[1], 4 * inputs.shape[1]
    classes = {
        "relu": dictionary.AutoEncoder,
        "gated": dictionary.GatedAutoEncoder,
        "jumprelu": dictionary.JumpReluAutoEncoder,
        "topk": AutoEncoderTopK,
        "batchtopk": BatchTopKSAE,
    }
    make = classes[kind]
    sizes: tuple[int, ...] = (d, m, 3) if kind in ("topk", "batchtopk") else (d, m)
    if action == "write":
        coder = make(*sizes)
        _randomize(coder)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(coder.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": make.__name__, "activation_dim": d, "dict_size": m, "k": 3}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    state = torch.load(folder / "ae.pt")
    coder = make(*sizes)
    coder.load_state_dict(state)
    return coder.encode(inputs), coder(inputs)


def _randomize(coder: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, value in [*coder.named_parameters(), *coder.named_buffers()]:
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator) * 0.4
                value.copy_(noise.abs() if "threshold" in name else value + noise)


def main() -> None:
    """Run from the command line."""
    peer, action, folder, *kinds = sys.argv[1:]
    torch.set_num_threads(1)
    for kind in kinds:
        place = Path(folder) / kind
        arrays = place.with_suffix(".npz")
        with np.load(arrays) as file:
            inputs = torch.from_numpy(file["inputs"])
        try:
            with torch.no_grad():
                latents, outputs = globals()[peer](action, place, kind, inputs)
        except Exception as error:  # reported for this kind; the others go on
            place.with_suffix(".failed").write_text(f"{type(error).__name__}: {error}")
            continue
        np.savez(arrays, inputs=inputs.numpy(), latents=latents.numpy(), outputs=outputs.numpy())


main()
