"""All detectors of the taxonomy, in the order in which they are run and listed."""

from __future__ import annotations

from microtome.circuits.taxonomy.causal import CAUSAL
from microtome.circuits.taxonomy.composition import COMPOSITION
from microtome.circuits.taxonomy.copying import COPYING
from microtome.circuits.taxonomy.detector import Detector
from microtome.circuits.taxonomy.matching import MATCHING
from microtome.circuits.taxonomy.motifs import MOTIFS
from microtome.circuits.taxonomy.neurons import NEURONS
from microtome.circuits.taxonomy.patterns import PATTERNS
from microtome.circuits.taxonomy.redundancy import REDUNDANCY
from microtome.circuits.taxonomy.skip_trigrams import SKIP_TRIGRAMS

DETECTORS: tuple[Detector, ...] = (
    *PATTERNS, *MATCHING, *COPYING, *SKIP_TRIGRAMS, *CAUSAL, *NEURONS, *COMPOSITION,
    *REDUNDANCY, *MOTIFS,
)  # fmt: skip
"""The detectors."""
