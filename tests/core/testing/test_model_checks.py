"""Every check of the conformance kit passes on a plugin that keeps its promises, and fails on one that breaks just that one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sixfold.core.config import ModelEntry
from sixfold.core.errors import ConfigError
from sixfold.core.family import Family, MetricKind, MetricSpec
from sixfold.core.hookspecs import Api, Plugin
from sixfold.core.plugins import Plugins, new_manager
from sixfold.core.registry import ResolvedModel
from sixfold.core.testing import served_checks
from sixfold.core.testing.cancellation import cancellation_frees
from sixfold.core.testing.checks import CheckFailed, ModelUnderTest, NotApplicable, ServedModel
from sixfold.core.testing.client import Client, UnexpectedAnswer
from sixfold.core.testing.collection import SERVED_CHECKS
from sixfold.core.testing.subject_checks import (
    bounds_answer_429,
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
    with pytest.raises(AttributeError, match="nowhere"):
        check_served(served_checks.is_in_the_registry, lost)


def test_an_answer_that_is_no_success_is_shown(tmp_path: Path) -> None:
    def make_nothing(model: str, _number: int) -> dict[str, Any]:
        return {"model": model, "input": []}

    silent = replace(flawed.PROBE, make_body=make_nothing)
    with pytest.raises(UnexpectedAnswer, match=r"answered with 400: .*Say something"):
        check_served(
            served_checks.answers_alike_alone_and_beside_others, subject(tmp_path, api=flawed.api(probes=(silent,)))
        )
