"""How a model's LoRA adapters are configured; the same for both families."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sixfold.core.errors import InvalidRequest
from sixfold.core.source_ref import SourceRef

_MAX_NAME_CHARS = 200


class LoraOptions(BaseModel):
    """Adapters over one model, each asked for by its own name."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    adapters: dict[str, SourceRef] = {}
    """Sources by the name that clients send as ``model``: folders as PEFT saves them."""

    max_adapters: int = Field(default=8, ge=1, le=1024)
    """Adapters that may be loaded at once, those that finish their last requests included."""

    max_rank: int = Field(default=64, ge=1, le=1024)
    """Largest rank of any adapter."""

    load_from: tuple[Path, ...] = ()
    """Folders below which ``/v1/load_lora_adapter`` may find adapters; without any, that route and its counterpart are
    off."""

    @field_validator("adapters")
    @classmethod
    def _named(cls, value: dict[str, SourceRef]) -> dict[str, SourceRef]:
        for name in value:
            if not is_adapter_name(name):
                raise ValueError(
                    f"{name!r} is no name: it must be text without spaces, {_MAX_NAME_CHARS} characters at most"
                )
        return value

    @field_validator("load_from")
    @classmethod
    def _absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for folder in value:
            if not folder.is_absolute():
                raise ValueError(f"{folder} must be an absolute path: options do not know the configuration's folder")
        return value

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        if len(self.adapters) > self.max_adapters:
            raise ValueError(f"{len(self.adapters)} adapters exceed max_adapters ({self.max_adapters}). Raise it")
        return self

    def with_adapter(self, name: str, path: str) -> LoraOptions:
        """A copy with one more adapter, from a folder that a client named.

        Raises:
            InvalidRequest: The name is taken, the folder is not allowed, or there are too many; ``param`` says which.
        """
        if not is_adapter_name(name):
            raise InvalidRequest(
                f"'lora_name' must be text without spaces, {_MAX_NAME_CHARS} characters at most.", param="lora_name"
            )
        if name in self.adapters:
            raise InvalidRequest(
                f"The adapter {name!r} is loaded already. Unload it first, or choose another name.", param="lora_name"
            )
        if len(self.adapters) >= self.max_adapters:
            raise InvalidRequest(
                f"{self.max_adapters} adapters are loaded, which is the most (lora.max_adapters). Unload one first.",
                param="lora_name",
            )
        folder = self._allowed_folder(path)
        # Validated by itself: a copy would take whatever it is given.
        given = SourceRef.model_validate(f"file:{folder}").model_copy(update={"path": folder})
        return self.model_copy(update={"adapters": {**self.adapters, name: given}})

    def without_adapter(self, name: str) -> LoraOptions:
        """A copy without an adapter.

        Raises:
            InvalidRequest: There is none of this name.
        """
        if name not in self.adapters:
            names = ", ".join(sorted(self.adapters)) or "none"
            raise InvalidRequest(f"No adapter {name[:200]!r} is loaded. Loaded: {names}.", param="lora_name")
        return self.model_copy(update={"adapters": {n: ref for n, ref in self.adapters.items() if n != name}})

    def _allowed_folder(self, path: str) -> Path:
        """The real folder; links are followed before it is compared, so none leads out of the allowed ones."""
        message = "'lora_path' must be a folder below one of lora.load_from of the model's options"
        if "\0" in path or not Path(path).is_absolute():
            raise InvalidRequest(f"{message}, as an absolute path.", param="lora_path")
        folder = Path(path).resolve()
        allowed = [parent.resolve() for parent in self.load_from]
        # One message for both: what is not below an allowed folder must not tell whether it exists.
        if not any(folder.is_relative_to(parent) for parent in allowed) or not folder.is_dir():
            raise InvalidRequest(f"{message}, with an adapter as PEFT saves it.", param="lora_path")
        return folder


def is_adapter_name(name: str) -> bool:
    """Whether clients can send it as ``model``."""
    return 0 < len(name) <= _MAX_NAME_CHARS and name.isprintable() and not any(char.isspace() for char in name)


def adapter_names(lora: LoraOptions | None) -> tuple[str, ...]:
    """The names that the options offer beside the model's own."""
    return () if lora is None else tuple(lora.adapters)


def differ_in_adapters_only(old: LoraOptions | None, new: LoraOptions | None) -> bool:
    """Whether a running model can take over the new options: it was prepared for adapters, and only these change."""
    return old is not None and new is not None and new.model_copy(update={"adapters": old.adapters}) == old


def lora_details(lora: LoraOptions | None) -> dict[str, bool]:
    """What a model tells its HTTP face: whether adapters may come and go by a route."""
    return {} if lora is None else {"loads_adapters": bool(lora.load_from)}
