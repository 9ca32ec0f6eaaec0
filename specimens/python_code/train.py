"""Train the Python-code specimen: ``python -m specimens.python_code.train --out DIR``.

Seeded and resumable: the same seed, threads and machine give the same weights, also when the run
was killed in between. The batch of a step depends on the seed and the number of the step alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from specimens.python_code.corpus import SourceFile, python_version, standard_library
from specimens.python_code.generated import Writer, identifiers
from specimens.python_code.muon import Muon
from specimens.python_code.vocabulary import END, SIZE, train_tokenizer


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on, beside the library's files.

    Attributes:
        seed: For initialization, generated code and batches.
        steps: Optimizer steps of the first stage.
        finish: Steps of a second stage at a quarter of the rates, on balanced generated code.
        batch: Windows per step.
        context: Tokens per window.
        layers: Blocks.
        width: d_model.
        heads: Heads per block.
        vocab: Tokens.
        snippets: Generated snippets.
        share: Share of windows from generated code.
        muon_rate: Learning rate of the weight matrices.
        adam_rate: Learning rate of embeddings, norms and biases.
        warmup: Steps of linear warm-up.
        decay: Share of the steps, at the end, over which the rates fall linearly to zero.
        threads: Torch threads.
    """

    seed: int = 0
    steps: int = 2000
    finish: int = 300
    batch: int = 24
    context: int = 256
    layers: int = 4
    width: int = 176
    heads: int = 8
    vocab: int = SIZE
    snippets: int = 40_000
    share: float = 0.33
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    warmup: int = 60
    decay: float = 0.45
    threads: int = 2


@dataclass(frozen=True, eq=False)
class Streams:
    """Token streams.

    Attributes:
        code: Training files, separated by the end token.
        made: Generated snippets, separated likewise.
        balanced: Generated snippets of the second stage.
        validation: Validation files.
    """

    code: np.ndarray
    made: np.ndarray
    balanced: np.ndarray
    validation: np.ndarray


