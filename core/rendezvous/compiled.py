"""Denoisers whose repeated blocks are compiled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch

from sixfold.core.errors import ConfigError


def compile_blocks(denoisers: Iterable[torch.nn.Module]) -> None:
    """Has ``torch.compile`` compile the blocks that each repeats, once for any number of rows, when they first run.

    Raises:
        ConfigError: One names no such blocks.
    """
    for module in denoisers:
        try:
            cast(Any, module).compile_repeated_blocks(dynamic=True)
        except ValueError as error:
            raise ConfigError(
                f"options.compile: {type(module).__name__} names no blocks that repeat. Remove compile."
            ) from error
