"""The compiler: from a program to an ordinary GPT-2-shaped module without layer norms.

The module is a Hugging Face ``GPT2LMHeadModel`` whose norms are identities and whose neurons are
ReLUs, so that it opens like any other model. Weights are made in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.circuits.truth.heads import HeadWeights, head_of
from microtome.circuits.truth.layout import Layout, lay_out
from microtome.circuits.truth.neurons import Neurons, add_neurons
from microtome.circuits.truth.programs import Program
from microtome.circuits.truth.rasp import (
    INDICES,
    TOKENS,
    Aggregate,
    InverseWidth,
    Operation,
    Value,
    evaluate,
    in_order,
)
from microtome.circuits.truth.realism import (
    DEAD_WIDTH,
    DECOY_WIDTH,
    Decoys,
    Realism,
    copied,
    rotation,
)
from microtome.core.seeds import rng

if TYPE_CHECKING:
    from microtome.tracing.model import Model

BOS, UNKNOWN = "<s>", "<unk>"

PROBED = 5
"""Token ids from which on a model's anatomy is probed."""

SHARPNESS = 30.0
"""What a selected key scores before the softmax: all else keeps less than 1e-6 of the attention."""

READOUT = 4.0
"""Logit of the right answer where every other is 0."""


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled program.

    Attributes:
        program: The program.
        realism: How it is hidden.
        seed: Seed of everything that was drawn.
        layout: Where its operations live, before the rotation.
        module: The Hugging Face module.
        vocabulary: Tokens by id.
        heads: Number of each head's block and head to the operation it computes.
        mlps: Number of each MLP's block to the operations it computes.
    """

    program: Program
    realism: Realism
    seed: int
    layout: Layout
    module: Any
    vocabulary: tuple[str, ...]
    heads: dict[tuple[int, int], Operation]
    mlps: dict[int, tuple[Operation, ...]]

    @property
    def output(self) -> Operation:
        """The program's last operation."""
        return self.layout.output

    @property
    def copies(self) -> tuple[tuple[str, ...], ...]:
        """The heads and MLPs of each copy of the program, what merges the copies left out."""
        outputs = (self.output,) if self.realism.copies == "none" else self.output.operands
        return tuple(self._parts({id(o) for o in in_order(output)}) for output in outputs)

    def _parts(self, operations: set[int]) -> tuple[str, ...]:
        """Return the heads and MLPs that compute some operations, in the order of computation."""
        found = []
        for block, computed in self.mlps.items():
            heads = sorted(h for b, h in self.heads if b == block)
            found += [f"a{block}.h{h}" for h in heads if id(self.heads[block, h]) in operations]
            found += [f"m{block}"] * any(id(o) in operations for o in computed)
        return tuple(found)

    @cached_property
    def answers(self) -> dict[tuple[str, ...], str]:
        """Input to the answer behind its last token."""
        found = {}
        for tokens in self.program.inputs:
            value = evaluate(self.output, tokens)[id(self.output)][-1]
            if value is not None:
                found[tokens] = label(value)
        return found

    @cached_property
    def model(self) -> Model:
        """The module, opened like any other, with a tokenizer of blank-separated tokens."""
        from microtome.tracing.opening import load

        return load(self.module, tokenizer=word_tokenizer(self.vocabulary), bos=True)

    def ids(self, tokens: tuple[str, ...]) -> tuple[int, ...]:
        """Return the token ids of an input, with the first token."""
        known = {t: n for n, t in enumerate(self.vocabulary)}
        return (known[BOS], *(known[t] for t in tokens))


def label(value: Value) -> str:
    """Return the token that stands for a value of the output."""
    if isinstance(value, float):
        return str(Fraction(value).limit_denominator(64))
    return str(value)


