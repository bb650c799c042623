"""Peer: transformers' `generate`, one request after another, as most first servers do it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import torch
from completions_server import serve
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer


class QueueStreamer(BaseStreamer):
    """Hands each new token to the event loop; None is the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tokens: asyncio.Queue[int | None]) -> None:
        self._loop = loop
        self._tokens = tokens
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        self._loop.call_soon_threadsafe(self._tokens.put_nowait, int(value[0]))

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._tokens.put_nowait, None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).eval()
    model.generation_config.eos_token_id = None  # all outputs have the length asked for
    model.generation_config.pad_token_id = 0
    one_by_one = ThreadPoolExecutor(max_workers=1)

    @torch.inference_mode()
    def run(prompt: list[int], max_tokens: int, streamer: QueueStreamer) -> None:
        ids = torch.tensor([prompt])
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False,
                       streamer=streamer)  # fmt: skip

    async def generate(prompt: list[int], max_tokens: int) -> AsyncIterator[int]:
        loop = asyncio.get_running_loop()
        tokens: asyncio.Queue[int | None] = asyncio.Queue()
        future = loop.run_in_executor(one_by_one, run, prompt, max_tokens, QueueStreamer(loop, tokens))
        while (token := await tokens.get()) is not None:
            yield token
        await future

    serve(generate, tokenizer.decode, args.port)
