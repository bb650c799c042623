"""Loads a text-and-image model from a transformers folder, or from sentence-transformers' folder around it."""

from __future__ import annotations

from pathlib import Path

import torch

from sixfold.core.batching.model import ModelInfo
from sixfold.core.family import LoadContext, ModelFiles
from sixfold.plugins.embedding.clip.model import ClipModel
from sixfold.plugins.embedding.clip.network import DualEncoder
from sixfold.plugins.embedding.clip.options import ClipOptions
from sixfold.plugins.embedding.plugin import clip_folder


def load(context: LoadContext) -> ClipModel:
    """The family's loader; runs in the worker process.

    Raises:
        SourceError: The folder is no such model.
    """
    options = context.options
    assert isinstance(options, ClipOptions)
    torch.set_num_threads(context.num_threads)
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    context.report(0.1, "reading weights")
    path: Path = context.path / (clip_folder(ModelFiles(context.path)) or "")
    network = DualEncoder(path, context.device, dtype)
    vector = network.embed_texts([network.tokenize("a picture", truncate_tokens=-1, param="input")])
    context.report(1.0, "loaded")
    return ClipModel(
        info=ModelInfo(
            max_model_len=network.max_tokens,
            parameters=network.num_parameters,
            memory_bytes=network.num_parameters * dtype.itemsize,
            details={
                "dimension": int(vector.shape[1]),
                "dtype": str(dtype).removeprefix("torch."),
                "images": True,
                "max_inputs": options.max_inputs,
                "normalized": options.normalize,
            },
        ),
        network=network,
        options=options,
        num_threads=context.num_threads,
    )
