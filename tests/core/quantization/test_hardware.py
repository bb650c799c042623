"""What the hardware lacks, or a family does not offer, is refused by name, with the nearest that works."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.errors import ConfigError
from sixfold.core.runtime.quantization.hardware import Hardware, check_hardware, runs
from sixfold.core.runtime.quantization.methods import INT8_BOTH, INT8_WEIGHTS, LINEAR_METHODS, check_declared, nearest
from sixfold.core.runtime.quantization.policy import Method, QuantizationPolicy

ZEN_4 = Hardware(kind="cpu", has_byte_products=True)
OLD_CPU = Hardware(kind="cpu")
AMPERE = Hardware(kind="cuda", capability=(8, 0))
HOPPER = Hardware(kind="cuda", capability=(9, 0))
BLACKWELL = Hardware(kind="cuda", capability=(10, 0))
EVERY = [ZEN_4, OLD_CPU, AMPERE, HOPPER, BLACKWELL]


def refusal(scheme: str, what: str, hardware: Hardware) -> str:
    policy = QuantizationPolicy.model_validate({"scheme": scheme, "what": what})
    with pytest.raises(ConfigError) as caught:
        check_hardware(policy, LINEAR_METHODS, hardware, place="models.m.quantization")
    return str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "what", "hardware", "nearest_text"),
    [
        ("nvfp4", "weights+activations", HOPPER, "{scheme: fp8, what: weights+activations}"),
        ("nvfp4", "weights+activations", ZEN_4, "{scheme: int4, what: weights+activations}"),
        ("nvfp4", "weights+activations", OLD_CPU, "{scheme: int8, what: weights+activations}"),
        ("fp8", "weights+activations", AMPERE, "{scheme: int8, what: weights+activations}"),
        ("fp8", "weights+activations", ZEN_4, "{scheme: fp8, what: weights}"),
        ("int4", "weights", OLD_CPU, "{scheme: int8, what: weights}"),
        ("int4", "weights+activations", HOPPER, "{scheme: int8, what: weights+activations}"),
    ],
)
def test_a_scheme_that_the_hardware_lacks_is_refused_with_the_nearest_that_works(
    scheme: str, what: str, hardware: Hardware, nearest_text: str
) -> None:
    message = refusal(scheme, what, hardware)
    assert message.startswith(f"models.m.quantization: {scheme} {what} needs ")
    assert f"this is {hardware}." in message
    assert message.endswith(f"The nearest that works: {nearest_text}.")


@given(st.sampled_from(sorted(LINEAR_METHODS)), st.sampled_from(EVERY))
def test_what_is_advised_runs_and_what_runs_is_not_refused(method: Method, hardware: Hardware) -> None:
    policy = QuantizationPolicy(scheme=method.scheme, what=method.what)
    if runs(method, hardware):
        check_hardware(policy, LINEAR_METHODS, hardware, place="x")
        return
    best = nearest(method, [other for other in LINEAR_METHODS if runs(other, hardware)])
    assert best is not None
    assert runs(best, hardware)
    assert str(best.scheme) in refusal(method.scheme, method.what, hardware).rpartition("nearest")[2]


def test_int8_runs_everywhere() -> None:
    assert all(runs(method, hardware) for method in (INT8_WEIGHTS, INT8_BOTH) for hardware in EVERY)


def test_a_components_scheme_is_looked_at_too() -> None:
    policy = QuantizationPolicy.model_validate({"scheme": "int8", "components": {"head": {"scheme": "int4"}}})
    with pytest.raises(ConfigError, match="int4 weights needs"):
        check_hardware(policy, LINEAR_METHODS, OLD_CPU, place="x")


def test_what_a_family_does_not_offer_is_refused_with_the_nearest_that_it_does() -> None:
    policy = QuantizationPolicy(scheme="fp8", what="weights+activations")
    with pytest.raises(ConfigError, match=r"some/family does not offer fp8 weights\+activations\. The nearest .*int8"):
        check_declared(policy, {INT8_BOTH, INT8_WEIGHTS}, family="some/family", place="x")
    with pytest.raises(ConfigError, match="Remove the key"):
        check_declared(policy, (), family="some/family", place="x")


def test_a_cache_of_fewer_bits_is_refused_with_the_reason() -> None:
    policy = QuantizationPolicy(scheme="fp8", what="kv_cache")
    with pytest.raises(ConfigError, match="keeps its cache as its attention reads it"):
        check_declared(policy, LINEAR_METHODS, family="llm/transformers", place="x")
