"""The way in: `autotune` and `python -m autotune`.

Everything that can go wrong ends here, as a message with what to type instead and an exit status:
0 done, 1 failed, 2 usage, 3 nothing fits the budget, 4 `doctor` found a problem, 5 a number did not
come out again (`replay`, `run --verify`), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import CycloptsError, UnusedCliTokensError

from autotune.cli import make_app
from autotune.core.errors import AutotuneError, UsageError

INTERRUPTED = 130
_GLOBAL_FLAGS = ("--json", "--quiet", "-q", "--verbose", "-v", "--no-color")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: What was typed; by default the program's own arguments.

    Returns:
        The exit status.
    """
    typed = verb_first(list(sys.argv[1:] if arguments is None else arguments))
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a terminal that has no such sign shows a question mark
            reconfigure(errors="replace")
    try:
        status = _dispatch(typed)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read this has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def verb_first(typed: list[str]) -> list[str]:
    """Move options of every command that stand before the verb behind it."""
    moved: list[str] = []
    rest = list(typed)
    while rest and (rest[0] in _GLOBAL_FLAGS or rest[0].partition("=")[0] == "--results"):
        moved.append(rest.pop(0))
        if moved[-1] == "--results" and rest:
            moved.append(rest.pop(0))
    end = rest.index("--") if "--" in rest else len(rest)
    return [*rest[:end], *moved, *rest[end:]] if rest else moved


def _dispatch(typed: list[str]) -> int:
    from autotune.report.text import make_console

    plain = "--no-color" in typed
    app = make_app(make_console(sys.stdout, plain=True) if plain or _no_escapes() else None)
    try:
        result = app(typed, exit_on_error=False, print_error=False, result_action="return_value")
        return result if isinstance(result, int) else 0
    except AutotuneError as error:
        return _fail(error, typed)
    except CycloptsError as error:
        return _fail(_usage(error), typed)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  (becomes one line, and a traceback in a file)
        return _fail(_unexpected(error, verbose="-v" in typed or "--verbose" in typed), typed)


def _no_escapes() -> bool:
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "").lower() == "dumb"


def _fail(error: AutotuneError, typed: Sequence[str]) -> int:
    import json

    from autotune.report.document import error_document, plain
    from autotune.report.text import error_lines, make_console

    if "--json" in typed:
        text = json.dumps(plain(error_document(error)), ensure_ascii=False, indent=2)
        sys.stdout.write(f"{text}\n")
    else:
        console = make_console(sys.stderr, plain="--no-color" in typed)
        console.print(error_lines(error), soft_wrap=True)
    return error.exit_status


def _usage(error: CycloptsError) -> UsageError:
    """Say what cyclopts found wrong, with what to type instead."""
    chain = " ".join(("autotune", *(error.command_chain or ())))
    error.verbose = False
    message = " ".join(str(error).split()).rstrip(".")
    help_text = f"`{chain} --help` lists what can be typed"
    if "--budget" in message and "requires an argument" in message:
        message = "how much memory may a trial need?"
        help_text = "autotune run --budget 16GB   a card's size, or the memory you can spare\n"
        help_text += "autotune run --budget auto   what this device has free"
        return UsageError(message, where="--budget", help=help_text)
    if isinstance(error, UnusedCliTokensError):
        message = f"nothing takes {' '.join(map(repr, error.unused_tokens or ()))} here"
    return UsageError(message[:1].lower() + message[1:], help=help_text)


def _unexpected(error: Exception, *, verbose: bool) -> AutotuneError:
    """Turn an error that nobody foresaw into one line, and keep its traceback in a file."""
    lines = "".join(traceback.format_exception(error)).rstrip()
    message = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
    if verbose:
        return AutotuneError(message, context=lines.splitlines())
    help_text = "the same command with -v shows the traceback"
    log = _keep(lines)
    return AutotuneError(
        message, help=f"{log} has the traceback\n{help_text}" if log else help_text
    )


def _keep(lines: str) -> str | None:
    import tempfile

    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="autotune-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write(lines + "\n")
    except OSError:
        return None  # a full disk must not hide the error itself
    return file.name


if __name__ == "__main__":
    sys.exit(main())
