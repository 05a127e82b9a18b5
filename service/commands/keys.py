"""The command `keys`."""

from __future__ import annotations

import sys
from argparse import Namespace

from service.commands import StartError
from service.keys.keyring import new_key


def run(arguments: Namespace) -> int:
    """Print a new key's line, and on stderr the key. Raises StartError."""
    try:
        secret, line = new_key(arguments.name)
    except ValueError as error:
        raise StartError(str(error)) from None
    print(f"The key, which is shown this once and kept nowhere:\n\n  {secret}\n", file=sys.stderr)
    print(line)
    return 0
