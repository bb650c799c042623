"""Peer: llama.cpp's own server, from the xllamacpp wheel; run by the Python of its environment."""

from __future__ import annotations

import argparse
import signal

import xllamacpp

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=24)
    parser.add_argument("--context", type=int, default=256, help="tokens of a slot")
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.n_parallel = args.slots
    params.n_ctx = args.slots * args.context
    params.cpuparams.n_threads = 2
    params.cpuparams_batch.n_threads = 2
    params.port = args.port
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
