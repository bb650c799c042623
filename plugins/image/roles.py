"""The pipelines of one set of weights: which draws from a prompt, which changes an image, which fills a mask."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.image.schema import Operation

_LOG = logging.getLogger(__name__)
_D: Any = diffusers


# Pipelines that draw a new picture after images that they see whole; each brings them to its own size. Others start from
# one image, which has the size of the picture.
_MAX_REFERENCES = {
    "Flux2KleinPipeline": 16,
    "Flux2Pipeline": 16,
    "FluxKontextPipeline": 1,
    "QwenImageEditPipeline": 1,
    "QwenImageEditPlusPipeline": 16,
}


@dataclass(frozen=True, slots=True)
class Role:
    """A pipeline and the arguments that its call takes, with their defaults."""

    pipeline: Any
    defaults: Mapping[str, Any]

    def takes(self, name: str) -> bool:
        """Whether the call has this argument."""
        return name in self.defaults

    @property
    def max_references(self) -> int:
        """How many images it draws after; 0 for one that starts from an image."""
        return _MAX_REFERENCES.get(type(self.pipeline).__name__, 0)


def role_of(pipeline: Any) -> Role:
    """Reads a pipeline's call."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return Role(pipeline, {name: parameter.default for name, parameter in parameters.items() if name != "self"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The pipelines of one model, which share their modules; None for what the model can't do."""

    generate: Role | None
    edit: Role | None
    inpaint: Role | None

    def choose(self, operation: Operation, *, masked: bool) -> Role:
        """The pipeline for a request.

        Raises:
            InvalidRequest: The model can't do it.
        """
        if operation == "generate":
            if self.generate is None:
                raise InvalidRequest("This model only changes images: use /v1/images/edits.", param="model")
            return self.generate
        found = self.inpaint if masked else self.edit
        if found is None:
            what = "fill a mask" if masked else "start from an image"
            raise InvalidRequest(f"This model can't {what}.", param="mask" if masked else "model")
        return found


def find_roles(pipeline: Any) -> Roles:
    """All that the loaded pipeline and its sisters of the same components can do."""
    own = role_of(pipeline)
    needs_image = own.takes("image") and not _text_alone(pipeline, own)
    generate = None if needs_image else own
    edit = own if own.takes("image") and not own.takes("mask_image") else None
    inpaint = own if own.takes("mask_image") else None
    return Roles(
        generate=generate or _sister(_D.AutoPipelineForText2Image, pipeline),
        edit=edit or _sister(_D.AutoPipelineForImage2Image, pipeline),
        inpaint=inpaint or _sister(_D.AutoPipelineForInpainting, pipeline),
    )


def _text_alone(pipeline: Any, role: Role) -> bool:
    """Editing models that also draw from a prompt put the image first and make it optional."""
    return next(iter(role.defaults)) == "prompt" or "Kontext" in type(pipeline).__name__


def _sister(kind: Any, pipeline: Any) -> Role | None:
    try:
        return role_of(kind.from_pipe(pipeline))
    except ValueError:  # diffusers has none for this family
        return None
    except Exception as error:
        _LOG.warning("%s can't be made from %s: %s", kind.__name__, type(pipeline).__name__, error)
        return None
