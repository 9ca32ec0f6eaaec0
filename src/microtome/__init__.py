"""microtome: open a network, find the mechanism behind a behavior, test it, edit it."""

from __future__ import annotations
