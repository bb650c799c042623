"""Writes the JSON of ``/v1/embeddings`` from float32 bytes; base64 never becomes Python floats, and floats are short."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from sixfold.plugins.embedding.schema import EmbeddingOutput, SparseVector


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
    columns = [list(column) for column in _columns(output, encoding)]
    rows = b",".join(
        b'{"object":"embedding","index":%d,%b}' % (index, b",".join(parts))
        for index, parts in enumerate(zip(*columns, strict=True))
    )
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (num_tokens, num_tokens)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (rows, orjson.dumps(model), usage)


def _columns(output: EmbeddingOutput, encoding: Literal["float", "base64"]) -> Iterator[Iterator[bytes]]:
    """For each kind of vector its member of every row's object."""
    texts = _base64_texts if encoding == "base64" else _float_texts
    if output.vectors:
        yield (b'"embedding":%b' % text for text in texts(output.vectors, output.dimension))
    if output.sparse:
        yield (b'"sparse_embedding":%b' % _sparse_text(vector) for vector in output.sparse)
    if output.multi_vectors:
        yield (
            b'"multi_vector_embedding":[%b]' % b",".join(texts(rows, output.multi_dimension))
            for rows in output.multi_vectors
        )


def _sparse_text(vector: SparseVector) -> bytes:
    indices = np.frombuffer(vector.indices, dtype="<i4")
    values = np.frombuffer(vector.values, dtype="<f4")
    return b'{"indices":%b,"values":%b}' % (_numbers(indices), _numbers(values))


def _base64_texts(vectors: bytes, dimension: int) -> Iterator[bytes]:
    view = memoryview(vectors)
    size = dimension * 4
    for start in range(0, len(view), size):
        yield b'"%b"' % base64.b64encode(view[start : start + size])


def _float_texts(vectors: bytes, dimension: int) -> Iterator[bytes]:
    for row in np.frombuffer(vectors, dtype="<f4").reshape(-1, dimension):
        yield _numbers(row)


def _numbers(row: NDArray[np.float32] | NDArray[np.int32]) -> bytes:
    # orjson prints each float32 with the fewest digits that read back as the same float32.
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
