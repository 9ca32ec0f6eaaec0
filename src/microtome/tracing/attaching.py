"""Attaching codecs to a model, as methods that it inherits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self, cast

from microtome.tracing.attachments import Attachment, named
from microtome.tracing.catalog import Catalog
from microtome.tracing.joining import attachments
from microtome.tracing.sites import Site

if TYPE_CHECKING:
    from microtome.core.protocols import Codec
    from microtome.tracing.model import Model


class Attaching:
    """What a model has to do with codecs.

    A model with a codec is another value than the one without: it shares the module, which is not
    touched, and knows two sites more. So nothing has to be undone, several such models may be in
    use side by side, and no call depends on what was attached before somewhere else.

    Attributes:
        catalog: The sites.
        codecs: The attached codecs in order.
    """

    catalog: Catalog
    codecs: tuple[Attachment, ...] = ()

    def attach(
        self,
        name: str,
        codec: Codec,
        *,
        at: str | Site | Sequence[str | Site] | None = None,
        to: str | Site | Sequence[str | Site] | None = None,
    ) -> Self:
        """Return this model with a codec attached; its latents and error are sites then.

        ``AT/NAME`` are the latents, ``AT/NAME.error`` (of a transcoder ``TO/NAME.error``) what the
        reconstruction leaves over, to be captured, changed, differentiated and swept like any
        other site. Reading changes nothing. A change of latents adds
        ``decode(new) - decode(old)``, one of the error puts ``decode(f) + bypass + new``. The
        codec computes in its own type (that of its parameters, its ``dtype``, or float32); what it
        changes is rounded to the model's. One short pass checks all of it.

        A codec of several sites has an error at each target. Its latents are a site where they
        become known: those of a crosscoder at its last source, those of a cross-layer transcoder
        at the source they read. A change of them is written at the targets from there on; at
        targets before, the error can only be read. See :mod:`microtome.tracing.joints`.

        Args:
            name: Letters, digits, ``_`` and ``-``. The same name may stand for one codec in each
                block.
            codec: An SAE, a transcoder, a crosscoder, or anything of that shape.
            at: The place it reads, or the places, in the order of its input; by default those
                that the codec says it belongs to (its ``origin``).
            to: The place it writes, or the places, in the order of its output: for transcoders,
                behind ``at``; where it reads unless given.

        Returns:
            A model that shares this one's module.

        Raises:
            ConfigError: If the name is malformed or taken, or the codec cannot compute here.
            SiteError: If a site cannot be read or written, or means several places.
            ShapeError: If widths do not fit, or the codec gives NaN.
            ModelSupportError: If the model is not a transformer.
        """
        new = attachments(cast("Model", self), name, codec, at, to)
        return self._with((*self.codecs, *new))

    def detach(self, name: str) -> Self:
        """Return this model without the codecs of a name.

        Raises:
            ConfigError: If there is none.
        """
        gone = named(name, self.codecs)
        return self._with(tuple(one for one in self.codecs if one not in gone))

    def attached(self, name: str) -> tuple[Attachment, ...]:
        """Return the codecs attached under a name, one for each place where latents are.

        Raises:
            ConfigError: If there is none.
        """
        return named(name, self.codecs)

    def _with(self, codecs: tuple[Attachment, ...]) -> Self:
        found = copy.copy(self)
        found.codecs = codecs
        found.catalog = Catalog(self.catalog.anatomy, self.catalog.module, codecs)
        return found
