"""``sixfold hash-key``: what the configuration holds of an API key, without the key in a shell's history."""

from __future__ import annotations

import argparse
import json
import secrets
import sys

from sixfold.core.errors import UsageError
from sixfold.core.plugins import Plugins
from sixfold.core.serving.settings import hash_key

MIN_CHARACTERS = 20
"""A fast hash keeps a key secret only if nobody can guess it: shorter ones were most probably thought up."""
_KEY_BYTES = 32


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "name", help="who will hold the key: the unit of fairness and of ownership, and the name in logs"
    )
    parser.add_argument("--stdin", action="store_true", help="read the key from standard input instead of making one")


def run(_plugins: Plugins, args: argparse.Namespace) -> int:
    """Prints the key (if it was made here) to standard error and its entry to standard output.

    Raises:
        UsageError: The key that was given can be guessed, or can't be sent in a header.
    """
    if args.stdin:
        key = sys.stdin.readline().rstrip("\r\n")
        _check(key)
    else:
        key = f"sk-{secrets.token_urlsafe(_KEY_BYTES)}"
        print(f"The key, shown this once: {key}", file=sys.stderr)
    print(f"- name: {json.dumps(args.name)}\n  sha256: {hash_key(key)}")
    return 0


def _check(key: str) -> None:
    if len(key) < MIN_CHARACTERS:
        raise UsageError(
            f"The key has {len(key)} characters. Give one of at least {MIN_CHARACTERS} that were drawn at random, "
            "or let 'sixfold hash-key NAME' make one."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError("A key has printable ASCII characters only, and no space: it is sent in a header.")
