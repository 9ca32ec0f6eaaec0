"""What latents say about labelled texts: sparse probing, and targeted perturbation of probes.

The definitions are those of SAEBench (Karvonen et al., 2025), on the user's own labels: sparse
probing (Gurnee et al., 2023), spurious correlation removal and targeted probe perturbation
(Karvonen et al., 2024). Nothing but the model, the coder and the labelled texts is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microtome.core.seeds import rng
from microtome.errors import ConfigError, DataError, EmptyDataError
from microtome.sae.model_passes import coder_sites, special_ids, values_at
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model

Pool = Literal["max", "mean", "last"]
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pooled:
    """One row of values for each labelled text.

    Attributes:
        values: Mean value of the site over the text ``[text, d_in]``.
        latents: Pooled latents ``[text, latent]``.
        mean_latents: Mean latents ``[text, latent]``.
        labels: Number of the class of each text ``[text]``.
        classes: Names of the classes.
        train: Whether a text is learned from, rather than tested on ``[text]``.
    """

    values: Array
    latents: Array
    mean_latents: Array
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    train: NDArray[np.bool_]


@torch.no_grad()
def pool(
    model: Model,
    coder: SAE,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    how: Pool = "max",
    batch_size: int = 16,
    seed: int = 0,
) -> Pooled:
    """Encode labelled texts and pool over their tokens; half of each class is for testing.

    Raises:
        DataError: Texts and labels differ in number.
        EmptyDataError: There are fewer than two classes, or fewer than four texts of one.
        ConfigError: The pooling is not known.
        SiteError: The coder names no sites of this model.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
    if len(texts) != len(labels):
        raise DataError(f"{len(texts)} texts and {len(labels)} labels; give one label for each")
    classes, numbers = numbered(labels)
    if how not in ("max", "mean", "last"):
        raise ConfigError(f"how is {how!r}; expected 'max', 'mean' or 'last'")
    sources, _ = coder_sites(model, coder)
    ignored = torch.tensor(sorted(special_ids(model)), dtype=torch.int64)
    values: list[Array] = []
    latents: list[Array] = []
    means: list[Array] = []
    for start in range(0, len(texts), batch_size):
        trace = model.trace(
            list(texts[start : start + batch_size]), capture=list(sources), logits=None
        )
        kept = trace.mask.bool().cpu() & ~torch.isin(trace.tokens.cpu(), ignored)
        for x, rows in zip(values_at(trace, sources, coder), kept, strict=True):
            own = x[rows.to(x.device)]
            if not len(own):
                raise EmptyDataError(f"text {len(values)} holds special tokens only; leave it out")
            found = coder.encode(own)
            pooled = {"max": found.amax(0), "mean": found.mean(0), "last": found[-1]}[how]
            values.append(own.mean(0).double().cpu().numpy())
            latents.append(pooled.double().cpu().numpy())
            means.append(found.mean(0).double().cpu().numpy())
    return Pooled(
        np.stack(values),
        np.stack(latents),
        np.stack(means),
        numbers,
        classes,
        halves(numbers, seed),
    )


