"""The shapes of things that packages hand to one another: metrics, codecs and executors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Metric(Protocol):
    """A function from outputs to one number per example.

    Attributes:
        name: The name it is looked up and printed by.
        linear: Whether it is linear in the logits; then ``direction`` gives the weights.
        unit: Unit of the value, for example ``"logits"``, or ``""``.
        higher_is_better: Whether a larger value means more of the behavior.
    """

    @property
    def name(self) -> str:
        """The name it is looked up and printed by."""

    @property
    def linear(self) -> bool:
        """Whether the value is linear in the logits."""

    @property
    def unit(self) -> str:
        """Unit of the value, or ``""``."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value means more of the behavior."""

    def continuations(self, example: Any) -> tuple[tuple[int, ...], ...]:
        """Return the token sequences appended to the prompt, one row each; ``((),)`` for none."""

    def reads(self, example: Any) -> tuple[int, ...]:
        """Return the positions whose logits are read, relative to the prompt's end."""

    def __call__(self, logits: Tensor, lengths: Tensor, examples: Sequence[Any]) -> Tensor:
        """Return one value per row of the logits, shape batch, differentiable.

        Args:
            logits: Shape batch, pos, vocab.
            lengths: Number of real tokens of each row, shape batch.
            examples: The example each row belongs to.
        """

    def combine(self, rows: Tensor) -> Tensor:
        """Return the value of one example from the values of its continuations' rows."""

    def direction(self, example: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return the token ids and weights of a linear metric.

        Raises:
            MetricError: The metric is not linear in the logits.
        """


class Codec(Protocol):
    """A map from the value of a site to latents and back: an SAE, or anything that acts like one.

    Attached to a model under a name, its latents and its error become sites. A write to latents
    adds ``decode(new) - decode(old)``, so unchanged latents change nothing.
    """

    @property
    def d_in(self) -> int:
        """Width of the values that are encoded."""

    @property
    def d_out(self) -> int:
        """Width of the values that are decoded; another than ``d_in`` only for transcoders."""

    @property
    def d_sae(self) -> int:
        """Number of latents."""

    def encode(self, values: Tensor) -> Tensor:
        """Return the latents ``[..., d_sae]`` of values ``[..., d_in]``, differentiable."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return the values ``[..., d_out]`` of latents ``[..., d_sae]``, bias included."""

    def bypass(self, values: Tensor) -> Tensor | None:
        """Return what reaches the output past the latents ``[..., d_out]``, None for nothing.

        The skip connection of a skip transcoder: the reconstruction is ``decode(encode(values))``
        plus this.
        """


@dataclass(frozen=True, eq=False)
class CodecPart:
    """Some of the latents of a codec of several sites, which are known at the same moment.

    Attributes:
        codec: What encodes and decodes them; values of several sites lie side by side.
        reads: Numbers of the codec's source sites that it reads.
        writes: Numbers of the target sites that it writes.
    """

    codec: Codec
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class JointCodec(Codec, Protocol):
    """A codec of several sites that says which latents read and write which of them.

    A codec without :meth:`parts` is one part that reads and writes all of its sites.
    """

    def parts(self) -> tuple[CodecPart, ...]:
        """Return the parts whose reconstructions add up to that of the whole."""


class Executor(Protocol):
    """Runs independent units of work and returns their manifests in order.

    A unit is a pure function of a specification and a shard number, so that it can run
    again anywhere and write the same artifact.
    """

    def run(
        self,
        work: Callable[[Mapping[str, Any], int, int], Mapping[str, Any]],
        spec: Mapping[str, Any],
        *,
        shards: int,
    ) -> list[Mapping[str, Any]]:
        """Run ``work(spec, i, shards)`` for every ``i`` and return the manifests by ``i``."""
