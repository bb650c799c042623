"""Loads whichever of transformers' speech models a folder holds."""

from __future__ import annotations

import importlib
from typing import Any

from sixfold.core.errors import ConfigError, SourceError
from sixfold.core.family import LoadContext, ModelFiles
from sixfold.plugins.tts.model import SpeechModel
from sixfold.plugins.tts.options import TransformersSpeechOptions

_LOADERS = {
    "speecht5": "sixfold.plugins.tts.speecht5_loader",
    "vits": "sixfold.plugins.tts.vits_loader",
}
_SPEECHT5_OPTIONS = ("speakers", "vocoder")


def load(context: LoadContext) -> SpeechModel:
    """The family's loader; runs in the worker process.

    Raises:
        SourceError: The folder holds none of them.
        ConfigError: An option does not fit the model.
    """
    kind = str(ModelFiles(context.path).json("config.json").get("model_type"))
    if kind not in _LOADERS:
        raise SourceError(
            f"models.{context.model_name}: tts/transformers speaks with {', '.join(sorted(_LOADERS))}; the folder's "
            f"config.json says {kind!r}."
        )
    options = context.options
    assert isinstance(options, TransformersSpeechOptions)
    for name in _SPEECHT5_OPTIONS:
        if kind != "speecht5" and getattr(options, name):
            raise ConfigError(f"models.{context.model_name}.options.{name} is for SpeechT5; this is {kind}. Remove it.")
    loader: Any = importlib.import_module(_LOADERS[kind])
    model: SpeechModel = loader.load(context)
    return model