def numbered(labels: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the classes of labels, and the number of each label's class.

    Raises:
        EmptyDataError: There are fewer than two classes, or fewer than four labels of one.
    """
    classes, numbers = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    counts = np.bincount(numbers) if len(numbers) else np.zeros(0, dtype=int)
    if len(classes) < 2 or counts.min() < 4:
        raise EmptyDataError(
            f"classes {dict(zip(classes.tolist(), counts.tolist(), strict=True))}; expected at "
            "least two, with at least four texts each"
        )
    return tuple(classes.tolist()), numbers.astype(np.int64)


@dataclass(frozen=True, eq=False)
class SparseProbing(Result, schema="sae-sparse-probing"):
    """Test accuracy of logistic regressions on few latents, beside the whole value.

    Attributes:
        k: Numbers of latents, growing.
        latents: Mean accuracy over the classes by number of latents ``[k]``.
        coordinates: The same for that many coordinates of the site's mean value ``[k]``.
        whole: On the whole mean value.
        chance: Of always saying the commoner of two.
        chosen: The latents of each class, best first, as many as the largest ``k``.
    """

    k: tuple[int, ...]
    latents: tuple[float, ...]
    coordinates: tuple[float, ...]
    whole: float
    chance: float
    chosen: dict[str, tuple[int, ...]]

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each number of latents."""
        import pandas as pd

        columns = {"k": self.k, "latents": self.latents, "coordinates": self.coordinates}
        return pd.DataFrame(columns).set_index("k")


def sparse_probing(data: Pooled, *, ks: Sequence[int] = (1, 2, 5)) -> SparseProbing:
    """Learn each class, one against the rest, from the ``k`` features that differ most in mean.

    Args:
        data: Pooled labelled texts.
        ks: Numbers of features.

    Raises:
        ConfigError: A number is out of range.
    """
    ks = tuple(sorted(set(ks)))
    if not ks or ks[0] < 1 or ks[-1] > min(data.latents.shape[1], data.values.shape[1]):
        raise ConfigError(f"ks are {ks}; expected numbers from 1 to the width of the site")
    by_feature: dict[str, list[list[float]]] = {"latents": [], "coordinates": []}
    whole, chance, chosen = [], [], {}
    for number, name in enumerate(data.classes):
        truth = data.labels == number
        for kind, features in (("latents", data.latents), ("coordinates", data.values)):
            order = _by_difference(features[data.train], truth[data.train])
            by_feature[kind].append(
                [_accuracy(features[:, order[:k]], truth, data.train) for k in ks]
            )
            if kind == "latents":
                chosen[name] = tuple(int(i) for i in order[: ks[-1]])
        whole.append(_accuracy(data.values, truth, data.train))
        share = float(truth[~data.train].mean())
        chance.append(max(share, 1 - share))
    means = {kind: tuple(np.mean(rows, axis=0).tolist()) for kind, rows in by_feature.items()}
    return SparseProbing(
        ks,
        means["latents"],
        means["coordinates"],
        float(np.mean(whole)),
        float(np.mean(chance)),
        chosen,
    )


@dataclass(frozen=True, eq=False)
class ProbePerturbation(Result, schema="sae-probe-perturbation"):
    """Targeted probe perturbation: does ablating a class's latents hurt its probe alone?

    Attributes:
        n: Numbers of ablated latents, growing.
        score: Mean loss of accuracy of the class itself, less that of the others ``[n]``.
        own: The first of these ``[n]``.
        others: The second ``[n]``.
    """

    n: tuple[int, ...]
    score: tuple[float, ...]
    own: tuple[float, ...]
    others: tuple[float, ...]


def probe_perturbation(
    data: Pooled, coder: SAE, *, ns: Sequence[int] = (2, 5, 10, 20)
) -> ProbePerturbation:
    """Ablate the latents that feed a class's probe most; see how each probe's accuracy falls.

    A latent is ablated by taking its mean decoded part from the value, the error left as it is.

    Raises:
        ConfigError: A number is out of range, or the coder writes another site than it reads.
    """
    ns = tuple(sorted(set(ns)))
    if not ns or ns[0] < 1 or ns[-1] > coder.d_sae:
        raise ConfigError(f"ns are {ns}; expected numbers from 1 to {coder.d_sae}")
    require_own(data, coder)
    decoder = rows_of(coder.weights["W_dec"])
    probes = [fitted(data.values, data.labels == c, data.train) for c in range(len(data.classes))]
    test = ~data.train
    base = [float(p.score(data.values[test], data.labels[test] == c)) for c, p in enumerate(probes)]
    own, others = np.zeros((len(probes), len(ns))), np.zeros((len(probes), len(ns)))
    for c in range(len(probes)):
        order = _by_probe(data, decoder, probes[c], data.labels == c)
        for column, n in enumerate(ns):
            part = data.mean_latents[:, order[:n]] @ decoder[order[:n]]
            changed = (data.values - part)[test]
            fall = [
                b - float(p.score(changed, data.labels[test] == j))
                for j, (b, p) in enumerate(zip(base, probes, strict=True))
            ]
            own[c, column] = fall[c]
            others[c, column] = float(np.mean([f for j, f in enumerate(fall) if j != c]))
    return ProbePerturbation(
        ns,
        tuple((own - others).mean(0).tolist()),
        tuple(own.mean(0).tolist()),
        tuple(others.mean(0).tolist()),
    )


@dataclass(frozen=True, eq=False)
class CorrelationRemoval(Result, schema="sae-correlation-removal"):
    """Spurious correlation removal: does ablating latents of the wrong cue free a biased probe?

    Attributes:
        n: Numbers of ablated latents, growing.
        score: ``(A_ablated - A_biased) / (A_clean - A_biased)`` ``[n]``; 0 where there is nothing
            to gain.
        biased: Accuracy on the wanted label of a probe trained where both labels go together.
        clean: Accuracy of a probe trained where they do not.
    """

    n: tuple[int, ...]
    score: tuple[float, ...]
    biased: float
    clean: float


def correlation_removal(
    data: Pooled,
    coder: SAE,
    cue: Sequence[bool],
    *,
    ns: Sequence[int] = (2, 5, 10, 20),
) -> CorrelationRemoval:
    """Ablate the latents of a cue that a biased probe has learned in place of the label.

    Args:
        data: Pooled texts of two classes; the first class is the negative one.
        coder: The coder.
        cue: Whether each text has the cue that goes with the second class in biased data.
        ns: Numbers of latents.

    Raises:
        DataError: There are not two classes, the cue does not fit, or a combination is missing.
        ConfigError: A number is out of range.
    """
    ns = tuple(sorted(set(ns)))
    with_cue = np.asarray(cue, dtype=bool)
    if len(data.classes) != 2 or len(with_cue) != len(data.labels):
        raise DataError(
            f"{len(data.classes)} classes, {len(data.labels)} texts and {len(with_cue)} cues; "
            "expected two classes and one cue for each text"
        )
    if not ns or ns[0] < 1 or ns[-1] > coder.d_sae:
        raise ConfigError(f"ns are {ns}; expected numbers from 1 to {coder.d_sae}")
    require_own(data, coder)
    truth = data.labels == 1
    for split in (data.train, ~data.train):
        pairs = {(bool(a), bool(b)) for a, b in zip(truth[split], with_cue[split], strict=True)}
        if len(pairs) < 4:
            raise DataError("each label must occur with and without the cue, in both halves")
    agree = data.train & (truth == with_cue)
    biased = fitted(data.values, truth, agree)
    clean = fitted(data.values, truth, data.train)
    test = ~data.train
    a_base, a_clean = (float(p.score(data.values[test], truth[test])) for p in (biased, clean))
    decoder = rows_of(coder.weights["W_dec"])
    cue_probe = fitted(data.values, with_cue, data.train)
    order = _by_probe(data, decoder, cue_probe, with_cue)
    scores = []
    for n in ns:
        part = data.mean_latents[:, order[:n]] @ decoder[order[:n]]
        mean = part[data.train].mean(0)
        changed = float(biased.score((data.values - part + mean)[test], truth[test]))
        gain = a_clean - a_base
        scores.append((changed - a_base) / gain if gain >= 0.001 else 0.0)
    return CorrelationRemoval(ns, tuple(scores), a_base, a_clean)


def require_own(data: Pooled, coder: SAE) -> None:
    """Refuse a coder that writes elsewhere than it reads, or that the texts were not pooled with.

    Raises:
        ConfigError: It is one.
    """
    if coder.d_in != coder.d_out or coder.origin.sources != coder.origin.targets:
        raise ConfigError("the coder writes to another site than it reads; ablation needs an SAE")
    if (data.values.shape[1], data.mean_latents.shape[1]) != (coder.d_in, coder.d_sae):
        raise ConfigError(
            f"the texts were pooled with a coder of {data.values.shape[1]} by "
            f"{data.mean_latents.shape[1]}, and this one has {coder.d_in} by {coder.d_sae}"
        )


def halves(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Return which examples are learned from: half of each class, drawn by a seed."""
    train = np.zeros(len(labels), dtype=bool)
    stream = rng(seed, "labelled texts")
    for number in np.unique(labels):
        there = stream.permutation(np.flatnonzero(labels == number))
        train[there[: len(there) // 2]] = True
    return train


def _by_difference(features: Array, truth: NDArray[np.bool_]) -> NDArray[np.int64]:
    apart = np.abs(features[truth].mean(0) - features[~truth].mean(0))
    return np.argsort(-apart, kind="stable")


def _by_probe(
    data: Pooled, decoder: Array, probe: LogisticRegression, truth: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return latents by what they add to a probe's answer: weight x direction x mean difference."""
    train = data.train
    apart = data.mean_latents[train & truth].mean(0) - data.mean_latents[train & ~truth].mean(0)
    return np.argsort(-(decoder @ probe.coef_[0]) * apart, kind="stable")


def fitted(
    features: Array, truth: NDArray[np.bool_], train: NDArray[np.bool_]
) -> LogisticRegression:
    """Return a logistic regression fitted on the train half, whatever the features' size."""
    from sklearn.linear_model import LogisticRegression

    scale = float(np.abs(features[train]).mean()) or 1.0
    # The penalty is on weights of values of size 1, so that the site's scale does not matter.
    return LogisticRegression(C=1.0 / scale**2, max_iter=2000).fit(features[train], truth[train])


def _accuracy(features: Array, truth: NDArray[np.bool_], train: NDArray[np.bool_]) -> float:
    return float(fitted(features, truth, train).score(features[~train], truth[~train]))


def rows_of(weight: Tensor) -> Array:
    """Return a weight in double precision."""
    return np.asarray(weight.detach().double().cpu().numpy())
