"""The adapters that a running model has, by the names under which clients ask for them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path

import torch

from sixfold.core.errors import ConfigError, ModelNotFound
from sixfold.plugins.llm.lora_adapter import Adapter, ModuleShape
from sixfold.plugins.llm.lora_files import read_adapter
from sixfold.plugins.llm.lora_options import LoraOptions


class AdapterTable:
    """Read by pool threads while one other thread at a time changes it.

    An adapter whose name is taken away is not found any more; its weights stay until the last sequence that uses it has
    ended, because that sequence holds it.

    Args:
        shapes: The layers that can have adapters.
        dtype: Of the model.
        device: Of the model.
        max_adapters: Loaded at once, those that only sequences hold included.
        max_rank: Largest rank.
    """

    def __init__(
        self,
        shapes: Mapping[str, ModuleShape],
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_adapters: int,
        max_rank: int,
    ) -> None:
        self._shapes = shapes
        self._dtype = dtype
        self._device = device
        self._max_adapters = max_adapters
        self._max_rank = max_rank
        self._by_name: Mapping[str, Adapter] = {}
        self._loaded: weakref.WeakSet[Adapter] = weakref.WeakSet()

    @property
    def num_loaded(self) -> int:
        """Adapters in memory."""
        return len(self._loaded)

    @property
    def num_bytes(self) -> int:
        """Memory of all of them."""
        return sum(adapter.num_bytes for adapter in tuple(self._loaded))

    def find(self, name: str) -> Adapter:
        """The adapter of a name. [any thread]

        Raises:
            ModelNotFound: It was unloaded meanwhile.
        """
        adapter = self._by_name.get(name)
        if adapter is None:
            raise ModelNotFound(
                f"The adapter {name[:200]!r} is not loaded (any more). GET /v1/models lists all.", param="model"
            )
        return adapter

    def follow(self, options: LoraOptions) -> None:
        """Loads and forgets adapters until the table is what the options say; if it can't, nothing changes.

        Raises:
            ConfigError: An adapter can't be loaded, or there is no room for it yet.
        """
        paths = {name: ref.local_path for name, ref in options.adapters.items()}
        kept = {name: adapter for name, adapter in self._by_name.items() if name in paths}
        missing = [name for name in paths if name not in kept]
        if missing and self.num_loaded + len(missing) > self._max_adapters:
            raise ConfigError(
                f"{self.num_loaded} adapters are in memory, and lora.max_adapters is {self._max_adapters}: those that were "
                "unloaded leave with the last request that uses them. Try again later, or raise it."
            )
        added = {name: self._read(name, paths[name]) for name in missing}
        self._loaded.update(added.values())
        self._by_name = {name: kept.get(name) or added[name] for name in paths}

    def _read(self, name: str, folder: Path) -> Adapter:
        return read_adapter(
            folder,
            name=name,
            shapes=self._shapes,
            max_rank=self._max_rank,
            dtype=self._dtype,
            device=self._device,
        )
