"""Measure the specimen's sparse autoencoders: figures, explained latents, and a steering run.

``python -m specimens.python_code_sae.measure --run RUN [--twin TWIN] --out FILE`` evaluates every
coder of a run on the validation split of the library beside its baselines, explains latents, and
flips the closing quote through two latents, beside a difference of means at equal divergence.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import microtome as mt
from microtome.attribution import top_latents
from microtome.behaviors.examples import Examples
from microtome.sae import SAE, SAEEvaluation, evaluate, index, load
from microtome.sae.reading.scoring import explain_all
from microtome.store.atomic import write_json
from microtome.tracing.interventions import Intervention
from microtome.tracing.model import Model
from specimens.python_code_sae.train import Recipe, texts

WORDS = (
    "quotation",
    "bracket",
    "indented",
    "def",
    "return",
    "self",
    "import",
    "class",
    "`=`",
    "`.`",
)
"""What explanations are searched for, one latent each."""


def figures(
    model: Model, coder: SAE, held: list[str], tokens: int, twin: SAE | None = None
) -> SAEEvaluation:
    """Return a coder's figures beside its baselines, and the twin's coder, on held-out text."""
    return evaluate(model, coder, held, tokens=tokens, twin=twin)


def named(model: Model, coder: SAE, held: list[str], tokens: int) -> list[dict[str, Any]]:
    """Return, for each word, the latent whose explanation holds it and predicts best.

    All latents that are active often enough are explained; explanations are scored on other
    contexts than they were found in.
    """
    read = index(model, coder, held, tokens=tokens)
    alive = [int(i) for i in (-read.counts).argsort(kind="stable") if read.counts[i] >= 60]
    found = explain_all(read, alive, n_random=1)
    rows = []
    taken: set[int] = set()
    for word in WORDS:
        fitting = [
            e for e in found
            if word in e.explanation.text and len(e.explanation.rules) <= 3
            and e.explanation.latent not in taken
        ]  # fmt: skip
        if not fitting:
            continue
        best = max(fitting, key=lambda e: e.scores.simulation)
        taken.add(best.explanation.latent)
        rows.append(
            {
                "sought": word,
                "latent": best.explanation.latent,
                "explanation": best.explanation.text,
                "density": best.density,
                "simulation": best.scores.simulation,
                "detection": best.scores.detection,
                "fuzzing": best.scores.fuzzing,
                "intruder": best.intruder,
                "simulation of another latent's": best.random.simulation,
                "simulation of shuffled": best.shuffled.simulation,
            }
        )
    return rows


@dataclass(frozen=True)
class Quotes:
    """The quotes behavior in one direction: prompts that should end in ``'``.

    Attributes:
        model: The model with the coder attached as ``sae``.
        site: Site of the coder.
        train: Prompts on which latents and directions are chosen.
        test: Prompts of unseen templates.
    """

    model: Model
    site: str
    train: Examples
    test: Examples

    @staticmethod
    def of(model: Model, coder: SAE, n: int = 400) -> Quotes:
        """Prepare prompts for a model and attach the coder."""
        site = coder.origin.sources[0]
        attached = model.attach("sae", coder, at=site)
        examples = mt.behaviors.get("quote-closing", n=n).prepare(attached)
        single = examples.where(lambda e: model.decode(e.answers[0]).startswith("'"))
        return Quotes(attached, site, single.split("train"), single.split("test"))

    @property
    def latents_site(self) -> str:
        """Site of the latents."""
        return f"{self.site}/sae"

    def flips(self, *writes: Intervention) -> dict[str, float]:
        """Return how often the other quote is likelier than the right one, or than any token."""
        prompts = [list(e.clean) for e in self.test]
        trace = self.model.trace(prompts, interventions=writes, logits="last")
        assert trace.logits is not None
        logits = trace.logits.flatten(0, -2)
        rows = torch.arange(len(prompts))
        right = logits[rows, torch.tensor([e.answers[0][0] for e in self.test])]
        wrong = logits[rows, torch.tensor([e.wrongs[0][0] for e in self.test])]
        likeliest = logits.argmax(-1) == torch.tensor([e.wrongs[0][0] for e in self.test])
        return {
            "flipped": float((wrong > right).double().mean()),
            "likeliest": float(likeliest.double().mean()),
            "difference": float((right - wrong).double().mean()),
        }

    def drift(self, held: list[list[int]], *writes: Intervention) -> float:
        """Return the mean KL divergence in nats that a change makes on other text, every token.

        Args:
            held: Token ids of texts of one length.
            writes: The change.
        """
        before, after = (self.model.trace(held, interventions=w).logits for w in ((), writes))
        assert before is not None and after is not None
        p, q = (torch.log_softmax(x.double(), -1) for x in (before, after))
        return float((p.exp() * (p - q)).sum(-1).mean())

    def pair(self) -> tuple[int, int]:
        """Return the latents of the open ``'`` and of the open ``"``, chosen on train."""
        found = top_latents(self.model, self.train, site=self.latents_site, k=8)
        clean, corrupt = (
            self.last([list(getattr(e, side)) for e in self.train]) for side in ("clean", "corrupt")
        )
        apart = (clean - corrupt).mean(0)
        here = [number for number in found.latents if apart[number] > 0]
        there = [number for number in found.latents if apart[number] < 0]
        return here[0], there[0]

    @torch.no_grad()
    def last(self, prompts: list[list[int]], site: str | None = None) -> Tensor:
        """Return the value at the last token of each prompt."""
        wanted = site or self.latents_site
        trace = self.model.trace(prompts, capture=[wanted])
        return trace.last(trace[wanted])

    def swap(self, here: int, there: int, strength: float) -> Intervention:
        """Return the change that gives one latent's activation, times a strength, to the other."""

        def swapped(latents: Tensor) -> Tensor:
            changed = latents.clone()
            on = latents[..., here] > 0
            given = strength * latents[..., here]
            changed[..., there] = torch.where(on, given, latents[..., there])
            changed[..., here] = 0
            return changed

        return mt.at(self.latents_site).apply(swapped)


