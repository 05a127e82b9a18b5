"""The command `serpentine`: serve | predict | generate | models | convert | config | keys | cluster.

Exit status: 0 done, 1 the input was refused or the work failed, 2 the command could not start, 130 interrupted, 141
nobody reads what it writes. Answers go to stdout, all else to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from service.commands import StartError
from service.commands.options import parser
from service.commands.readers import let_go
from service.errors import ServiceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line -> its exit status."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # here it can be told that nobody reads, and not once the interpreter ends
    except BrokenPipeError:
        if not let_go():
            raise  # of another pipe than ours
        return 141  # as of who dies of SIGPIPE


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    try:
        status: int = import_module(f"service.commands.{arguments.command}").run(arguments)
        return status
    except ServiceError as error:
        return _complain(error.detail, 1)
    except StartError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return 130


def _complain(message: str, status: int) -> int:
    print(f"serpentine: {message}", file=sys.stderr)
    return status
