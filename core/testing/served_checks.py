"""Checks of a model while it is served: what it says of itself, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from sixfold.core.family import MetricKind
from sixfold.core.probe import Fields, Probe
from sixfold.core.serving.replica_metrics import MANAGER_METRICS
from sixfold.core.testing.checks import ServedModel
from sixfold.core.testing.client import Answer
from sixfold.core.testing.comparison import difference
from sixfold.core.testing.error_shape import check_error
from sixfold.core.testing.failure import NotApplicable, fail, require

_NO_FIELD = "no_such_field"
_NO_MODEL = "no-such-model"
_BROKEN_JSON = ((b"{", "application/json"), (b"[]", "application/json"), (b"", "application/json"))
_BROKEN_FORMS = ((b"no form", "multipart/form-data; boundary=x"), (b"no form", "multipart/form-data"))
_COMPANY = 4
"""Requests that share steps."""


def is_in_the_registry(served: ServedModel) -> None:
    """``/v1/models`` lists it with what it can do, and ``/openapi.json`` describes its routes."""
    subject, family = served.subject, served.subject.resolved.family
    listed = {item["id"]: item for item in served.client.get("/v1/models").json["data"]}
    for name in subject.resolved.entry.names:
        require(name in listed, f"/v1/models does not list {name!r}: {sorted(listed)}")
        seen = (listed[name]["modality"], listed[name]["capabilities"])
        require(
            seen == (family.modality, sorted(family.operations)), f"/v1/models says of {name!r}: {seen[0]}, {seen[1]}"
        )
    paths = served.client.get("/openapi.json").json["paths"]
    for probe in served.probes:
        route = paths.get(probe.path, {}).get("post")
        require(route is not None, f"/openapi.json has no POST {probe.path}: is it among ModalityAPI.routes()?")
        require("requestBody" in route, f"/openapi.json has no body of POST {probe.path}. Name it: Route(body=...).")


def answers_alike_alone_and_beside_others(served: ServedModel) -> None:
    """What a request gets does not depend on who shares its steps, within `Family.batch_tolerance`."""
    for probe in served.probes:
        _check_company(served, probe)


def _check_company(served: ServedModel, probe: Probe) -> None:
    client, gate, name = served.client, served.server.gate, served.subject.name
    tolerance = served.subject.resolved.family.batch_tolerance
    bodies = [probe.make_body(name, number) for number in range(_COMPANY)]
    gate.forget()
    alone = [client.content(probe, client.send(probe, body)) for body in bodies]
    num_pieces = gate.num_prepared
    again = client.content(probe, client.send(probe, bodies[0]))
    words = difference(alone[0], again, tolerance, when=("the first time", "the second time"))
    require(words is None, f"POST {probe.path} twice, alone: {words}. Does the probe set a seed?")
    gate.forget()
    gate.hold()
    sent = [client.send(probe, body) for body in bodies]
    is_ready = gate.wait_prepared(num_pieces, served.subject.patience_s)
    gate.open()
    require(
        is_ready,
        f"{_COMPANY} requests of POST {probe.path} were not prepared in {served.subject.patience_s:g} s while one is stepped.",
    )
    for number, waiting in enumerate(sent):
        found = client.content(probe, waiting)
        words = difference(alone[number], found, tolerance, when=("alone", "beside others"))
        require(words is None, f"POST {probe.path}, request {number} of {_COMPANY} that share steps: {words}.")
    require(
        gate.largest_step > 1,
        f"No two of {_COMPANY} requests of POST {probe.path} shared a step. Is Cost.batch_key unlike for each, or does "
        "step_range.max_units leave room for one?",
    )


def errors_have_one_shape(served: ServedModel) -> None:
    """Whatever is wrong with a request is told in OpenAI's shape, with its field, and never by a 500."""
    for probe in served.probes:
        good = probe.make_body(served.subject.name, 0)
        _check_refusals(served, probe, good)
        for number, (body, media_type) in enumerate(_BROKEN_FORMS if probe.is_form else _BROKEN_JSON):
            answer = served.client.send_raw("POST", probe.path, body, media_type).answer()
            check_error(answer, 400, f"POST {probe.path} with a broken body, form {number}")
        for field, value in good.items():
            if not _refuses_objects(probe, value):
                continue
            answer = served.client.send(probe, {**good, field: {"no": ["such", "value"]}}).answer()
            error = check_error(answer, 400, f"POST {probe.path} with an object as {field!r}")
            require(
                str(error["param"]).startswith(field),
                f"POST {probe.path} with an object as {field!r} names the param {error['param']!r}.",
            )


def _refuses_objects(probe: Probe, value: object) -> bool:
    """Whether the field of this good value takes no object: a form sends one as text, which is right for a text; and where
    an object is right, a mapping may take any."""
    return isinstance(value, bytes | int | float) if probe.is_form else not isinstance(value, dict)