def compile_program(program: Program, *, realism: Realism | None = None, seed: int = 0) -> Compiled:
    """Compile a program.

    Args:
        program: The program.
        realism: How it is hidden; by default rotated, with decoys and dead heads.
        seed: For rotations and decoys.

    Raises:
        ConfigError: If an operation cannot be compiled.
    """
    chosen = realism or Realism()
    output = copied(program.build(), program.build(), program.build(), chosen.copies)
    layout = lay_out(output, program.inputs)
    random = rng(seed, "compile", program.name)
    vocabulary = _vocabulary(program, [label(v) for v in layout.values(output)])
    width, size, count = _shape(layout, chosen)
    draw = Decoys(layout.width, width, chosen.loudness, random)
    n_blocks = layout.blocks + chosen.spare_blocks
    heads: dict[tuple[int, int], Operation] = {}
    rows: list[list[HeadWeights]] = []
    mlps = []
    for block in range(n_blocks):
        placed, weights = _heads(layout, block, width, count, chosen, draw)
        heads |= {(block, n): operation for n, operation in placed.items()}
        rows.append([_turned(_padded(w, size), chosen.rotate, random) for w in weights])
        mlps.append(_neurons(layout, block, width, chosen, draw))
    turn = rotation(width, random) if chosen.rotate else np.eye(width)
    token, position = _embeddings(program, layout, vocabulary, draw)
    module = _module(
        token @ turn,
        position @ turn,
        [[_rotated(w, turn) for w in weights] for weights in rows],
        [_rotated_neurons(n, turn) for n in mlps],
        _readout(layout, vocabulary, width) @ turn,
    )
    return Compiled(
        program,
        chosen,
        seed,
        layout,
        module,
        vocabulary,
        heads,
        {b: layout.written_at(2 * b + 1) for b in range(n_blocks)},
    )


def _vocabulary(program: Program, answers: list[str]) -> tuple[str, ...]:
    """Return the tokens by id: special ones and further answers first, then the inputs.

    Models are probed with ids from 5 on, which are inputs therefore.
    """
    first = list(dict.fromkeys([BOS, UNKNOWN, *(a for a in answers if a not in program.alphabet)]))
    first += [f"<{n}>" for n in range(len(first), PROBED)]
    return (*first, *program.alphabet)


