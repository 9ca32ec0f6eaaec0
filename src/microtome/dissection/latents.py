"""Step 5 with an SAE: which of its latents the behavior goes through, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from microtome.attribution import top_latents
from microtome.behaviors.evaluate import batches
from microtome.circuits.judging.evaluation import evaluate
from microtome.circuits.latents import LatentAblator
from microtome.circuits.results import Circuit, Evaluation
from microtome.core.progress import Progress, quiet
from microtome.core.seeds import rng
from microtome.core.stats import Interval, cluster_ratio_bootstrap
from microtome.errors import ConfigError
from microtome.sae import index
from microtome.sae.reading.scoring import explain_all
from microtome.store.results import Result
from microtome.sweeps.planning import sweep
from microtome.tracing.components import head_of, site_of
from microtome.tracing.sites import Site, at
from microtome.views.numbers import number

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.examples import Examples
    from microtome.sae import SAE
    from microtome.sae.harvesting.documents import Text
    from microtome.tracing.model import Model

NAME = "sae"
"""The name the coder is attached under."""

DRAWS = 20
"""Random sets of latents that the found ones are compared with."""

TOKENS = 100_000
"""Tokens of a text that are read for explanations, at most."""


@dataclass(frozen=True, eq=False)
class NamedLatents(Result):
    """The latents of a coder that carry a behavior, with explanations.

    Attributes:
        site: Their site.
        table: One row for each, the strongest on train first: ``latent``; ``estimated`` effect on
            train, first order, as a share of the way to the corrupt run; ``effect`` of patching it
            alone on test, exact, with ``low`` and ``high``; ``kept``, the share of its change
            between the runs that the circuit alone brings about; ``when``, its explanation, with
            ``simulation`` and ``detection`` on held-out contexts (NaN where there is none), and
            ``active``, its share of the text's tokens.
        together: The circuit of these latents, all others and the error ablated, on test.
        random: Faithfulness of as many other latents that differ between the runs, drawn at random
            ``[draw]``; empty where there are not enough.
        error: Share of the way to the corrupt run that ablating only the error moves the metric.
        considered: Latents of the coder.
        tokens: Tokens of the text that explanations were found in.
        own_text: Whether that was a text of the user's, and not the behavior's prompts.
    """

    site: str
    table: pd.DataFrame
    together: Evaluation
    random: NDArray[np.float64]
    error: Interval
    considered: int
    tokens: int
    own_text: bool

    def to_frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.table

    @property
    def _floor(self) -> str:
        if not len(self.random):
            return "there are no others to draw at random"
        return f"best of {len(self.random)} random sets of others {number(self.random.max())}"

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        return (
            f"{len(self.table)} of {self.considered} latents of {self.site} keep "
            f"{self.together.faithfulness} of the effect with all others and the error ablated "
            f"({self._floor}); ablating only the error moves {self.error} of the way."
        )


def with_coder(model: Model, coder: SAE) -> Model:
    """Return the model with a coder attached at its own site; the coder moves to its device.

    Raises:
        ConfigError: If the coder names no site, or several.
        SiteError: If the model does not have it.
        ShapeError: If widths do not fit.
    """
    origin = coder.origin
    if len(origin.sources) != 1 or len(origin.targets) != 1:
        raise ConfigError(
            f"The coder reads {list(origin.sources)} and writes {list(origin.targets)}; a "
            "dissection attaches a coder that reads one site and writes one. Give it an Origin "
            "with its site, such as 'blocks.3.resid_post'."
        )
    source, target = origin.sources[0], origin.targets[0]
    coder.to(model.device)
    return model.attach(NAME, coder, at=source, to=None if target == source else target)


def name_latents(
    model: Model,
    coder: SAE,
    splits: tuple[Examples, Examples, Examples],
    circuit: Circuit,
    *,
    text: Text | None = None,
    metric: str = "logit_difference",
    k: int = 10,
    seed: int = 0,
    progress: Progress = quiet,
) -> NamedLatents:
    """Rank latents by attribution on train, confirm them exactly on test, and explain them.

    Args:
        model: The model with the coder attached, see :func:`with_coder`.
        coder: The coder.
        splits: Train, validation and test.
        circuit: The circuit of heads and MLPs.
        text: Text in which explanations are found and scored; the train prompts by default.
        metric: A metric that reads the prompt's end.
        k: Latents at most.
        seed: For everything that is drawn.
        progress: Told how far sweeps and reading are.

    Raises:
        EmptyDataError: If no latent differs between the runs, or the text is empty.
    """
    train, _, test = splits
    one = model.attached(NAME)[0]
    site = str(one.latents)
    top = top_latents(model, train, site=site, k=k, metric=metric, seed=seed, progress=progress)
    latents = list(top.latents)
    block = at(site).layer
    layer = block[0] if isinstance(block, tuple) else 0
    exact = sweep(
        model, test, at(site), base="clean", metric=metric, latents={layer: sorted(latents)},
        seed=seed, progress=progress,
    )  # fmt: skip
    effects = [
        cluster_ratio_bootstrap(
            exact.values.sel(layer=layer, latent=n).to_numpy() - exact.base,
            exact.source - exact.base,
            np.array(exact.clusters),
            seed=seed,
        )
        for n in latents
    ]
    import pandas as pd

    kept = kept_by(model, circuit, test, site)
    table = pd.DataFrame(
        {
            "latent": latents,
            "estimated": top.effects()["estimated"],
            "effect": [e.value for e in effects],
            "low": [e.low for e in effects],
            "high": [e.high for e in effects],
            "kept": kept[latents],
        }
    )
    explained, tokens = _explained(model, coder, train, text, latents, seed, progress)
    universe = tuple(f"{site}[latent={n}]" for n in range(coder.d_sae)) + (str(one.error),)

    def judged(parts: tuple[str, ...]) -> Evaluation:
        chosen = Circuit(parts, universe, "attribution", level="latent")
        return evaluate(model, test, chosen, metric=metric, seed=seed)

    return NamedLatents(
        site=site,
        table=pd.concat([table, explained], axis=1),
        together=judged(tuple(f"{site}[latent={n}]" for n in latents)),
        random=_random_sets(model, test, site, kept, latents, metric, seed),
        error=judged((str(one.error),)).moved,
        considered=coder.d_sae,
        tokens=tokens,
        own_text=text is not None,
    )


def kept_by(model: Model, circuit: Circuit, examples: Examples, site: str) -> NDArray[np.float64]:
    """Return which share of each latent's change a circuit brings about on its own ``[latent]``.

    Heads and MLPs outside the circuit give what they gave in the corrupt run. Of the difference
    between the clean and the corrupt run the share along it that is left is returned: 1 where the
    circuit makes the latent what it is, 0 where it does nothing for it, NaN where both runs agree.

    Args:
        model: The model with the coder attached.
        circuit: A circuit of heads and MLPs.
        examples: The examples.
        site: The site of the latents.
    """
    outside = [_place(part) for part in circuit.universe if part not in circuit.kept]
    sites = sorted({str(place.whole()) for place in outside})
    along: list[torch.Tensor] = []
    total: list[torch.Tensor] = []
    for places in batches(examples, 64, model=model):
        chunk = examples.take(places)
        corrupt = model.trace(chunk.corrupt, capture=[site, *sites], logits=None)
        clean = model.trace(chunk.clean, capture=site, logits=None).value(site).double()
        changes = [place.patch(corrupt) for place in outside]
        run = model.trace(chunk.clean, capture=site, interventions=changes, logits=None)
        # behind the end of a shorter prompt there are latents of padding
        real = run.mask.unsqueeze(-1)
        base = corrupt.value(site).double()
        whole, left = (clean - base) * real, run.value(site).double() - base
        along.append((whole * left).sum((0, 1)))
        total.append(whole.square().sum((0, 1)))
    # where both runs agree 0 / 0 is the NaN that is promised
    found: NDArray[np.float64] = (
        (torch.stack(along).sum(0) / torch.stack(total).sum(0)).cpu().numpy()
    )
    return found


def _random_sets(
    model: Model,
    examples: Examples,
    site: str,
    kept: NDArray[np.float64],
    latents: list[int],
    metric: str,
    seed: int,
) -> NDArray[np.float64]:
    """Return the faithfulness of random sets of other latents that differ between the runs."""
    moved = np.setdiff1d(np.flatnonzero(~np.isnan(kept)), latents)
    if len(moved) < len(latents):
        return np.zeros(0)
    stream = rng(seed, "dissection", "random latents")
    drawn = [stream.permutation(moved)[: len(latents)] for _ in range(DRAWS)]
    ran = LatentAblator(model, examples)
    sets = [frozenset(f"{site}[latent={n}]" for n in some) for some in drawn]
    values = ran.run([frozenset(ran.universe), frozenset(), *sets], [metric])[metric].mean(1)
    full, empty = values[:2]
    found: NDArray[np.float64] = (values[2:] - empty) / (full - empty)
    return found


def _place(part: str) -> Site:
    """Return where a head or an MLP can be patched."""
    head = head_of(part)
    return at(site_of(part) if head is None else f"{site_of(part)}[head={head}]")


def _explained(
    model: Model,
    coder: SAE,
    train: Examples,
    text: Text | None,
    latents: list[int],
    seed: int,
    progress: Progress,
) -> tuple[pd.DataFrame, int]:
    """Return explanations of latents with their scores, and the tokens they were found in."""
    import pandas as pd

    if text is None:
        # what reads the text puts a beginning of its own before it
        first = int(model.bos)
        text = [list(p[first:]) for p in dict.fromkeys((*train.clean, *train.corrupt))]
    read = index(model, coder, text, tokens=TOKENS, progress=progress)
    alive = [n for n in latents if read.counts[n]]
    found = {e.explanation.latent: e for e in explain_all(read, alive, seed=seed)}
    rows = [
        {
            "active": float(read.density[n]),
            "simulation": found[n].scores.simulation if n in found else float("nan"),
            "detection": found[n].scores.detection if n in found else float("nan"),
            "when": found[n].explanation.text if n in found else "not active in the text",
        }
        for n in latents
    ]
    return pd.DataFrame(rows), read.n_tokens
