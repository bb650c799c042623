"""Runs in Dynamo's environment: reads events and prompts as JSON lines, answers with the blocks that its RadixTree finds.

Takes one argument, the tokens per block.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    dynamo: Any = __import__("dynamo.llm", fromlist=["RadixTree"])
    block_size = int(sys.argv[1])
    tree = dynamo.RadixTree()
    for number, line in enumerate(sys.stdin):
        step = json.loads(line)
        if step["kind"] == "find":
            hashes = dynamo.compute_block_hash_for_seq(step["tokens"], block_size)
            scores = tree.find_matches(hashes).scores
            print(json.dumps({str(worker): blocks for (worker, _rank), blocks in scores.items()}), flush=True)
            continue
        data: object = "cleared"
        if step["kind"] == "store":
            hashes = dynamo.compute_block_hash_for_seq(step["tokens"], block_size)
            blocks = [
                {"block_hash": name, "tokens_hash": each} for name, each in zip(step["names"], hashes, strict=True)
            ]
            data = {"stored": {"parent_hash": step["parent"], "blocks": blocks}}
        elif step["kind"] == "remove":
            data = {"removed": {"block_hashes": step["names"]}}
        tree.apply_event(step["worker"], json.dumps({"event_id": number, "data": data, "dp_rank": 0}).encode())


if __name__ == "__main__":
    main()
