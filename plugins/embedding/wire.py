"""Writes the JSON of ``/v1/embeddings`` from float32 bytes; base64 never becomes Python floats, and floats are short."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from sixfold.plugins.embedding.schema import EmbeddingOutput

_MIN_DIGITS, _MAX_DIGITS = 7, 9  # 9 decimal digits tell any two float32 apart, 6 always survive; most need 7 or 8
_EXACT_POWERS = 22  # 10**22 is the largest power of ten that a float64 holds exactly
_encode = msgspec.json.Encoder().encode


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
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (rows, _encode(model), usage)


def _base64_texts(output: EmbeddingOutput) -> Iterator[bytes]:
    view = memoryview(output.vectors)
    size = output.dimension * 4
    for start in range(0, len(view), size):
        yield b'"%b"' % base64.b64encode(view[start : start + size])


def _float_texts(output: EmbeddingOutput) -> Iterator[bytes]:
    rows = np.frombuffer(output.vectors, dtype="<f4").reshape(-1, output.dimension)
    for row in shortest_decimals(rows):
        yield _encode(row.tolist())


def shortest_decimals(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Float64 values whose shortest text is a text of the float32 value with the fewest digits from 7 to 9.

    Printing a float32 as a float64 shows 17 digits, twice what it holds. Here each value is rounded to the fewest
    decimal digits that still read back as the same float32, so that any shortest-text float64 writer prints just these.
    Values too small or large to scale exactly are left as they are: longer, but exact.
    """
    exact = values.astype(np.float64)
    magnitude = np.abs(exact)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log10(magnitude))
    can_scale = (magnitude > 0) & (exponent > _MAX_DIGITS - _EXACT_POWERS) & (exponent < _EXACT_POWERS)
    exponent[~can_scale] = 0.0
    found = exact.copy()
    todo = can_scale
    for digits in range(_MIN_DIGITS, _MAX_DIGITS + 1):
        power = digits - 1 - exponent
        up, down = 10.0 ** np.maximum(power, 0.0), 10.0 ** np.maximum(-power, 0.0)
        rounded = np.rint(exact * up / down) / up * down
        fits = todo & (rounded.astype(np.float32) == values)
        found[fits] = rounded[fits]
        todo = todo & ~fits
    return found
