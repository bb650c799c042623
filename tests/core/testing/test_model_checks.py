"""Every check of the conformance kit passes on a plugin that keeps its promises, and fails on one that breaks just that one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sixfold.core.config import Limits, ModelEntry
from sixfold.core.errors import ConfigError
from sixfold.core.family import Family, MetricKind, MetricSpec
from sixfold.core.hookspecs import Api, Plugin
from sixfold.core.plugins import Plugins, new_manager
from sixfold.core.registry import ResolvedModel
from sixfold.core.testing import served_checks
from sixfold.core.testing.cancellation import cancellation_frees
from sixfold.core.testing.checks import ModelUnderTest, ServedModel
from sixfold.core.testing.client import Client, UnexpectedAnswer
from sixfold.core.testing.collection import SERVED_CHECKS
from sixfold.core.testing.failure import CheckFailed, DoesNotLoad, NotApplicable
from sixfold.core.testing.subject_checks import (
    bounds_answer_429,
    operations_are_known,
    plan_counts_its_memory,
    unknown_options_are_refused,
)
from tests.core.testing import flawed_plugin as flawed

ServedCheck = Callable[[ServedModel], None]


def subject(
    folder: Path, *, flaw: str = "", family: Family | None = None, api: Api | None = None, patience_s: float = 20.0
) -> ModelUnderTest:
    family = family or flawed.family()
    manager = new_manager()
    manager.register(Plugin(families=[family], apis=[api or flawed.api()]), name="speaking")
    entry = ModelEntry(name="talk", source=f"file:{folder}", family=family.name)
    options = family.options.model_validate({"flaw": flaw})
    resolved = ResolvedModel(entry=entry, family=family, path=folder, options=options)
    return ModelUnderTest(resolved=resolved, plugins=Plugins(manager), data_dir=folder / "data", patience_s=patience_s)


def check_served(check: ServedCheck, of: ModelUnderTest) -> None:
    with of.server() as server, Client(server.port) as client:
        check(ServedModel(subject=of, server=server, client=client))


def test_a_plugin_that_keeps_its_promises_passes_every_check(tmp_path: Path) -> None:
    sound = subject(tmp_path)
    operations_are_known(sound)
    unknown_options_are_refused(sound)
    plan_counts_its_memory(sound)
    bounds_answer_429(sound)
    with sound.server() as server, Client(server.port) as client:
        served = ServedModel(subject=sound, server=server, client=client)
        for check in SERVED_CHECKS:
            check(served)


@pytest.mark.parametrize(
    ("check", "flaw", "complaint"),
    [
        (
            served_checks.answers_alike_alone_and_beside_others,
            "sees the batch",
            r"request \d of 4 that share steps: content",
        ),
        (served_checks.answers_alike_alone_and_beside_others, "rounds", "Family.batch_tolerance is 0"),
        (served_checks.answers_alike_alone_and_beside_others, "draws numbers", "twice, alone: content.*set a seed"),
        (served_checks.answers_alike_alone_and_beside_others, "own batch key", "No two of 4 requests .* shared a step"),
        (cancellation_frees, "keeps its slots", r"still holds \{'speaker_slots': "),
        (
            served_checks.metrics_are_those_declared,
            "undeclared metric",
            r"reports \['surprise'\]; Family.metrics lacks",
        ),
        (
            served_checks.metrics_are_those_declared,
            "silent metric",
            r"declares \['spoken_words_total'\]; stats\(\) lacks",
        ),
        (served_checks.metrics_are_those_declared, "counts down", "The counter spoken_words_total fell"),
        (served_checks.what_crosses_processes_is_declared, "undeclared output", "output_type does not take a Secret"),
    ],
)
def test_a_model_with_a_flaw_fails_its_check(check: ServedCheck, flaw: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=complaint):
        check_served(check, subject(tmp_path, flaw=flaw, patience_s=1.0))


@pytest.mark.parametrize(
    ("check", "face", "complaint"),
    [
        (served_checks.is_in_the_registry, flawed.UndescribedAPI, "has no body of POST /v1/say"),
        (served_checks.errors_have_one_shape, flawed.LooseAPI, "with an unknown field: answered with 200"),
        (served_checks.errors_have_one_shape, flawed.OwnErrorsAPI, "the shape is"),
        (served_checks.errors_have_one_shape, flawed.NamelessAPI, "names the param None"),
        (served_checks.streams_are_framed, flawed.EndlessAPI, r"'\[DONE\]' is due"),
        (served_checks.streams_are_framed, flawed.BareAPI, "has the line"),
        (served_checks.streams_are_framed, flawed.TornAPI, "no JSON"),
        (served_checks.streams_are_framed, flawed.HoardingAPI, "nothing is streamed"),
        (served_checks.streams_are_framed, flawed.JustWholeAPI, "not text/event-stream"),
        (cancellation_frees, flawed.BackgroundAPI, "the server went on with it"),
    ],
)
def test_an_http_face_with_a_flaw_fails_its_check(
    check: ServedCheck, face: type, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed, match=complaint):
        check_served(check, subject(tmp_path, api=flawed.api(face), patience_s=1.0))


@pytest.mark.parametrize(
    ("face", "complaint"),
    [
        (flawed.FullIsBrokenAPI, "answered with 500 .*; 429 is due"),
        (flawed.ImpatientAPI, "has the Retry-After ''"),
    ],
)
def test_an_http_face_that_hides_a_full_queue_fails(face: type, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=complaint):
        bounds_answer_429(subject(tmp_path, api=flawed.api(face)))


def test_rounding_within_the_declared_tolerance_is_no_flaw(tmp_path: Path) -> None:
    tolerant = subject(tmp_path, flaw="rounds", family=flawed.family(batch_tolerance=1e-4))
    check_served(served_checks.answers_alike_alone_and_beside_others, tolerant)


def test_an_operation_that_nobody_can_ask_for_fails(tmp_path: Path) -> None:
    misspelt = replace(flawed.family(), operations=frozenset({"say", "syy"}))
    with pytest.raises(CheckFailed, match=r"'syy', which no Api here asks for.*Known: say.*name it in Api\.operations"):
        operations_are_known(subject(tmp_path, family=misspelt))


def test_a_misnamed_counter_fails(tmp_path: Path) -> None:
    metrics = [spec for spec in flawed.family().metrics if spec.name != "speaker_slots"]
    misnamed = MetricSpec(name="speaker_slots", kind=MetricKind.COUNTER, help="Wrong.")
    with pytest.raises(CheckFailed, match="The counter speaker_slots is misnamed"):
        check_served(
            served_checks.metrics_are_those_declared,
            subject(tmp_path, family=flawed.family(metrics=(*metrics, misnamed))),
        )


def test_a_histogram_and_a_gauge_of_a_sum_are_no_flaw(tmp_path: Path) -> None:
    more = (
        MetricSpec(name="word_letters", kind=MetricKind.HISTOGRAM, help="Letters of words.", buckets=(4.0, 8.0)),
        MetricSpec(name="speaker_slots_total", kind=MetricKind.GAUGE, help="Slots that there are."),
    )
    family = flawed.family(metrics=(*flawed.family().metrics, *more))
    check_served(served_checks.metrics_are_those_declared, subject(tmp_path, flaw="more metrics", family=family))


def test_options_that_take_anything_fail(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="LooseOptions takes any option"):
        unknown_options_are_refused(subject(tmp_path, family=flawed.family(options=flawed.LooseOptions)))


def test_a_family_whose_memory_can_not_be_told_fails(tmp_path: Path) -> None:
    def broken(_question: Any) -> Any:
        raise ConfigError("nobody knows")

    with pytest.raises(CheckFailed, match=r"`sixfold plan` can't tell .*nobody knows"):
        plan_counts_its_memory(subject(tmp_path, family=flawed.family(memory=broken)))


def test_a_modality_without_probes_or_face_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="has no probe for say"):
        bounds_answer_429(subject(tmp_path, api=flawed.api(probes=())))
    with pytest.raises(CheckFailed, match="No plugin brings an HTTP face for the modality 'mute'"):
        bounds_answer_429(subject(tmp_path, family=flawed.family(name="mute/words")))
    with pytest.raises(CheckFailed, match="is no ModalityAPI"):
        bounds_answer_429(subject(tmp_path, api=flawed.api(flawed.UnlikeAPI)))


def test_where_nothing_streams_there_is_nothing_to_check(tmp_path: Path) -> None:
    whole = flawed.api(probes=(replace(flawed.PROBE, stream=None),))
    with pytest.raises(NotApplicable):
        check_served(served_checks.streams_are_framed, subject(tmp_path, api=whole))


def test_a_model_that_can_not_be_loaded_says_why(tmp_path: Path) -> None:
    lost = subject(tmp_path, family=flawed.family(loader=f"{flawed.HERE}:nowhere"))
    with pytest.raises(DoesNotLoad, match="nowhere"):
        check_served(served_checks.is_in_the_registry, lost)


def test_an_answer_that_is_no_success_is_shown(tmp_path: Path) -> None:
    def make_nothing(model: str, _number: int) -> dict[str, Any]:
        return {"model": model, "input": []}

    silent = replace(flawed.PROBE, make_body=make_nothing)
    with pytest.raises(UnexpectedAnswer, match=r"answered with 400: .*Say something"):
        check_served(
            served_checks.answers_alike_alone_and_beside_others, subject(tmp_path, api=flawed.api(probes=(silent,)))
        )


def test_a_model_that_raises_when_it_is_asked_for_its_info_says_so_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        DoesNotLoad, match=r"models\.talk: RuntimeError: Nobody has told me\. \(flawed_plugin\.py, line \d+"
    ):
        check_served(served_checks.is_in_the_registry, subject(tmp_path, flaw="hides its info"))


def test_a_form_that_takes_any_text_for_a_text_is_no_flaw(tmp_path: Path) -> None:
    api = flawed.api(flawed.FormAPI, probes=(flawed.FORM_PROBE,))
    check_served(served_checks.errors_have_one_shape, subject(tmp_path, api=api))


def test_a_form_that_takes_a_text_for_a_file_fails(tmp_path: Path) -> None:
    api = flawed.api(flawed.TextVoiceAPI, probes=(flawed.FORM_PROBE,))
    with pytest.raises(CheckFailed, match="with an object as 'voice'"):
        check_served(served_checks.errors_have_one_shape, subject(tmp_path, api=api))


def test_a_field_that_takes_any_mapping_is_no_flaw(tmp_path: Path) -> None:
    api = flawed.api(flawed.MoodAPI, probes=(flawed.MOOD_PROBE,))
    check_served(served_checks.errors_have_one_shape, subject(tmp_path, api=api))


def test_an_answer_that_does_not_come_is_told_with_the_time_and_what_to_do(tmp_path: Path) -> None:
    sound = subject(tmp_path)
    with sound.server() as server, Client(server.port, patience_s=0.2) as client:
        server.gate.hold()
        with pytest.raises(
            CheckFailed, match=r"POST /v1/say was not answered: nothing came for 0.2 s.*request_timeout_s"
        ):
            client.send(flawed.PROBE, flawed.PROBE.make_body("talk", 0)).answer()


@pytest.mark.parametrize(("request_timeout_s", "patience_s"), [(900.0, 920.0), (None, 3600.0)])
def test_an_answer_may_take_as_long_as_the_entry_lets_requests_take(
    request_timeout_s: float | None, patience_s: float, tmp_path: Path
) -> None:
    sound = subject(tmp_path)
    entry = sound.resolved.entry.model_copy(update={"limits": Limits(request_timeout_s=request_timeout_s)})
    slow = replace(sound, resolved=replace(sound.resolved, entry=entry))
    assert slow.answer_patience_s == patience_s


@pytest.mark.parametrize(
    ("face", "complaint"),
    [
        (flawed.FailingJobAPI, r"The job of POST /v1/say failed: .*The voice is lost"),
        (flawed.EndlessJobAPI, r"The job of POST /v1/say did not end in 0.2 s: .*in_progress"),
    ],
)
def test_a_job_that_does_not_complete_is_told_with_how_it_stands(face: type, complaint: str, tmp_path: Path) -> None:
    probe = flawed.JOB_PROBE
    late = subject(tmp_path, api=flawed.api(face, probes=(probe,)))
    with late.server() as server, Client(server.port, patience_s=0.2) as client:
        with pytest.raises(CheckFailed, match=complaint):
            client.content(probe, client.send(probe, probe.make_body("talk", 0)))


@pytest.mark.parametrize(
    ("face", "error", "complaint"),
    [
        (flawed.RefusingJobAPI, UnexpectedAnswer, "answered with 400: .*No jobs today"),
        (flawed.FailingJobAPI, CheckFailed, "The voice is lost"),
    ],
)
def test_a_job_that_is_refused_or_fails_is_not_waited_for(
    face: type, error: type[Exception], complaint: str, tmp_path: Path
) -> None:
    api = flawed.api(face, probes=(flawed.JOB_PROBE,))
    with pytest.raises(error, match=complaint):
        bounds_answer_429(subject(tmp_path, api=api))


def test_a_model_that_does_not_close_fails(tmp_path: Path) -> None:
    flawed.MAY_CLOSE.clear()
    try:
        with pytest.raises(CheckFailed, match=r"did not end in 0.2 s: close\(\) did not return"):
            with subject(tmp_path, flaw="does not close", patience_s=0.2).server():
                pass
    finally:
        flawed.MAY_CLOSE.set()


def test_what_ends_a_server_is_raised_when_it_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="The lights went out"):
        with subject(tmp_path).server() as server:
            close = server.replica.close

            async def broken() -> None:
                await close()
                raise RuntimeError("The lights went out.")

            monkeypatch.setattr(server.replica, "close", broken)


def test_a_model_leaves_the_memory_with_its_server(tmp_path: Path) -> None:
    flawed.LOADED.clear()
    sound = subject(tmp_path)
    with sound.server() as server, sound.client(server) as client:
        client.content(flawed.PROBE, client.send(flawed.PROBE, flawed.PROBE.make_body("talk", 0)))
        assert len(flawed.LOADED) == 1
    assert not list(flawed.LOADED)