def prepare(recipe: Recipe, files: list[SourceFile]) -> tuple[PreTrainedTokenizerFast, Streams]:
    """Train the tokenizer and turn all text into token streams."""
    train = [f.text for f in files if f.split == "train"]
    held = [f.text for f in files if f.split == "validation"]
    writer = Writer(np.random.default_rng([recipe.seed, 1]), identifiers(train))
    snippets = [writer.snippet() for _ in range(recipe.snippets)]
    second = Writer(np.random.default_rng([recipe.seed, 3]), identifiers(train), balanced=True)
    balanced = [second.snippet() for _ in range(recipe.snippets // 4)]
    tokenizer = train_tokenizer([*train, *snippets[: recipe.snippets // 10]], recipe.vocab)
    streams = (_stream(tokenizer, texts) for texts in (train, snippets, balanced, held))
    return tokenizer, Streams(*streams)


def _stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    end = tokenizer.convert_tokens_to_ids(END)
    encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.concatenate([np.array([*e.ids, end], dtype=np.int32) for e in encoded])


def new_model(recipe: Recipe, end: int) -> GPT2LMHeadModel:
    """Return the freshly initialized network."""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=recipe.vocab,
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )
    return GPT2LMHeadModel(config)


def batch_of(recipe: Recipe, streams: Streams, step: int) -> torch.Tensor:
    """Return the windows ``[batch, context + 1]`` of one step; the same ones for the same step."""
    rng = np.random.default_rng([recipe.seed, 2, step])
    made = int(round(recipe.share * recipe.batch))
    stream = streams.made if step < recipe.steps else streams.balanced
    rows = [_window(rng, stream, recipe.context) for _ in range(made)]
    rows += [_window(rng, streams.code, recipe.context) for _ in range(recipe.batch - made)]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def _window(rng: np.random.Generator, stream: np.ndarray, context: int) -> np.ndarray:
    start = int(rng.integers(len(stream) - context - 1))
    return stream[start : start + context + 1]


def rate(recipe: Recipe, step: int) -> float:
    """Return the factor on the learning rates: warm-up, constant, then linear to zero, twice."""
    if step >= recipe.steps:
        return 0.25 * (recipe.steps + recipe.finish - step) / max(recipe.finish, 1)
    falling = recipe.steps * (1 - recipe.decay)
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 1.0 if step < falling else max((recipe.steps - step) / (recipe.steps - falling), 0.0)


def optimizers(recipe: Recipe, model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for everything else."""
    matrices, others = [], []
    for name, weight in model.named_parameters():
        inside = ".h." in name and weight.ndim == 2
        (matrices if inside else others).append(weight)
    return [
        Muon(matrices, lr=recipe.muon_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def loss_of(model: GPT2LMHeadModel, windows: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token loss in nats."""
    logits = model(windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def validation_loss(recipe: Recipe, model: GPT2LMHeadModel, streams: Streams) -> float:
    """Return the loss in nats per token on the first windows of the validation files."""
    size = recipe.context + 1
    count = min(len(streams.validation) // size, 64)
    windows = torch.from_numpy(
        streams.validation[: count * size].reshape(count, size).astype(np.int64)
    )
    return float(np.mean([loss_of(model, part).item() for part in windows.split(16)]))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, then rename it."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def train(
    recipe: Recipe, out: Path, *, every: int = 100, files: list[SourceFile] | None = None
) -> Path:
    """Train, or go on where a checkpoint in ``out`` stopped.

    Args:
        recipe: The recipe.
        out: Folder for the checkpoint, the curve and the result.
        every: Steps between checkpoints.
        files: The corpus; the standard library by default.

    Returns:
        The folder with the trained model and tokenizer in float32.

    Raises:
        ValueError: If the checkpoint in ``out`` belongs to another recipe.
    """
    torch.set_num_threads(recipe.threads)
    out.mkdir(parents=True, exist_ok=True)
    corpus = standard_library() if files is None else files
    tokenizer, streams = prepare(recipe, corpus)
    model = new_model(recipe, tokenizer.convert_tokens_to_ids(END))
    groups = optimizers(recipe, model)
    curve: list[dict[str, float]] = []
    start, seconds = _resume(out / "checkpoint.pt", recipe, model, groups, curve)
    began = time.monotonic() - seconds
    last = recipe.steps + recipe.finish
    for step in range(start, last):
        loss = _step(recipe, model, groups, batch_of(recipe, streams, step), step)
        if (step + 1) % every == 0 or step + 1 == last:
            held = validation_loss(recipe, model, streams)
            seconds = time.monotonic() - began
            curve.append(
                {"step": step + 1, "train": loss, "validation": held, "seconds": round(seconds, 1)}
            )
            print(json.dumps(curve[-1]), flush=True)
            state = {"recipe": asdict(recipe), "step": step + 1, "model": model.state_dict()}
            state["optimizers"] = [g.state_dict() for g in groups]
            state.update(curve=curve, seconds=seconds)
            save_checkpoint(out / "checkpoint.pt", state)
    result = out / "float32"
    model.save_pretrained(result, safe_serialization=True)
    tokenizer.save_pretrained(result)
    facts = {
        "recipe": asdict(recipe),
        "python": python_version(),
        "curve": curve,
        "tokens": {
            "code": len(streams.code),
            "generated": len(streams.made),
            "balanced": len(streams.balanced),
        },
        "files": [{"path": f.path, "split": f.split, "sha256": f.sha256} for f in corpus],
    }
    (out / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return result


def _step(
    recipe: Recipe,
    model: GPT2LMHeadModel,
    groups: list[torch.optim.Optimizer],
    windows: torch.Tensor,
    step: int,
) -> float:
    factor = rate(recipe, step)
    for group, base in zip(groups, (recipe.muon_rate, recipe.adam_rate), strict=True):
        for part in group.param_groups:
            part["lr"] = base * factor
    loss = loss_of(model, windows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in groups:
        group.step()
        group.zero_grad(set_to_none=True)
    return loss.item()


def _resume(
    path: Path,
    recipe: Recipe,
    model: GPT2LMHeadModel,
    groups: list[torch.optim.Optimizer],
    curve: list[dict[str, float]],
) -> tuple[int, float]:
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise ValueError(
            f"{path} belongs to another recipe: {state['recipe']}. Use another folder."
        )
    model.load_state_dict(state["model"])
    for group, saved in zip(groups, state["optimizers"], strict=True):
        group.load_state_dict(saved)
    curve.extend(state["curve"])
    return int(state["step"]), float(state["seconds"])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and result")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=Recipe.threads)
    options = parser.parse_args()
    recipe = Recipe(steps=options.steps, seed=options.seed, threads=options.threads)
    print(train(recipe, options.out))


if __name__ == "__main__":
    main()
