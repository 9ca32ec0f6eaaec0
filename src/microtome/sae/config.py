"""How a sparse coder is trained: every setting, its default and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from microtome.core.seeds import rng
from microtome.errors import ConfigError, nearest
from microtome.sae.architecture import COUNTED, Activation, Architecture, Encoder, Reach

Penalty = Literal["l1", "l0", "tanh", "target"]
Asked = Literal["auto", "float32", "bfloat16", "int8"]

PENALTIES: dict[str, tuple[Penalty, ...]] = {
    "relu": ("l1",),
    "gated": ("l1",),
    "jumprelu": ("l0", "tanh", "target"),
}
"""What can be asked of activations that keep no fixed number of latents, the default first."""

LONG, SHORTEST_LR = 100_000, 5e-3
"""Steps from which the literature's learning rate holds, and the highest one for shorter runs."""


@dataclass(frozen=True)
class Config:
    """Settings of a training run; the defaults alone train well.

    Lengths are in rows of activations. ``None`` is replaced by what fits the data and the run.

    Attributes:
        activation: As in :class:`~microtome.sae.architecture.Architecture`, like ``k``,
            ``encoder``, ``kronecker``, ``prefixes``, ``reach`` and ``skip``.
        k: Latents kept for each row by the activations that count; 0 for 32, 64 for wide inputs.
        d_sae: Number of latents; 16 times the input's width unless given.
        encoder: Kind of encoder.
        kronecker: Heads, left and right units of a Kronecker encoder.
        prefixes: Matryoshka prefixes.
        reach: What a latent reads and writes.
        skip: Whether there is a skip connection.
        center: Whether the decoder's bias is subtracted from the input; where sources are targets
            unless given.
        steps: Number of batches; one pass over the rows, but at least 1,000, unless given.
        batch_size: Rows of a batch.
        lr: Peak learning rate of Adam. Unless given, 2e-4 / sqrt(d_sae / 2^14) (Gao et al., 2024)
            from 100,000 steps on; shorter runs take more, by the square root of how much shorter
            they are, at most 5e-3.
        warm_up: Steps in which the rate rises from 0; 5 % of the run, at most 1,000, unless given.
        decay: Share of the run, at its end, in which the rate falls to 0.
        betas: Decay rates of Adam's two averages.
        clip: Norm to which gradients are cut; 0 for none.
        unit_norm: Whether decoder rows are kept at norm 1, without the gradient along them.
        aux: Weight of the loss that revives dead latents (AuxK, Gao et al., 2024); 0 for none.
        aux_k: Dead latents that reconstruct the error in it; half the output's width unless given.
        dead_after: Rows without activity after which a latent counts as dead; 10 million or 5 % of
            the run, whichever is shorter, unless given.
        resample_every: Steps after which dead latents are started again from badly reconstructed
            rows (Bricken et al., 2023), until the learning rate falls; 0 for never.
        penalty: What makes latents sparse where none are counted: ``"l1"`` for ReLU and gated;
            ``"l0"`` (Rajamanoharan et al., 2024b), ``"tanh"`` (Anthropic, 2025) or ``"target"``,
            the squared relative distance from ``target_l0``, for JumpReLU.
        sparsity: Weight of the penalty. It is relative to the squared error of a row where the mean
            squared norm is its width; of ``"target"``, to the share of variance unexplained.
        target_l0: Wanted L0 of ``penalty="target"``.
        sparsity_warm_up: Share of the run in which the penalty rises from 0.
        bandwidth: Width of JumpReLU's straight-through gradient.
        threshold: JumpReLU's threshold at the start.
        precision: Of the products that propose which latents to keep: ``"auto"`` measures which of
            float32, bfloat16 and int8 is fastest here, and the summary says which. The choice
            among what they propose is exact, but a latent that is not proposed is not chosen: name
            one where two are about as fast and two runs are to be the same bit for bit.
        seed: Decides initial weights, order of the rows and evaluation rows, each on its own.
        device: Where the coder trains.
        log_every: Steps between two rows of metrics; a hundredth of the run unless given.
        eval_rows: Rows on which thresholds are set and the result is measured at the end.

    Raises:
        ConfigError: A value is out of range, or values do not fit together.
    """

    activation: Activation = "batchtopk"
    k: int = 0
    d_sae: int | None = None
    encoder: Encoder = "dense"
    kronecker: tuple[int, int, int] | None = None
    prefixes: tuple[int, ...] = ()
    reach: Reach = "all"
    skip: bool = False
    center: bool | None = None
    steps: int | None = None
    batch_size: int = 2048
    lr: float | None = None
    warm_up: int | None = None
    decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    unit_norm: bool = True
    aux: float = 1 / 32
    aux_k: int | None = None
    dead_after: int | None = None
    resample_every: int = 0
    penalty: Penalty | None = None
    sparsity: float = 1.0
    target_l0: float = 32.0
    sparsity_warm_up: float = 0.05
    bandwidth: float = 0.05
    threshold: float = 0.01
    precision: Asked = "auto"
    seed: int = 0
    device: str = "cpu"
    log_every: int | None = None
    eval_rows: int = 8192

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is read."""
        for name in ("kronecker", "prefixes", "betas"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, list | tuple):
                raise ConfigError(f"{name} is {value!r}; expected several numbers, as a tuple")
            object.__setattr__(self, name, None if value is None else tuple(value))
        self._check_choices()
        for name, least in (("batch_size", 1), ("eval_rows", 1), ("resample_every", 0)):
            _number(name, getattr(self, name), least, whole=True)
        for name, least in (("steps", 1), ("warm_up", 0), ("d_sae", 1), ("aux_k", 1)):
            _number(name, getattr(self, name), least, whole=True, optional=True)
        for name in ("dead_after", "log_every"):
            _number(name, getattr(self, name), 1, whole=True, optional=True)
        for name in ("clip", "aux", "sparsity", "threshold"):
            _number(name, getattr(self, name), 0)
        for name in ("decay", "sparsity_warm_up"):
            _number(name, getattr(self, name), 0, most=1)
        for name in ("bandwidth", "target_l0"):
            _number(name, getattr(self, name), 1e-12)
        _number("lr", self.lr, 1e-12, optional=True)
        if not isinstance(self.unit_norm, bool):
            raise ConfigError(f"unit_norm is {self.unit_norm!r}; expected True or False")
        known = all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas)
        if len(self.betas) != 2 or not known:
            raise ConfigError(f"betas are {self.betas}; expected two numbers from 0 to below 1")
        if self.resample_every and (self.encoder != "dense" or self.reach != "all"):
            raise ConfigError(
                f"latents of encoder {self.encoder!r} with reach={self.reach!r} cannot be "
                "resampled; set resample_every=0 and rely on aux"
            )

    def _check_choices(self) -> None:
        for name, choices in (
            ("activation", get_args(Activation)),
            ("encoder", get_args(Encoder)),
            ("reach", get_args(Reach)),
            ("precision", get_args(Asked)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(
                    f"{name} is {value!r}; expected one of {', '.join(choices)}"
                    f"{nearest(str(value), choices)}"
                )
        if self.penalty is None:
            return
        fitting = PENALTIES.get(self.activation, ())
        if self.penalty not in fitting:
            known = f"one of {', '.join(fitting)}" if fitting else "none: it counts latents"
            raise ConfigError(
                f"penalty is {self.penalty!r}; with activation {self.activation!r} expected {known}"
            )

    def architecture(
        self, sources: Sequence[int], targets: Sequence[int], *, same: bool
    ) -> Architecture:
        """Return the make of the coder for sites of these widths.

        Args:
            sources: Widths of the source sites.
            targets: Widths of the target sites.
            same: Whether the sources are the targets.

        Raises:
            ConfigError: Settings do not fit the widths.
        """
        d_in = sum(sources)
        return Architecture(
            d_in,
            self.d_sae or 16 * d_in,
            d_out=sum(targets),
            activation=self.activation,
            k=self.k,
            encoder=self.encoder,
            kronecker=self.kronecker,
            prefixes=self.prefixes,
            sources=tuple(sources),
            targets=tuple(targets),
            reach=self.reach,
            skip=self.skip,
            center=same if self.center is None else self.center,
        )

    def planned_steps(self, rows: int) -> int:
        """Return the number of batches of a run over data of this many rows."""
        return self.steps or max(1000, -(-rows // self.batch_size))

    def peak_lr(self, d_sae: int, steps: int) -> float:
        """Return the learning rate for a coder of this width in a run of this length."""
        if self.lr is not None:
            return self.lr
        usual = 2e-4 / math.sqrt(d_sae / 2**14)
        return max(usual, min(SHORTEST_LR, usual * math.sqrt(LONG / steps)))

    def lr_at(self, step: int, steps: int, peak: float) -> float:
        """Return the learning rate of one step (from 0) of a run."""
        rise = min(1000, steps // 20) if self.warm_up is None else min(self.warm_up, steps)
        fall = round(self.decay * steps)
        up = (step + 1) / rise if step < rise else 1.0
        down = (steps - step) / (fall + 1) if step >= steps - fall else 1.0
        return float(peak * min(up, down))

    def sparsity_at(self, step: int, steps: int) -> float:
        """Return the weight of the penalty in one step of a run."""
        rise = round(self.sparsity_warm_up * steps)
        return self.sparsity * (min(1.0, (step + 1) / rise) if rise else 1.0)

    def resamples(self, step: int, steps: int) -> bool:
        """Return whether dead latents start again after a step; not while the rate falls."""
        every = self.resample_every
        return every > 0 and step % every == 0 and step <= steps - round(self.decay * steps)

    def dead_rows(self, steps: int) -> int:
        """Return after how many rows without activity a latent is dead in a run."""
        if self.dead_after is not None:
            return self.dead_after
        return min(10_000_000, max(self.batch_size, steps * self.batch_size // 20))

    @property
    def penalized(self) -> Penalty | None:
        """The penalty in use, None for activations that count."""
        if self.activation in COUNTED:
            return None
        return self.penalty or PENALTIES[self.activation][0]

    def stream_seed(self, name: str) -> int:
        """Return the seed of a stream of batches: ``"data"``, or ``"evaluation"``."""
        return int(rng(self.seed, "sae", name).integers(2**31))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)


def _number(
    name: str,
    value: Any,
    least: float,
    *,
    most: float = float("inf"),
    whole: bool = False,
    optional: bool = False,
) -> None:
    if optional and value is None:
        return
    kinds = int if whole else int | float
    wrong = isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most
    if wrong or value == float("inf"):
        what = "a whole number" if whole else "a finite number" if most > 1 else "a number"
        limit = f" to {most:g}" if most < float("inf") else ""
        raise ConfigError(f"{name} is {value!r}; expected {what} from {least:g}{limit}")
