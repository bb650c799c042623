"""One process computes a prompt and another gives the answer, token for token as one alone would."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sixfold.core.batching.model import Granted
from sixfold.core.messages import Request
from sixfold.plugins.llm.generation import CompletionInput, Generation, KvTransferParams, SamplingParams
from sixfold.plugins.llm.kv_handle import KvHandle
from sixfold.plugins.llm.model import TransformersModel

TEXT = tuple((7 * n * n + 3 * n) % 251 for n in range(150))
_WAIT_S = 60.0


def completion(num_tokens: int, transfer: KvTransferParams | None = None, **params: Any) -> CompletionInput:
    fields: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True} | params
    return CompletionInput(prompts=(TEXT[:num_tokens],), params=SamplingParams(**fields), kv_transfer=transfer)


class Replica:
    """A model and its device thread: this one. Other threads prepare, as the batch manager's pool does."""

    def __init__(self, model: TransformersModel) -> None:
        self.model = model
        self._woken = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        model.attach(self._woken.set)

    def run(self, item: CompletionInput) -> tuple[list[int], Generation, int]:
        """The tokens of the answer, the result, and how many of the prompt's tokens were found."""
        request: Request[Any] = Request(request_id="r", input=item, arrived_s=0.0)
        prepared = self._pool.submit(self.model.prepare, request, self.model.split(request)[0])
        prepared.add_done_callback(lambda _done: self._woken.set())
        while not prepared.done():
            self.turn()
        (sequence,) = prepared.result()
        while sequence.finish_reason is None:
            self.model.collect()
            cost = self.model.cost(sequence)
            assert cost is not None
            self.model.reserve(sequence, cost.units)
            (outcome,) = self.model.step([Granted(sequence, 1000)])
            assert outcome.error is None
        self.model.release(sequence)
        finish = self.model.finish(request, [sequence])
        assert isinstance(finish.result, Generation)
        return sequence.output_ids, finish.result, finish.usage.counts["cached_tokens"]

    def turn(self, timeout_s: float = _WAIT_S) -> None:
        """What the step loop does when it is woken."""
        assert self._woken.wait(timeout_s)
        self._woken.clear()
        self.model.collect()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._pool.shutdown()
        self.model.close()


def prefill_forever(folder: Path, listen: str, pipe: Connection, policy: object) -> None:
    """The other process: computes the prompts whose lengths come through the pipe, and sends their handles back."""
    from tests.plugins.llm.conftest import load_folder

    replica = Replica(load_folder(folder, quantization=policy, kv_transfer={"listen": listen, "lease_s": 3600}))

    def wake_when_asked() -> None:
        while True:
            asked.append(pipe.recv())
            replica.wake()
            if asked[-1] is None:
                return

    asked: list[int | None] = []
    threading.Thread(target=wake_when_asked, daemon=True).start()
    while None not in asked:
        replica.turn()
        while asked and asked[0] is not None:
            wanted = KvTransferParams(wants_handle=True)
            _ids, generation, _cached = replica.run(completion(asked.pop(0) or 0, wanted, max_tokens=1))
            pipe.send(msgspec.json.encode(generation.kv_handle))
    while replica.model.stats()["kv_transfer_held_blocks"]:  # the end of the last transfer may be on its way
        replica.turn()
    pipe.send(replica.model.stats()["kv_blocks_used"])
    replica.close()


class Prefiller:
    """The other process, from here."""

    def __init__(self, folder: Path, listen: str, policy: object = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=prefill_forever, args=(folder, listen, theirs, policy), daemon=True)
        self.process.start()

    def handle(self, num_tokens: int) -> KvHandle:
        self._pipe.send(num_tokens)
        assert self._pipe.poll(_WAIT_S)
        return msgspec.json.decode(self._pipe.recv(), type=KvHandle)

    def end(self) -> int:
        """Ends it; how many blocks were held at last."""
        self._pipe.send(None)
        assert self._pipe.poll(_WAIT_S)
        num_used = int(self._pipe.recv())
        self.process.join(_WAIT_S)
        assert self.process.exitcode == 0
        return num_used

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(_WAIT_S)


SAMPLINGS: tuple[dict[str, Any], ...] = ({"temperature": 0}, {"temperature": 0.9, "top_p": 0.95, "seed": 11})


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory needs Linux")
@pytest.mark.parametrize(
    ("name", "listen", "policy"),
    [
        ("llama", "shm", None),
        pytest.param("llama", "127.0.0.1:0", None, marks=pytest.mark.slow),
        pytest.param("mistral-sliding", "shm", None, marks=pytest.mark.slow),
        ("mistral-sliding", "127.0.0.1:0", None),
        ("llama", "shm", {"scheme": "fp8", "what": "kv_cache"}),
    ],
)
def test_another_process_continues_token_for_token(
    name: str,
    listen: str,
    policy: object,
    model_folder: Callable[[str], Path],
    load_tiny: Callable[..., TransformersModel],
) -> None:
    folder = model_folder(name)
    prefiller = Prefiller(folder, listen, policy)
    alone = Replica(load_tiny(folder, quantization=policy))
    decoder = Replica(load_tiny(folder, quantization=policy, kv_transfer={"peers": ["shm", "127.0.0.1"]}))
    for place, sampling in enumerate(SAMPLINGS):
        for num_tokens in (49 + 40 * place, 64 + 32 * place):
            handle = prefiller.handle(num_tokens)
            wanted = KvTransferParams(handle=handle)
            before = decoder.model.stats()["kv_transfer_imported_tokens_total"]
            token_ids, _generation, num_cached = decoder.run(completion(num_tokens, wanted, **sampling))
            assert token_ids == alone.run(completion(num_tokens, **sampling))[0]
            assert num_cached == (num_tokens - 1) // 16 * 16
            assert decoder.model.stats()["kv_transfer_imported_tokens_total"] > before
    assert decoder.model.stats()["kv_transfer_failures_total"] == 0
    assert decoder.model.stats()["kv_blocks_used"] == 0
    assert prefiller.end() == 0
    decoder.close()
    alone.close()


def test_a_prompt_whose_owner_was_killed_is_computed(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., TransformersModel]
) -> None:
    folder = model_folder("llama")
    prefiller = Prefiller(folder, "127.0.0.1:0")
    decoder = Replica(load_tiny(folder, kv_transfer={"peers": ["127.0.0.1"]}))
    wanted = KvTransferParams(handle=prefiller.handle(90))
    prefiller.kill()
    token_ids, _generation, num_cached = decoder.run(completion(90, wanted, temperature=0))
    assert num_cached == 0
    assert decoder.model.stats()["kv_transfer_failures_total"] == 1
    assert token_ids == decoder.run(completion(90, temperature=0))[0]
    decoder.close()


def test_only_the_same_files_with_the_same_options_have_the_same_fingerprint(
    model_folder: Callable[[str], Path], load_tiny: Callable[..., TransformersModel]
) -> None:
    def fingerprint(name: str, **options: Any) -> object:
        model = load_tiny(model_folder(name), kv_transfer={}, **options)
        model.close()
        return model.info.details["kv_transfer_fingerprint"]

    same = fingerprint("llama")
    assert fingerprint("llama", kv_cache_bytes=1 << 19, compute_packed=False) == same
    others = [
        fingerprint("llama-tied-bias"),
        fingerprint("llama", dtype="bfloat16"),
        fingerprint("llama", block_size_tokens=8),
    ]
    assert len({same, *others}) == 4
