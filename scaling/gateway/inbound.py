"""What a request says of itself, as far as the gateway must know it: the model, whether it streams, how its prompt begins.

The body is passed on byte by byte as it came; here it is only looked into. What is wrong beyond that is the replica's to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from sixfold.core.errors import InvalidRequest
from sixfold.scaling.disagg.bodies import TRANSFER_FIELD
from sixfold.scaling.gateway.form_peek import peek_urlencoded
from sixfold.scaling.gateway.upload_peek import UploadFacts
from sixfold.scaling.route.policy import RequestShape
from sixfold.scaling.route.prefix import hash_blocks

_BYTES_PER_UNIT = 4
"""Of a prompt's JSON, about one token."""
_DEFAULT_OUTPUT_UNITS = 256
_MAX_NAME = 512

REPLAYABLE = re.compile(
    r"/v1/(chat/completions|completions|embeddings|rerank|score|moderations|audio/(speech|transcriptions|translations|voices|models)"
    r"|images/(generations|edits|variations)|models(/.*)?)|/v2/rerank|/rerank|/pooling|/classify|/tokenize|/detokenize"
)
"""Paths whose requests change nothing at a replica, so that another one may do them once more."""

TokenIds = Callable[[str, "Prompt"], "tuple[int, ...] | None"]
"""The token ids of a model's prompt, where they can be had."""


class Prompt(msgspec.Struct, frozen=True):
    """The parts of a JSON body that the gateway looks at; the rest is not even parsed.

    Attributes:
        model: What is asked.
        stream: Whether the answer comes in pieces.
        messages: Of a chat, as JSON.
        prompt: Of a completion, as JSON.
        input: Of embeddings, speech or a response, as JSON.
        tools: Of a chat; templates put them before the messages.
        max_tokens: Most tokens of the answer, as JSON.
        previous_response_id: What a response continues.
        input_file_id: The lines of a batch.
        response_format: How a picture is sent, or the form of an answer, as JSON.
        kv_transfer_params: Who computes the prompt: said by gateways only.
    """

    model: str | None = None
    stream: bool | None = None
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: msgspec.Raw = msgspec.Raw(b"")
    previous_response_id: msgspec.Raw = msgspec.Raw(b"")
    input_file_id: msgspec.Raw = msgspec.Raw(b"")
    response_format: msgspec.Raw = msgspec.Raw(b"")
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"")


_DECODE = msgspec.json.Decoder(Prompt).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """One request.

    Attributes:
        method: Upper case.
        path: Without the query.
        target: Path and query as they came.
        headers: Lower-case names.
        body: All of it.
        model: As the client named it; None where the request names none.
        prompt: Of a JSON body.
        replayable: Whether it may be done once more after a replica has begun with it.
        upload: What is in the file that it uploads, if it does.
    """

    method: str
    path: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    model: str | None
    prompt: Prompt | None
    replayable: bool
    upload: UploadFacts | None = None

    @property
    def streams(self) -> bool:
        """Whether it asks for an answer in pieces."""
        return self.prompt is not None and self.prompt.stream is True


def read_inbound(
    method: str,
    path: str,
    query: bytes,
    headers: Mapping[str, str],
    body: bytes,
    *,
    form: Mapping[str, str] | None = None,
    upload: UploadFacts | None = None,
) -> Inbound:
    """Looks into a request.

    Args:
        method: Upper case.
        path: Without the query.
        query: As it came.
        headers: Lower-case names.
        body: All of it.
        form: What `peek_form` found, if the body is a form.
        upload: What `peek_upload` found, if it is that of a file.

    Raises:
        InvalidRequest: The body is no JSON object, its model is no name, it says what only the gateway may say,
            or it wants what can't be had through a gateway.
    """
    prompt: Prompt | None = None
    model: str | None = None
    wants_url = False
    if form is not None:
        model = form.get("model")
        wants_url = form.get("response_format") == "url"
    elif body:
        prompt = _decode(body)
        _refuse_what_gateways_say(prompt)
        model = prompt.model
        wants_url = text_of(prompt.response_format) == "url"
    else:
        model = peek_urlencoded(query).get("model")
    if wants_url:
        raise InvalidRequest(
            "Pictures have no addresses at the gateway: they lie on the server that drew them. Set 'response_format' to "
            "'b64_json'.",
            param="response_format",
        )
    if model is not None and not 0 < len(model) <= _MAX_NAME:
        raise InvalidRequest("The parameter 'model' is no name of a model. GET /v1/models lists all.", param="model")
    if model is None and method == "POST" and REPLAYABLE.fullmatch(path):
        raise InvalidRequest("Missing required parameter 'model'.", param="model", code="missing_required_parameter")
    return Inbound(
        method=method,
        path=path,
        target=path + (f"?{query.decode('latin-1')}" if query else ""),
        headers=headers,
        body=body,
        model=model,
        prompt=prompt,
        replayable=method in ("GET", "HEAD") or REPLAYABLE.fullmatch(path) is not None,
        upload=upload,
    )