def _check_refusals(served: ServedModel, probe: Probe, good: Fields) -> None:
    client = served.client
    error = check_error(
        client.send(probe, {**good, _NO_FIELD: 1}).answer(), 400, f"POST {probe.path} with an unknown field"
    )
    require(
        error["param"] == _NO_FIELD,
        f"POST {probe.path} with the unknown field {_NO_FIELD!r} names the param {error['param']!r}.",
    )
    for extra in ({}, probe.stream or {}):  # a stream that can't begin has a status, too
        error = check_error(
            client.send(probe, {**good, **extra, "model": _NO_MODEL}).answer(), 404, f"POST {probe.path} for no model"
        )
        require(error["code"] == "model_not_found", f"POST {probe.path} for no model has the code {error['code']!r}.")


def metrics_are_those_declared(served: ServedModel) -> None:
    """What `ReplicaModel.stats` reports is what `Family.metrics` declares, named as Prometheus wants it."""
    family, replica = served.subject.resolved.family, served.server.replica
    for probe in served.probes:
        served.client.content(probe, served.client.send(probe, probe.make_body(served.subject.name, 0)))
    before = dict(replica.snapshot.metrics)
    declared = {spec.name: spec for spec in family.metrics}
    # A histogram is reported as one value for each of its buckets, below its name.
    reported = {name.partition("/")[0] for name in before} - {spec.name for spec in MANAGER_METRICS}
    require(
        not reported - set(declared), f"stats() reports {sorted(reported - set(declared))}; Family.metrics lacks them."
    )
    require(
        not set(declared) - reported, f"Family.metrics declares {sorted(set(declared) - reported)}; stats() lacks them."
    )
    exposed = served.client.metrics()
    for name, spec in declared.items():
        is_named = spec.kind is not MetricKind.COUNTER or name.endswith("_total")
        require(is_named, f"The counter {name} is misnamed: counters end in _total.")
        require(
            any(sample.startswith(f"sixfold:{name}") for sample in exposed), f"/metrics does not expose sixfold:{name}."
        )
    for probe in served.probes:
        served.client.content(probe, served.client.send(probe, probe.make_body(served.subject.name, 1)))
    for name, value in replica.snapshot.metrics.items():
        if name in declared and declared[name].kind is MetricKind.COUNTER:
            require(value >= before[name], f"The counter {name} fell from {before[name]:g} to {value:g}.")


def what_crosses_processes_is_declared(served: ServedModel) -> None:
    """Inputs and outputs survive the way to the worker process and back as what they were."""
    for probe in served.probes:
        body = probe.make_body(served.subject.name, 0)
        served.client.content(probe, served.client.send(probe, body))
        if probe.stream is not None:
            served.client.send(probe, {**body, **probe.stream}).answer()
    errors = served.server.replica.border_errors
    require(not errors, "\n".join(dict.fromkeys(errors)))


def streams_are_framed(served: ServedModel) -> None:
    """A stream comes in whole frames, each with JSON of one line, and ends as it should."""
    streamed = [(probe, probe.stream) for probe in served.probes if probe.stream is not None]
    if not streamed:
        raise NotApplicable("No probe of its operations has a stream (Probe.stream).")
    for probe, fields in streamed:
        answer = served.client.send(probe, {**probe.make_body(served.subject.name, 0), **fields}).answer()
        require(
            answer.status == 200,
            f"The stream of POST {probe.path} has the status {answer.status}: {answer.body[:300]!r}",
        )
        if probe.framing == "sse":
            _check_frames(probe, answer)
        else:
            require(answer.body, f"The stream of POST {probe.path} is empty.")
            require(
                "content-length" not in answer.headers,
                f"POST {probe.path} sends its stream as one whole: stream_bytes.",
            )


def _check_frames(probe: Probe, answer: Answer) -> None:
    what = f"The stream of POST {probe.path}"
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    require(media_type == "text/event-stream", f"{what} is {media_type}, not text/event-stream. Use call.stream_sse.")
    require(answer.body.endswith(b"\n\n"), f"{what} does not end with an empty line: {answer.body[-100:]!r}")
    data = list(_data_of(what, answer.body.decode()))
    require(len(data) > 1, f"{what} has {len(data)} frames with data: nothing is streamed.")
    for number, (text, value) in enumerate(data):
        require(
            not (isinstance(value, dict) and "error" in value), f"{what} has an error in frame {number}: {text[:300]}"
        )
    last_text, last = data[-1]
    kind = cast("dict[str, object]", last).get("type") if isinstance(last, dict) else None
    require(
        probe.stream_end in (last_text, kind),
        f"{what} ends with {last_text[:200]!r}; {probe.stream_end!r} is due (Probe.stream_end).",
    )


def _data_of(what: str, body: str) -> Iterator[tuple[str, Any]]:
    """Text and JSON of each frame that has data."""
    for frame in body.split("\n\n")[:-1]:
        lines = frame.split("\n")
        for line in lines:
            if not line.startswith((":", "data: ", "event: ", "id: ")):
                fail(
                    f"{what} has the line {line[:200]!r}. Lines begin with 'data: ' or 'event: '; JSON has no line breaks."
                )
        texts = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        if len(texts) > 1:
            fail(f"{what} has a frame of {len(texts)} data lines: frames end with an empty line.")
        if not texts:
            continue
        try:
            yield texts[0], None if texts[0] == "[DONE]" else json.loads(texts[0])
        except ValueError:
            fail(f"{what} has data that is no JSON: {texts[0][:200]!r}")
