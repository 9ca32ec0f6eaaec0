"""Training of sparse coders, from any activations, to be killed and resumed at any moment.

sae = mt.sae.train(model, site="blocks.5.resid_post", text="corpus.txt", config=mt.sae.Config(k=32))
sae = mt.sae.train(tensor, folder="my-sae")
sae.summary.fvu, sae.summary.history
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.errors import ConfigError, DataError, TrainingError
from microtome.sae.architecture import Architecture
from microtome.sae.checkpoints import FILE, Checkpoint, damaged
from microtome.sae.coder import SAE, Origin
from microtome.sae.config import Config
from microtome.sae.dead import DeadCounter, resample
from microtome.sae.finishing import Measured, finish
from microtome.sae.losses import loss
from microtome.sae.metrics import MetricsFile, Tally
from microtome.sae.opening import Data, Places, Reading, Wanted, opened
from microtome.sae.optimization import Optimizer
from microtome.sae.passing import forward
from microtome.sae.results import TrainingSummary
from microtome.sae.scaling import Scaling
from microtome.sae.selecting.selection import Selector
from microtome.sae.starting import (
    initial_coder,
    keep_freed_memory,
    selecting_precision,
    settings_of,
)

if TYPE_CHECKING:
    from microtome.sae.activations import Activations
    from microtome.sae.harvesting.documents import Text
    from microtome.tracing.sites import Site

SUMMARY = "training.json"
"""File of the summary in a run's folder."""


def train(
    data: Data,
    config: Config | None = None,
    *,
    text: Text | None = None,
    site: str | Site | None = None,
    sources: Places | None = None,
    targets: Places | None = None,
    tokens: int | None = None,
    context: int | None = None,
    shards: str | Path | None = None,
    folder: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Progress = quiet,
    watch: Callable[[Mapping[str, Any]], None] | None = None,
    origin: Origin | None = None,
) -> SAE:
    """Train a sparse coder on a model that reads text, or on activations that are there already.

    With a folder, the state is kept in it every so often and the same call goes on where it was
    interrupted, by Ctrl-C or a kill, in harvesting or in training; the result is the same, bit for
    bit, for the same number of threads.

    Args:
        data: A model, which needs ``text`` and a site; or activations: a tensor ``[row, d]``,
            tensors by site, a store, or the folder of one.
        config: Settings.
        text: What the model reads; see :func:`microtome.sae.harvest`.
        site: The place that an SAE reads and writes.
        sources: Places that are read by coders other than SAEs; all of the data's unless given.
            One without a block means that of every block.
        targets: Places that are written, the sources unless given: others for a transcoder.
        tokens: Tokens of the text to read at most, all by default.
        context: Tokens of a row of the model's input, 128 or the model's own by default.
        shards: Where the harvested activations are kept, ``activations`` in the folder unless
            given; a second training with the same shards does not harvest again. With neither,
            they are temporary.
        folder: Where the run is kept.
        checkpoint_seconds: Least time between two checkpoints.
        progress: Told after each step.
        watch: Told each row of metrics, the first after a hundredth of the run: loss, FVU, L0, dead
            share, learning rate, seconds left.
        origin: Model and fingerprint to note in the coder where the data do not say.

    Returns:
        The coder, for activations as the sites have them; its ``summary`` says how it was trained.

    Raises:
        UsageError: The arguments do not go together.
        ConfigError: Settings do not fit the data, or the folder holds another run.
        SiteError: The model has no such site.
        UnknownNameError: The data have no such site.
        TrainingError: Loss or gradients stopped being finite; weights and checkpoint are those of
            the last good step.
        DataError: Activations are not finite.
        FormatError: The folder's checkpoint is damaged.
        OutputError: The folder cannot be written.

    Example:
        >>> import microtome as mt
        >>> model = mt.load("python-code")
        >>> config = mt.sae.Config(k=4, d_sae=32, steps=3, batch_size=8, eval_rows=8)
        >>> sae = mt.sae.train(model, site="blocks.0.mlp.out", text=["x = [1, 2]"], config=config)
        >>> sae.d_in, sae.d_sae, sae.origin.sources
        (176, 32, ('blocks.0.mlp.out',))
    """
    place = None if folder is None else Path(folder)
    chosen = settings_of(config)  # before a harvest that may take hours
    wanted = Wanted(site, sources, targets)
    reading = Reading(text, tokens, context, None if shards is None else Path(shards), place)
    with opened(data, wanted, reading, progress=progress) as given:
        run = _Run(given.activations, chosen, given.sources, given.targets, place)
        run.restore()
        keep_freed_memory()
        run.train(progress, watch, checkpoint_seconds)
        measured = finish(
            run.coder, run.selector, run.scaling, run.config,
            given.activations, given.sources, given.targets,
        )  # fmt: skip
        return run.result(measured, origin or given.origin)


