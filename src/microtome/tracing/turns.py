"""One observed pass of a module at a time: hooks belong to the module, not to a thread."""

from __future__ import annotations

import threading
import weakref

from torch import nn

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


def turn(module: nn.Module) -> threading.RLock:
    """Return the lock that a thread holds while its hooks are on a module."""
    with _guard:
        return _locks.setdefault(module, threading.RLock())
