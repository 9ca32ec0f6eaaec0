"""Worker programs: each does the workloads with one package and prints one line of JSON.

They run in the package's own virtual environment and import nothing of the project but each other.
"""

from __future__ import annotations

import os
import time

STARTED = time.perf_counter()
"""When the worker began: what passes until its imports are done is its import time."""

# Read when torch is loaded: idle threads sleep, so that CPU seconds count work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
