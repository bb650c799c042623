"""For models that honour a part of what their modality can be asked: the rest is refused, never silently ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import msgspec

from sixfold.core.errors import InvalidRequest


def refuse_others(
    given: msgspec.Struct, honoured: Collection[str], *, params: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuses an input that sets a field to other than its default, unless the model honours the field.

    Args:
        given: The request's input, or a struct in it.
        honoured: Names of fields.
        params: What clients call a field, where they have another name for it.

    Raises:
        InvalidRequest: With the first such field.
    """
    for field in msgspec.structs.fields(given):
        if field.name in honoured or field.required or getattr(given, field.name) == field.default:
            continue
        if field.default_factory is not msgspec.NODEFAULT and getattr(given, field.name) == field.default_factory():
            continue
        param = params.get(field.name, field.name)
        raise InvalidRequest(f"This model does not know {param!r}. Leave it out.", param=param)
