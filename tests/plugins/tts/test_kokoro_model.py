"""Sentences of many requests in the lanes of one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sixfold.core.errors import ConfigError, ContextLengthExceeded, InvalidRequest, StepFailed
from sixfold.core.messages import Failed, Finished
from sixfold.plugins.tts.kokoro import KokoroModel
from tests.plugins.tts.conftest import Driver, FakeNetwork, sound_of

MakeModel = Callable[..., KokoroModel]
Drive = Callable[[KokoroModel], Driver]
FIRST, SECOND, THIRD = "The first sentence.", "The second sentence.", "The third sentence."


def failure(answer: Any) -> Any:
    assert isinstance(answer.end, Failed)
    return answer.end.error


def test_the_first_sentence_is_given_out_while_the_second_is_computed(
    make_model: MakeModel, drive: Drive, network: FakeNetwork
) -> None:
    gate = network.hold(SECOND.lower())
    driver = drive(make_model())
    driver.start("r", f"{FIRST} {SECOND}")
    assert driver.first("r") == sound_of(FIRST)
    gate.set()
    assert driver.result("r").sounds == [sound_of(FIRST), sound_of(SECOND)]


def test_sentences_that_end_out_of_order_are_given_out_in_order(
    make_model: MakeModel, drive: Drive, network: FakeNetwork
) -> None:
    gate = network.hold(FIRST.lower())
    driver = drive(make_model())
    driver.start("r", f"{FIRST} {SECOND} {THIRD}")
    network.wait_for(network.ended, THIRD.lower())
    assert FIRST.lower() not in network.ended
    gate.set()
    assert driver.result("r").pcm == sound_of(FIRST) + sound_of(SECOND) + sound_of(THIRD)


def test_a_short_request_does_not_wait_for_the_whole_of_a_long_one(
    make_model: MakeModel, drive: Drive, network: FakeNetwork
) -> None:
    gate = network.hold(FIRST.lower())
    driver = drive(make_model(num_lanes=1))
    driver.start("long", " ".join([FIRST] + [f"Sentence {word} follows here." for word in "abcdefghij"]))
    network.wait_for(network.started, FIRST.lower())
    driver.start("short", "A short request.")
    gate.set()
    driver.result("short")
    driver.result("long")
    assert driver.order.get() == "short"


def test_eight_requests_at_once_equal_each_alone(make_model: MakeModel, drive: Drive) -> None:
    texts = [f"Request {'abcdefgh'[i]} begins here. " + "It goes on and on. " * i for i in range(8)]
    driver = drive(make_model())
    alone = [driver.speak(text).pcm for text in texts]
    for index, text in enumerate(texts):
        driver.start(f"r{index}", text)
    assert [driver.result(f"r{index}").pcm for index in range(8)] == alone


def test_a_poisoned_request_fails_alone(make_model: MakeModel, drive: Drive, caplog: pytest.LogCaptureFixture) -> None:
    driver = drive(make_model())
    driver.start("bad", "This is the poison.")
    driver.start("good", f"{FIRST} {SECOND}")
    assert isinstance(failure(driver.result("bad")), StepFailed)
    assert driver.result("good").pcm == sound_of(FIRST) + sound_of(SECOND)


def test_a_cancelled_sentence_is_stopped_and_its_lane_is_free(
    make_model: MakeModel, drive: Drive, network: FakeNetwork
) -> None:
    network.hold(FIRST.lower())  # never opened
    driver = drive(make_model(num_lanes=1))
    driver.start("left", f"{FIRST} {SECOND}")
    network.wait_for(network.started, FIRST.lower())
    driver.manager.cancel("left")
    driver.result("left")
    assert driver.speak(THIRD).pcm == sound_of(THIRD)
    assert network.stopped == [FIRST.lower()]
    assert SECOND.lower() not in network.started


def test_text_without_words_is_refused(make_model: MakeModel, drive: Drive) -> None:
    error = failure(drive(make_model()).speak("😀 🎉 ..."))
    assert isinstance(error, InvalidRequest)
    assert error.param == "input"


def test_a_sentence_without_words_is_passed_over(make_model: MakeModel, drive: Drive) -> None:
    text = f"{FIRST}\n😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀\n{SECOND}"
    assert drive(make_model()).speak(text).pcm == sound_of(FIRST) + sound_of(SECOND)


def test_too_much_text_is_refused(make_model: MakeModel, drive: Drive) -> None:
    error = failure(drive(make_model()).speak("word " * 1000))
    assert isinstance(error, ContextLengthExceeded)
    assert error.param == "input"


def test_a_sentence_over_the_models_limit_is_cut_at_a_space(make_model: MakeModel, drive: Drive) -> None:
    text = "many words " * 100
    answer = drive(make_model()).speak(text)
    assert isinstance(answer.end, Finished)
    assert len(answer.sounds) >= 1
    spoken = "".join(text.split())
    assert answer.pcm.replace(sound_of(" "), b"").startswith(sound_of("many"))
    assert len(answer.pcm) >= len(sound_of(spoken))


def test_voices_are_chosen_aliased_and_blended(make_model: MakeModel, drive: Drive) -> None:
    driver = drive(make_model(voice_aliases={"alloy": "bert"}))
    assert driver.speak(FIRST, voice="alloy").pcm == sound_of(FIRST, gain=3.0)
    assert driver.speak(FIRST, voice="anna+bert").pcm == sound_of(FIRST, gain=2.0)


def test_an_unknown_voice_is_refused_with_the_list(make_model: MakeModel, drive: Drive) -> None:
    error = failure(drive(make_model()).speak(FIRST, voice="carl"))
    assert error.param == "voice"
    assert "anna, bert" in error.message


def test_an_option_that_names_an_unknown_voice_is_an_error(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="anna, bert"):
        make_model(default_voice="carl")


def test_speed_goes_to_the_network(make_model: MakeModel, drive: Drive) -> None:
    assert drive(make_model()).speak(FIRST, speed=2.0).pcm == sound_of(FIRST, speed=2.0)


def test_usage_and_metrics_count_what_was_spoken(make_model: MakeModel, drive: Drive) -> None:
    model = make_model()
    driver = drive(model)
    answer = driver.speak(FIRST)
    assert isinstance(answer.end, Finished)
    assert answer.end.usage.counts == {"input_tokens": len(FIRST), "output_tokens": 1}
    driver.speak(f"{FIRST} {SECOND}")
    stats = model.stats()
    assert stats["tts_sentences_total"] == 3
    assert stats["audio_duration_seconds/sum"] == pytest.approx(stats["tts_audio_seconds_total"])
    assert (
        sum(value for name, value in stats.items() if name.startswith("audio_ttfp_seconds/") and "sum" not in name) == 2
    )
