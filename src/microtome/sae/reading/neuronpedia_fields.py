"""The fields of Neuronpedia's JSON batches, with their types, as SAEDashboard 0.8 writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self, TypeAlias

from microtome.errors import FormatError

Numbers: TypeAlias = list[float]
Counts: TypeAlias = list[int]
Texts: TypeAlias = list[str]


class Fields:
    """Base of what is read from a JSON object with one entry for each field."""

    @classmethod
    def of(cls, raw: object, where: str) -> Self:
        """Read an object; what it has beyond the fields is left out.

        Raises:
            FormatError: A field without a default is missing, or one is of another type.
        """
        if not isinstance(raw, Mapping):
            raise FormatError(f"{where} is a {type(raw).__name__}; expected a JSON object")
        values: dict[str, Any] = {}
        for part in fields(cls):  # type: ignore[arg-type]  # every subclass is a dataclass
            if part.name not in raw:
                if part.default is MISSING and part.default_factory is MISSING:
                    raise FormatError(f"{where} has no {part.name!r}; write the batch again")
                continue
            values[part.name] = _checked(raw[part.name], str(part.type), f"{part.name} of {where}")
        return cls(**values)


@dataclass(frozen=True)
class Activation(Fields):
    """One example.

    Attributes:
        tokens: Text of each token.
        values: Activation at each.
        bin_min: Lower end of its bin of activations; -1 for the strongest examples.
        bin_max: Upper end.
        bin_contains: Share of the activations that lie in the bin; -1 for the strongest.
        qualifying_token_index: Which token the example is about.
        dfa_values: Direct attribution to each source token; None where there is none.
        dfa_maxValue: Its largest.
        dfa_targetIndex: The token it is about.
    """

    tokens: Texts
    values: Numbers
    bin_min: float
    bin_max: float
    bin_contains: float
    qualifying_token_index: int = 0
    dfa_values: Numbers | None = None
    dfa_maxValue: float | None = None
    dfa_targetIndex: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not None."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class Feature(Fields):
    """The dashboard of one latent.

    Attributes:
        feature_index: Number of the latent.
        neuron_alignment_indices: Coordinates in which its direction is largest.
        neuron_alignment_values: The direction there.
        neuron_alignment_l1: Their shares of the sum of absolute values.
        correlated_neurons_indices: Neurons that correlate with it.
        correlated_neurons_pearson: How much.
        correlated_neurons_l1: Cosines with them (the name is the format's).
        correlated_features_indices: Latents that correlate with it.
        correlated_features_pearson: How much.
        correlated_features_l1: Cosines with them.
        neg_str: Tokens it lowers most.
        neg_values: How much.
        pos_str: Tokens it raises most.
        pos_values: How much.
        frac_nonzero: Share of the tokens at which it is active, 0 to 1.
        freq_hist_data_bar_values: Middles of the bars of its activations.
        freq_hist_data_bar_heights: Their heights.
        logits_hist_data_bar_values: Middles of the bars of its effects on logits.
        logits_hist_data_bar_heights: Their heights.
        n_prompts_total: Contexts read.
        n_tokens_in_prompt: Tokens of a context.
        dataset: Name of the text.
        decoder_weights_dist: Share of each head in its direction; empty without heads.
        activations: Its examples.
        vector: Its direction; empty if not written.
    """

    feature_index: int
    neuron_alignment_indices: Counts
    neuron_alignment_values: Numbers
    neuron_alignment_l1: Numbers
    correlated_neurons_indices: Counts
    correlated_neurons_pearson: Numbers
    correlated_neurons_l1: Numbers
    correlated_features_indices: Counts
    correlated_features_pearson: Numbers
    correlated_features_l1: Numbers
    neg_str: Texts
    neg_values: Numbers
    pos_str: Texts
    pos_values: Numbers
    frac_nonzero: float
    freq_hist_data_bar_values: Numbers
    freq_hist_data_bar_heights: Numbers
    logits_hist_data_bar_heights: Numbers
    logits_hist_data_bar_values: Numbers
    n_prompts_total: int
    n_tokens_in_prompt: int
    dataset: str
    decoder_weights_dist: Numbers
    activations: list[Activation]
    vector: Numbers = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"activations": [a.to_dict() for a in self.activations]}


def _checked(value: Any, kind: str, where: str) -> Any:
    """Return a value of a kind, whole numbers as floats where floats are meant."""
    kind, _, optional = kind.partition(" | ")
    if value is None and optional:
        return None
    if kind == "list[Activation]":
        if isinstance(value, list):
            return [Activation.of(v, f"{where}, {n}") for n, v in enumerate(value)]
    elif kind in _LISTS:
        if isinstance(value, list):
            return [_checked(v, _LISTS[kind], where) for v in value]
    elif isinstance(value, int | float) and not isinstance(value, bool) and kind == "float":
        return float(value)
    elif type(value) is _TYPES.get(kind):
        return value
    raise FormatError(f"{where} is {str(value)[:60]!r}; expected {kind}")


_LISTS = {"Numbers": "float", "Counts": "int", "Texts": "str"}
_TYPES: dict[str, type] = {"int": int, "str": str}
