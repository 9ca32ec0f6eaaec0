"""Running a command: exit codes, errors in one paragraph, interruption, broken pipes."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from typing import Any

INTERRUPTED = 130
BUG = 70


def run(app: Any) -> None:
    """Run a typer application and leave the process with the right exit code.

    0: it ran. 1: nothing to explain, or a check failed. 2: wrong usage or bad input.
    130: interrupted. 70: an error of microtome's own.
    """
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(args=arguments, standalone_mode=True)
    except SystemExit as leaving:
        # typer turns an interruption into this code and says nothing
        if leaving.code == INTERRUPTED:
            _say("Interrupted; nothing was left half-written.")
        raise
    except KeyboardInterrupt:
        _say("Interrupted; nothing was left half-written.")
        _leave(INTERRUPTED)
    except BrokenPipeError:
        # the reader went away, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(0)
    except BaseException as error:
        if debug:
            raise
        _leave(_explain(error))


def _terminate(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _leave(code: int) -> None:
    sys.stderr.flush()
    raise SystemExit(code)


def _explain(error: BaseException) -> int:
    """Print an error as one paragraph; return the exit code."""
    from microtome.errors import MicrotomeError, OutputError

    if isinstance(error, MicrotomeError):
        _say(f"{error.code} {' '.join(str(error).split())}")
        return error.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        _say(
            f"{OutputError.code} {error.strerror or error}: {error.filename or 'standard output'}."
        )
        return OutputError.exit_code
    if isinstance(error, MemoryError):
        _say("The computer ran out of memory. Use a smaller --n or model, or --dtype bfloat16.")
        return 2
    text = " ".join(str(error).split())[:400]
    _say(
        f"An error of microtome's own: {type(error).__name__}: {text}. Run it again with --debug "
        "and report what it prints."
    )
    return BUG


def _say(text: str) -> None:
    width = 100
    print(
        textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False), file=sys.stderr
    )