def _shape(layout: Layout, realism: Realism) -> tuple[int, int, int]:
    """Return d_model, d_head and the number of heads: their product is the first."""
    wide, sizes = 0, [1]
    for block in range(layout.blocks):
        written = layout.written_at(2 * block)
        wide = max(wide, len(written))
        for operation in written:
            if isinstance(operation, Aggregate | InverseWidth):
                sizes.append(head_of(operation, layout, layout.width, SHARPNESS).size)
    # a head to spare in every block: probes do not begin with the first token, and a program's own
    # heads may then write nothing by which attention could be recognized
    count = wide + max(1, realism.decoy_heads + realism.dead_heads)
    needed = layout.width + DECOY_WIDTH + DEAD_WIDTH
    size = max(*sizes, -(-needed // count))
    return size * count, size, count


def _heads(
    layout: Layout, block: int, width: int, count: int, realism: Realism, draw: Decoys
) -> tuple[dict[int, Operation], list[HeadWeights]]:
    """Return the heads of a block, in random order, and which operation each computes."""
    real = [o for o in layout.written_at(2 * block) if isinstance(o, Aggregate | InverseWidth)]
    places = draw.random.permutation(count) if realism.rotate else np.arange(count)
    placed: dict[int, Operation] = {}
    weights: dict[int, HeadWeights] = {}
    for number, place in enumerate(places.tolist()):
        if number < len(real):
            placed[place] = real[number]
            weights[place] = head_of(real[number], layout, width, SHARPNESS)
        else:
            decoy = number - len(real) < realism.decoy_heads or number < count - realism.dead_heads
            weights[place] = draw.head(width // count, dead=not decoy or realism.decoy_heads == 0)
    return placed, [weights[place] for place in range(count)]


def _neurons(layout: Layout, block: int, width: int, realism: Realism, draw: Decoys) -> Neurons:
    neurons = Neurons(width)
    for operation in layout.written_at(2 * block + 1):
        add_neurons(operation, layout, neurons)
    draw.add_neurons(neurons, realism.decoy_neurons if len(neurons) else realism.decoy_neurons + 2)
    return neurons


def _padded(head: HeadWeights, size: int) -> HeadWeights:
    """Return a head of a larger d_head that computes the same."""

    def wide(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, size - x.shape[1])))

    output = np.pad(head.output, ((0, size - len(head.output)), (0, 0)))
    bias = np.pad(head.query_bias, (0, size - len(head.query_bias)))
    return HeadWeights(wide(head.query), wide(head.key), wide(head.value), output, bias)


def _turned(head: HeadWeights, rotate: bool, random: np.random.Generator) -> HeadWeights:
    """Return a head whose inside is rotated: q with k, v with the output. It computes the same."""
    if not rotate:
        return head
    a, b = (rotation(head.size, random) for _ in range(2))
    return HeadWeights(
        head.query @ a, head.key @ a, head.value @ b, b.T @ head.output, head.query_bias @ a
    )


def _rotated(head: HeadWeights, turn: np.ndarray) -> HeadWeights:
    """Return a head in rotated coordinates of the residual stream."""
    return HeadWeights(
        turn.T @ head.query,
        turn.T @ head.key,
        turn.T @ head.value,
        head.output @ turn,
        head.query_bias,
    )


def _rotated_neurons(
    neurons: Neurons, turn: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return reads, biases and writes in rotated coordinates of the residual stream."""
    reads, writes = (np.array(x) @ turn for x in (neurons.reads, neurons.writes))
    return reads, np.array(neurons.biases), writes


def _embeddings(
    program: Program, layout: Layout, vocabulary: tuple[str, ...], draw: Decoys
) -> tuple[np.ndarray, np.ndarray]:
    """Return the token table ``[vocab, d_model]`` and the position table ``[pos, d_model]``."""
    token = np.zeros((len(vocabulary), draw.width))
    # one more than the first token and an input take: the answer fits behind it
    position = np.zeros((program.longest + 2, draw.width))
    token += draw.embedding(len(token))
    position += draw.embedding(len(position))
    token[vocabulary.index(BOS), layout.bos] = 1.0
    used = {id(o) for o in layout.operations}
    if id(TOKENS) in used:
        for value in layout.values(TOKENS):
            token[vocabulary.index(str(value)), layout.at(TOKENS, value)] = 1.0
    if id(INDICES) in used:
        for value in layout.values(INDICES):
            position[int(value), layout.at(INDICES, value)] = 1.0
    position[:, layout.one] = 1.0 if layout.output.numerical else 0.0
    return token, position


def _readout(layout: Layout, vocabulary: tuple[str, ...], width: int) -> np.ndarray:
    """Return the unembedding ``[vocab, d_model]``.

    The logit of a number v is ``1 + 2 v x - v^2``, largest for the v nearest to x.
    """
    table = np.zeros((len(vocabulary), width))
    for value in layout.values(layout.output):
        row = table[vocabulary.index(label(value))]
        if layout.output.numerical:
            row[layout.at(layout.output)] = 2.0 * READOUT * float(value)
            row[layout.one] = READOUT * (1.0 - float(value) ** 2)
        else:
            row[layout.at(layout.output, value)] = READOUT
    return table


def _module(
    token: np.ndarray,
    position: np.ndarray,
    heads: list[list[HeadWeights]],
    mlps: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    readout: np.ndarray,
) -> Any:
    """Return a Hugging Face module with these weights and no norms."""
    import torch

    from microtome.models.gpt2 import bare_gpt2

    module = bare_gpt2(
        vocab=len(token),
        context=len(position),
        width=token.shape[1],
        layers=len(heads),
        heads=len(heads[0]),
        neurons=max(len(m[1]) for m in mlps),
        activation="relu",
        bos_token_id=0,
        eos_token_id=0,
    )
    stream = module.transformer
    with torch.no_grad():
        _put(stream.wte.weight, token)
        _put(stream.wpe.weight, position)
        _put(module.lm_head.weight, readout)
        for block, weights, (reads, biases, writes) in zip(stream.h, heads, mlps, strict=True):
            divisor = np.sqrt(weights[0].size)
            query, key, value = (
                np.concatenate([getattr(w, name) for w in weights], 1)
                for name in ("query", "key", "value")
            )
            _put(block.attn.c_attn.weight, np.concatenate([query * divisor, key, value], 1))
            bias = np.concatenate([w.query_bias for w in weights]) * divisor
            _put(block.attn.c_attn.bias[: len(bias)], bias)
            _put(block.attn.c_proj.weight, np.concatenate([w.output for w in weights]))
            count = len(biases)
            _put(block.mlp.c_fc.weight[:, :count], reads.T)
            _put(block.mlp.c_fc.bias[:count], biases)
            _put(block.mlp.c_proj.weight[:count], writes)
    return module.requires_grad_(False)


def _put(target: Any, value: np.ndarray) -> None:
    import torch

    target.copy_(torch.from_numpy(np.ascontiguousarray(value)))


def word_tokenizer(vocabulary: tuple[str, ...]) -> Any:
    """Return a tokenizer of blank-separated tokens; the first one begins every sequence."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.WordLevel({t: n for n, t in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, unk_token=UNKNOWN
    )