@dataclass
class _Clock:
    """Seconds of this run and of the parts before it."""

    before: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began


class _Run:
    """Everything that changes while a coder trains."""

    def __init__(
        self,
        activations: Activations,
        config: Config,
        sources: tuple[str, ...],
        targets: tuple[str, ...],
        folder: Path | None,
    ) -> None:
        self.activations, self.config, self.folder = activations, config, folder
        self.sources, self.targets = sources, targets
        if not sources or not targets:
            raise ConfigError(
                f"sources are {sources} and targets {targets}; expected at least one site each"
            )
        self.make: Architecture = config.architecture(
            [activations.width(site) for site in sources],
            [activations.width(site) for site in targets],
            same=sources == targets,
        )
        self.scaling = Scaling.of(activations, self.make, sources, targets)
        self.steps = config.planned_steps(activations.rows)
        self.peak_lr = config.peak_lr(self.make.d_sae, self.steps)
        means = {site: activations.mean(site).float()[None] for site in targets}
        self.mean = self.scaling.outputs(means, targets, config.device)[0]
        self.coder = initial_coder(self.make, config, self.mean)
        self.optimizer = Optimizer(self.coder, config)
        self.counter = DeadCounter(self.make.d_sae, config.dead_rows(self.steps), config.device)
        self.selector = Selector(selecting_precision(config))
        self.selected_in = self.selector.precision
        self.step, self.tally, self.clock = 0, Tally(), _Clock()
        self.undo: dict[str, Any] | None = self.selector.state()  # None while a step is half done
        self.metrics: MetricsFile

    def restore(self) -> None:
        """Go on from the folder's checkpoint if there is one."""
        found = None if self.folder is None else Checkpoint.load(self.folder)
        if found is not None and self.folder is not None:
            if self.config.precision == "auto":  # what was measured then holds for the whole run
                self.selected_in = found.identity.get("selected_in", self.selected_in)
            found.require(self.identity(), self.folder)
            try:
                self._take(found, self.folder)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise damaged(self.folder, error) from error
            self.undo = self.selector.state()
        self.metrics = MetricsFile(self.folder, self.step)

    def _take(self, found: Checkpoint, folder: Path) -> None:
        counters = dict(found.counters)
        self.step = counters["step"]
        if not isinstance(self.step, int) or not 0 <= self.step <= self.steps:
            raise ValueError(f"step {self.step!r} of {self.steps}")
        shapes = {f"weights.{n}": tuple(w.shape) for n, w in self.coder.weights.items()}
        if self.step:
            shapes |= {f"adam.{n}": shape for n, shape in self.optimizer.state_shapes().items()}
        found.require_tensors(shapes | {"silent": (self.make.d_sae,)}, folder)
        self.selector.restore(counters["selector"])
        self.tally = Tally(**counters["tally"])
        self.clock = _Clock(counters["seconds"])
        tensors = dict(found.tensors)
        with torch.no_grad():
            for name, weight in self.coder.weights.items():
                weight.copy_(tensors[f"weights.{name}"])
        self.counter.silent.copy_(tensors["silent"])
        prefix = "adam."
        self.optimizer.restore(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )

    def identity(self) -> dict[str, Any]:
        """Return what tells this run from others, as JSON has it."""
        return {
            "config": self.config.to_dict(),
            "steps": self.steps,
            "sources": list(self.sources),
            "targets": list(self.targets),
            "data": self.activations.fingerprint,
            "data_rows": self.activations.rows,
            "architecture": self.make.to_dict(),
            "selected_in": self.selected_in,
        }

    def save(self) -> None:
        """Keep the state between two steps."""
        if self.folder is None:
            return
        tensors = {f"weights.{n}": w for n, w in self.coder.weights.items()}
        tensors |= {f"adam.{n}": t for n, t in self.optimizer.state().items()}
        counters = {
            "step": self.step,
            "seconds": self.clock.seconds,
            "tally": self.tally.to_dict(),
            "selector": self.selector.state(),
        }
        Checkpoint(self.identity(), counters, tensors | {"silent": self.counter.silent}).save(
            self.folder
        )

    def train(
        self,
        progress: Progress,
        watch: Callable[[Mapping[str, Any]], None] | None,
        checkpoint_seconds: float,
    ) -> None:
        """Take the steps that are left."""
        if self.step >= self.steps:
            return
        every = self.config.log_every or max(1, self.steps // 100)
        stream = self.activations.batches(
            self.config.batch_size,
            seed=self.config.stream_seed("data"),
            start=self.step,
            sites=tuple(dict.fromkeys((*self.sources, *self.targets))),
        )
        saved = time.perf_counter()
        try:
            with contextlib.closing(stream):
                for batch in stream:
                    self._step(batch)
                    progress.step(self.step, self.steps, "training")
                    if self.step % every == 0 or self.step == self.steps:
                        self._log(watch)
                    if self.step >= self.steps:
                        break
                    if time.perf_counter() - saved >= checkpoint_seconds:
                        self.save()
                        saved = time.perf_counter()
        except (TrainingError, DataError, KeyboardInterrupt):
            if self.undo is not None:  # else the weights are in the middle of a step
                self.selector.restore(self.undo)
                self.save()
            raise
        self.save()

    def _step(self, batch: Mapping[str, Tensor]) -> None:
        config, step = self.config, self.step
        inputs = self.scaling.inputs(batch, self.sources, config.device)
        same = self.sources == self.targets
        targets = inputs if same else self.scaling.outputs(batch, self.targets, config.device)
        weights = self.coder.weights
        self.undo = remembered = self.selector.state()
        passed = forward(self.make, weights, inputs, self.selector, bandwidth=config.bandwidth)
        found = loss(
            self.make, config, weights, passed, inputs, targets,
            sparsity=config.sparsity_at(step, self.steps), dead=self.counter.dead(),
        )  # fmt: skip
        found.backward(weights)
        values = passed.values.detach()
        self.undo = None
        norm = self.optimizer.step(config.lr_at(step, self.steps, self.peak_lr))
        if norm != norm:
            self.undo = remembered
            self._give_up(batch, float(found.total.detach()))
        self.counter.add(passed.form.fired(values), len(inputs))
        self.tally.add(targets, found.errors, self.mean)
        self.tally.add_active(values)
        self.tally.add_losses(found.parts, len(inputs), norm)
        self.step += 1
        if config.resamples(self.step, self.steps):
            resample(
                self.coder, self.optimizer, self.counter, inputs, found.errors,
                seed=config.seed, step=self.step,
            )  # fmt: skip
        self.undo = self.selector.state()

    def _give_up(self, batch: Mapping[str, Tensor], value: float) -> None:
        """Raise the error that says why a step could not be taken; the weights are as before it."""
        for site, rows in batch.items():
            bad = ~torch.isfinite(rows).all(1)
            if bool(bad.any()):
                raise DataError(
                    f"activations of {site!r} hold NaN or infinities in {int(bad.sum())} of "
                    f"{len(rows)} rows of batch {self.step}; harvest them again, or leave these "
                    "rows out"
                )
        where = (
            "nothing was kept: give a folder to keep it"
            if self.folder is None
            else (f"it is kept in {self.folder / FILE}")
        )
        raise TrainingError(
            f"training diverged in step {self.step + 1} of {self.steps}: the loss is {value:.3g} "
            f"and the gradient not finite, at learning rate "
            f"{self.config.lr_at(self.step, self.steps, self.peak_lr):.3g}; the state before this "
            f"step was good and {where}; start again with a lower lr"
        )

    def _log(self, watch: Callable[[Mapping[str, Any]], None] | None) -> None:
        tally, seconds = self.tally, self.clock.seconds
        row: dict[str, Any] = {
            "step": self.step,
            "rows": self.step * self.config.batch_size,
            "loss": sum(tally.losses.values()) / max(1, tally.rows),
            "fvu": tally.fvu,
            "l0": tally.l0,
            "dead_share": self.counter.share,
            "lr": self.config.lr_at(self.step - 1, self.steps, self.peak_lr),
            "gradient": tally.largest_gradient,
            "seconds": seconds,
            "seconds_left": seconds / self.step * (self.steps - self.step),
        }
        row |= {f"loss_{name}": total / tally.rows for name, total in tally.losses.items()}
        self.metrics.add(row)
        self.tally = Tally()
        if watch is not None:
            watch(row)

    def result(self, measured: Measured, origin: Origin) -> SAE:
        """Return the finished coder, its scales folded in, with its summary."""
        import pandas as pd

        summary = TrainingSummary(
            **asdict(measured),
            dead_share=self.counter.share,
            steps=self.steps,
            rows=self.steps * self.config.batch_size,
            seconds=self.clock.seconds,
            history=pd.DataFrame(self.metrics.rows),
            sources=self.sources,
            targets=self.targets,
            architecture=self.make.to_dict(),
            precision=self.selected_in,
            provenance=collect(config=self.config, seed=self.config.seed),
        )
        self.coder.origin = Origin(
            self.sources,
            self.targets,
            origin.model,
            origin.fingerprint,
            {
                **origin.details,
                "training": self.config.to_dict(),
                "scaling": asdict(self.scaling),
                "data": self.activations.fingerprint,
                "fvu": measured.fvu,
                "l0": measured.l0,
            },
        )
        if self.folder is not None:
            summary.save(self.folder / SUMMARY)
        self.coder.summary = summary
        return self.coder
