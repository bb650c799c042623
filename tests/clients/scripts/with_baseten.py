"""baseten-performance-client: embeddings, many requests at once from Rust."""

import sys

from baseten_performance_client import PerformanceClient
from cells import answer

CLIENT = PerformanceClient(sys.argv[1], "none")


def embed() -> list:
    found = CLIENT.embed(input=["a meal", "a dinner", "an engine"] * 20, model="embed", batch_size=4)
    return [one.embedding for one in found.data]


answer({"embed": embed})
