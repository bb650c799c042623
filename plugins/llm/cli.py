"""``sixfold chat``: a terminal client for a quick try of a chat model, over the same HTTP as every other client."""

from __future__ import annotations

import argparse
import http.client
import os
import sys
import urllib.parse
from collections.abc import Generator, Iterator
from typing import Any

import msgspec

from sixfold.core.errors import UsageError
from sixfold.core.hookspecs import Command

_TIMEOUT_S = 600.0
_KEY_VARIABLE = "SIXFOLD_API_KEY"


class Message(msgspec.Struct, frozen=True):
    """One turn of the conversation, as OpenAI writes it."""

    role: str
    content: str


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()


class _Error(msgspec.Struct, frozen=True):
    message: str


class _Chunk(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...] = ()
    error: _Error | None = None


class _Model(msgspec.Struct, frozen=True):
    id: str
    capabilities: tuple[str, ...] = ()


class _Models(msgspec.Struct, frozen=True):
    data: tuple[_Model, ...] = ()


class ChatClient:
    """Asks one server.

    Args:
        url: The server's address, with or without ``/v1``.
        key: Bearer key; None for none.
    """

    def __init__(self, url: str, key: str | None) -> None:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url {url!r} is no address. Write http://host:port.")
        self._parts = parts
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    def first_chat_model(self) -> str:
        """The id of the first model that can chat.

        Raises:
            UsageError: There is none, or the server does not answer.
        """
        connection, response = self._send("GET", "/v1/models", None)
        try:
            models = msgspec.json.decode(response.read(), type=_Models).data
        finally:
            connection.close()
        name = next((model.id for model in models if "chat" in model.capabilities), None)
        if name is None:
            raise UsageError(f"No model of {self._parts.netloc} can chat. Serve one, or name one with --model.")
        return name

    def stream(self, model: str, messages: tuple[Message, ...], options: dict[str, float | int]) -> Iterator[str]:
        """Yields the answer's text as it comes. Closing the iterator ends the request at the server.

        Raises:
            UsageError: The server refuses, fails or goes away.
        """
        body = msgspec.json.encode({"model": model, "messages": messages, "stream": True, **options})
        connection, response = self._send("POST", "/v1/chat/completions", body)
        try:
            yield from read_stream(response)
        except (OSError, http.client.HTTPException) as error:
            raise UsageError(f"The server went away in the middle of the answer: {error}.") from error
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, self._base + path, body, self._headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                text = response.read()
                connection.close()
                raise UsageError(f"The server answered HTTP {response.status}: {_message(text)}")
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise UsageError(
                f"No server at {self._parts.netloc}: {error}. Start one with `sixfold serve CONFIG`, or set --url."
            ) from error
        return connection, response


def read_stream(response: http.client.HTTPResponse) -> Generator[str, None, None]:
    """Yields the text of an SSE answer.

    Raises:
        UsageError: The stream carries an error, or ends without ``[DONE]``.
    """
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        chunk = msgspec.json.decode(data, type=_Chunk)
        if chunk.error is not None:
            raise UsageError(f"The answer broke off: {chunk.error.message}")
        for choice in chunk.choices:
            if choice.delta.content:
                yield choice.delta.content
    raise UsageError("The server ended the answer early. Look at its log.")


def _message(body: bytes) -> str:
    try:
        error = msgspec.json.decode(body, type=_Chunk).error
    except msgspec.MsgspecError:
        error = None
    return error.message if error else body.decode(errors="replace")[:300]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sixfold chat``."""
    parser.add_argument("prompt", nargs="?", help="ask this once; without it, talk (or read a pipe)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server's address (%(default)s)")
    parser.add_argument("--model", help="name or alias; the first that can chat unless given")
    parser.add_argument("--key", default=os.environ.get(_KEY_VARIABLE), help=f"API key; {_KEY_VARIABLE} unless given")
    parser.add_argument("--system", help="instructions that stand before the conversation")
    parser.add_argument("--max-tokens", type=int, help="longest answer in tokens")
    parser.add_argument("--temperature", type=float, help="0 for the likeliest answer")


def run(args: argparse.Namespace) -> int:
    """Runs ``sixfold chat`` and returns its exit status."""
    client = ChatClient(args.url, args.key)
    model = args.model or client.first_chat_model()
    given: dict[str, Any] = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    options = {name: value for name, value in given.items() if value is not None}
    history = (Message("system", args.system),) if args.system else ()
    prompt: str | None = args.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None:
        _answer(client, model, (*history, Message("user", prompt)), options)
        return 0
    _talk(client, model, history, options)
    return 0


def _talk(client: ChatClient, model: str, history: tuple[Message, ...], options: dict[str, float | int]) -> None:
    """Reads questions until the end of input; Ctrl-C stops an answer, and leaves at the prompt."""
    print(f"Talking to {model}. Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            print()
            return
        if not question:
            continue
        try:
            answer = _answer(client, model, (*history, Message("user", question)), options)
        except UsageError as error:
            print(f"{error}", file=sys.stderr)
            continue
        history = (*history, Message("user", question), Message("assistant", answer))


def _answer(client: ChatClient, model: str, messages: tuple[Message, ...], options: dict[str, float | int]) -> str:
    """Prints the answer as it comes and returns it; Ctrl-C keeps what has come."""
    parts: list[str] = []
    stream = client.stream(model, messages, options)
    try:
        for text in stream:
            parts.append(text)
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    finally:
        print()
    return "".join(parts)


COMMAND = Command(name="chat", summary="Talk to a chat model of a running server.", configure=configure, run=run)
"""For the plugin's ``register_commands``."""
