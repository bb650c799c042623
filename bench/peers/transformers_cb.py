"""Peer: transformers' own continuous batching, with the sizes that served it best on two cores.

Of 256 to 4,096 tokens a batch, 1,024 was the best at 24 in flight. Asynchronous batching is a feature for GPUs: left to
its default it made the peer 3 times slower here (16 against 52 tokens/s), so it is off.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import torch
from completions_server import serve
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--num-blocks", type=int, default=32)
    parser.add_argument("--max-batch-tokens", type=int, default=1024)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), attn_implementation="sdpa"
    ).eval()
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=args.num_blocks, max_batch_tokens=args.max_batch_tokens, use_async_batching=False
        ),
    )
    manager.start()
    request_ids = itertools.count()

    async def generate(prompt: list[int], max_tokens: int) -> AsyncIterator[int]:
        request_id = f"request-{next(request_ids)}"
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        manager.register_result_handler(request_id, outputs.put_nowait)
        manager.add_request(prompt, request_id, max_new_tokens=max_tokens, streaming=True, eos_token_id=-1)
        num_sent = 0
        while num_sent < max_tokens:
            output = await outputs.get()
            if output.error is not None:
                raise RuntimeError(output.error)
            for token in output.generated_tokens[num_sent:]:
                num_sent += 1
                yield token
            if output.is_finished():
                return

    serve(generate, tokenizer.decode, args.port)
    manager.stop(block=True, hard_stop=True)
