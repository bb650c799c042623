"""A stranger's package brings a whole modality, served over HTTP by the ordinary command."""

from __future__ import annotations

from typing import Any

import httpx


def test_a_strangers_modality_is_served(reverse_server: Any) -> None:
    url = f"{reverse_server.url}/v1/reverse"
    answer = httpx.post(url, json={"model": "mirror", "text": "stressed"}).raise_for_status()
    assert answer.json() == {"model": "mirror", "text": "desserts"}

    streamed = httpx.post(url, json={"model": "mirror", "text": "abc", "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text == 'data: "c"\n\ndata: "b"\n\ndata: "a"\n\ndata: [DONE]\n\n'


def test_a_strangers_modality_gets_the_errors_and_metrics_of_all_others(reverse_server: Any) -> None:
    url = f"{reverse_server.url}/v1/reverse"
    empty = httpx.post(url, json={"model": "mirror", "text": ""})
    assert (empty.status_code, empty.json()["error"]["param"]) == (400, "text")
    unknown = httpx.post(url, json={"model": "mirror", "text": "x", "txet": "y"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "txet")
    httpx.post(url, json={"model": "mirror", "text": "abc"}).raise_for_status()
    metrics = httpx.get(f"{reverse_server.url}/metrics").text
    assert 'sixfold:request_success_total{finished_reason="stop",model_name="mirror"} 1.0' in metrics
