"""The OpenAPI document of all modalities: complete enough to make a client of, and to be held to by a fuzzer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from sixfold.core.cli.server import load_apis
from sixfold.core.plugins import load_plugins
from sixfold.core.serving.server import SixfoldServer
from tests.core.serving.fake_replica import FakeDirectory

_WITHOUT_SCHEMA = frozenset(("get_live",))
"""Its JSON is drawn, not read: the page and the server change it together."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = SixfoldServer(load_apis(load_plugins()), FakeDirectory()).app.openapi()
    return found


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()


def test_each_operation_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    names = Counter(operation["operationId"] for operation in operations(document))
    assert max(names.values()) == 1
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)
    assert len(names) > 40


def test_each_operation_tells_its_errors_and_each_json_its_schema(document: dict[str, Any]) -> None:
    for operation in operations(document):
        for status in ("4XX", "5XX"):
            error = operation["responses"][status]["content"]["application/json"]["schema"]
            assert error == {"$ref": "#/components/schemas/Error"}
        answer = operation["responses"].get("200", {}).get("content", {}).get("application/json")
        assert answer is None or "schema" in answer or operation["operationId"] in _WITHOUT_SCHEMA


def test_what_is_referred_to_is_there(document: dict[str, Any]) -> None:
    names = set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(document)))
    assert len(names) > 60
    assert names <= document["components"]["schemas"].keys()
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_links_lead_from_what_was_made_to_all_that_can_be_done_with_it(document: dict[str, Any]) -> None:
    by_name = {operation["operationId"]: operation for operation in operations(document)}
    links = by_name["post_v1_videos"]["responses"]["200"]["links"]
    assert links.keys() == {
        "get_v1_videos_video_id",
        "delete_v1_videos_video_id",
        "get_v1_videos_video_id_content",
        "post_v1_videos_video_id_remix",
    }
    for operation in operations(document):
        for answer in operation["responses"].values():
            for link in answer.get("links", {}).values():
                parameters = {each["name"] for each in by_name[link["operationId"]]["parameters"]}
                assert link["parameters"].keys() <= parameters


def test_bodies_come_in_each_form_that_is_taken_and_answers_in_each_that_is_sent(document: dict[str, Any]) -> None:
    paths = document["paths"]
    assert set(paths["/v1/images/edits"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
    }
    assert set(paths["/v1/images/variations"]["post"]["requestBody"]["content"]) == {"multipart/form-data"}
    assert "text/event-stream" in paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert "audio/mpeg" in paths["/v1/audio/speech"]["post"]["responses"]["200"]["content"]
    assert "200" not in paths["/v1/videos/edits"]["post"]["responses"]
    assert paths["/ready"]["get"]["responses"].keys() >= {"200", "503"}


def test_what_needs_no_key_says_so(document: dict[str, Any]) -> None:
    assert document["paths"]["/health"]["get"]["security"] == []
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"bearer": []}]
