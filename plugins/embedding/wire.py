"""Writes the JSON of ``/v1/embeddings`` from float32 bytes; base64 never becomes Python floats, and floats are short."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Literal

import numpy as np
import orjson

from sixfold.plugins.embedding.schema import EmbeddingOutput


def response_body(
    output: EmbeddingOutput, *, model: str, encoding: Literal["float", "base64"], num_tokens: int
) -> bytes:
    """The body that OpenAI's clients expect; one object a vector, in the order of the inputs.

    Args:
        output: The vectors.
        model: The name that the client used.
        encoding: ``base64`` is the little-endian float32 bytes.
        num_tokens: For ``usage``.
    """
    texts = _base64_texts(output) if encoding == "base64" else _float_texts(output)
    rows = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, text) for index, text in enumerate(texts)
    )
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (num_tokens, num_tokens)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (rows, orjson.dumps(model), usage)


def _base64_texts(output: EmbeddingOutput) -> Iterator[bytes]:
    view = memoryview(output.vectors)
    size = output.dimension * 4
    for start in range(0, len(view), size):
        yield b'"%b"' % base64.b64encode(view[start : start + size])


def _float_texts(output: EmbeddingOutput) -> Iterator[bytes]:
    # orjson prints each float32 with the fewest digits that read back as the same float32.
    for row in np.frombuffer(output.vectors, dtype="<f4").reshape(-1, output.dimension):
        yield orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