def shape_of(
    inbound: Inbound,
    *,
    adapter: str | None,
    region: str | None,
    session: str | None,
    tenant: str,
    token_ids: TokenIds | None = None,
) -> RequestShape:
    """What routing needs to know.

    Args:
        inbound: The request.
        adapter: Its model, if that is an adapter.
        region: Where it would best be served.
        session: What the session header says.
        tenant: Whose key it is: servers share no cached prefixes between keys unless they are told to, and neither does
            the guess of what they hold.
        token_ids: Tokenizes its prompt, if anything does.
    """
    prompt = inbound.prompt
    if prompt is None or inbound.model is None:
        units = max(1, len(inbound.body) // _BYTES_PER_UNIT)
        return RequestShape(model=inbound.model or "", prompt_units=units, session=session, region=region)
    parts: Sequence[bytes] = (bytes(prompt.tools), bytes(prompt.messages), bytes(prompt.prompt), bytes(prompt.input))
    ids = _listed_ids(prompt) or (None if token_ids is None else token_ids(inbound.model, prompt))
    return RequestShape(
        model=inbound.model,
        prompt_units=max(1, sum(map(len, parts)) // _BYTES_PER_UNIT) if ids is None else len(ids),
        output_units=_output_units(prompt),
        blocks=hash_blocks(parts, root=f"{inbound.model}\0{tenant}".encode()),
        token_ids=ids,
        session=session,
        adapter=adapter,
        region=region,
    )


def _decode(body: bytes) -> Prompt:
    try:
        return _DECODE(body)
    except msgspec.ValidationError as failure:
        text = str(failure)
        param = next((name for name in ("model", "stream") if f"$.{name}" in text), None)
        raise InvalidRequest(
            f"Invalid parameter {param!r}: {text.partition(' - at')[0]}."
            if param
            else f"Invalid request body: {text}.",
            param=param,
            code="invalid_type",
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as failure:
        raise InvalidRequest(f"The request body is not valid JSON: {failure}.", code="invalid_json") from None


def _refuse_what_gateways_say(prompt: Prompt) -> None:
    if bytes(prompt.kv_transfer_params):
        raise InvalidRequest(
            f"{TRANSFER_FIELD!r} is said by the gateway alone: it decides who computes a prompt. Leave it out.",
            param=TRANSFER_FIELD,
        )


def text_of(raw: msgspec.Raw) -> str | None:
    """A field's text; None where it is none, or not there."""
    try:
        return msgspec.json.decode(raw, type=str) if bytes(raw) else None
    except ValueError:  # null or none in UTF-8, or what the replica refuses
        return None


def _listed_ids(prompt: Prompt) -> tuple[int, ...] | None:
    raw = bytes(prompt.prompt)
    if not raw.startswith(b"["):
        return None
    try:
        return msgspec.json.decode(raw, type=tuple[int, ...]) or None
    except ValueError:  # a list of texts, or of lists
        return None


def _output_units(prompt: Prompt) -> int:
    try:
        return (
            max(1, msgspec.json.decode(prompt.max_tokens, type=int))
            if bytes(prompt.max_tokens)
            else _DEFAULT_OUTPUT_UNITS
        )
    except ValueError:
        return _DEFAULT_OUTPUT_UNITS