def steering(model: Model, coder: SAE, held: list[str], tokens: int = 4096) -> dict[str, Any]:
    """Return how well two latents flip the closing quote, beside a difference of means."""
    quotes = Quotes.of(model, coder)
    here, there = quotes.pair()
    rows: list[list[int]] = []
    for text in held:
        ids = list(model.tokenize(text[:2000], bos=False))[:128]
        if len(ids) == 128 and sum(map(len, rows)) < tokens:
            rows.append(ids)
    sides = [quotes.last([list(getattr(e, s)) for e in quotes.train], quotes.site)
             for s in ("clean", "corrupt")]  # fmt: skip
    direction = (sides[1] - sides[0]).mean(0)
    result: dict[str, Any] = {
        "latents": [here, there],
        "untouched": quotes.flips(),
        "test prompts": len(quotes.test),
        "other tokens": sum(map(len, rows)),
        "swap": [],
    }
    for strength in (1.0, 2.0, 3.0, 4.0):
        write = quotes.swap(here, there, strength)
        drift = quotes.drift(rows, write)
        alpha = _equal(lambda a: quotes.drift(rows, mt.at(quotes.site).add(a * direction)), drift)
        plain = mt.at(quotes.site).add(alpha * direction)
        result["swap"].append(
            {
                "strength": strength,
                "off-target KL": drift,
                "latents": quotes.flips(write),
                "difference of means": {"alpha": alpha, **quotes.flips(plain)},
            }
        )
    return result


def _equal(drift: Callable[[float], float], wanted: float, steps: int = 8) -> float:
    """Return the factor at which a drift that grows with it is as large as wanted."""
    low, high = 0.0, 0.05
    while drift(high) < wanted and high < 50:
        low, high = high, high * 2
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if drift(middle) < wanted else (low, middle)
    return (low + high) / 2


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--twin", type=Path)
    parser.add_argument("--k", type=int, nargs="*", default=[8, 16, 32])
    parser.add_argument("--chosen", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(Recipe().threads)
    model = mt.load("python-code")
    held = texts(1, "validation", 1200)
    facts: dict[str, Any] = {"held-out tokens": asked.tokens}
    for k in asked.k:
        coder = load(asked.run / f"k{k}" / "sae")
        own = asked.twin if k == asked.chosen else None
        twin = None if own is None else load(own / f"k{k}" / "sae")
        table = figures(model, coder, held, asked.tokens, twin).to_frame()
        print(f"k {k}\n{table.T.to_string()}", flush=True)
        facts[f"k{k}"] = table.reset_index()
    coder = load(asked.run / f"k{asked.chosen}" / "sae")
    facts["steering"] = steering(model, coder, held)
    print(facts["steering"], flush=True)
    facts["latents"] = named(model, coder, held, asked.tokens)
    for row in facts["latents"]:
        print(row, flush=True)
    write_json(asked.out, facts)


if __name__ == "__main__":
    main()
