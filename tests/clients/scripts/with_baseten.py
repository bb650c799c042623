"""baseten-performance-client: embeddings, many requests at once from Rust."""

import sys

from baseten_performance_client import PerformanceClient, RequestProcessingPreference
from cells import TEXTS, answer

CLIENT = PerformanceClient(sys.argv[1], "none")


def embed() -> list:
    at_once = RequestProcessingPreference(batch_size=6, max_concurrent_requests=8)
    found = CLIENT.embed(input=TEXTS * 20, model="embed", preference=at_once)
    return [one.embedding for one in found.data]


answer(embed)
