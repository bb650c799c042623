"""Which layers a policy quantizes: the first rule that fits decides, and a rule that fits nothing is a mistake."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sixfold.core.errors import ConfigError
from sixfold.core.runtime.quantization.methods import INT8_WEIGHTS
from sixfold.core.runtime.quantization.plan import LinearShape, check_rules, group_of, plan
from sixfold.core.runtime.quantization.policy import QuantizationPolicy, SkipRule, patterns, written_policy
from sixfold.core.runtime.quantization.report import groups_of, policy_of

DECODER = tuple(
    LinearShape(f"layers.{block}.{name}", 64, 64)
    for block in range(6)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
)
DENOISER = tuple(
    LinearShape(name, 64, 64)
    for name in (
        "x_embedder",
        "context_embedder",
        "time_text_embed.timestep_embedder.linear_1",
        *(f"transformer_blocks.{i}.{name}" for i in range(3) for name in ("norm1.linear", "attn.to_q", "ff.net.2")),
        *(
            f"single_transformer_blocks.{i}.{name}"
            for i in range(4)
            for name in ("norm.linear", "proj_mlp", "proj_out")
        ),
        "norm_out.linear",
        "proj_out",
    )
)


def policy(*skip: object, scheme: str = "int8") -> QuantizationPolicy:
    return QuantizationPolicy.model_validate({"scheme": scheme, "skip": list(skip)})


def skipped(layers: tuple[LinearShape, ...], *skip: object, defaults: tuple[SkipRule, ...] = ()) -> list[str]:
    return [each.layer.name for each in plan(layers, policy(*skip), defaults=defaults) if each.method is None]


def test_without_rules_every_layer_is_quantized_and_says_how() -> None:
    decisions = plan(DECODER, policy())
    assert {decision.method for decision in decisions} == {INT8_WEIGHTS}
    assert {decision.reason for decision in decisions} == {"int8 weights"}


def test_first_and_last_blocks_are_counted_in_the_order_of_the_layers() -> None:
    names = skipped(DECODER, {"first_blocks": 2}, {"last_blocks": 1})
    assert {name.split(".")[1] for name in names} == {"0", "1", "5"}
    assert len(names) == 9
    assert {".".join(name.split(".")[:2]) for name in skipped(DENOISER, {"first_blocks": 1})} == {
        "transformer_blocks.0"
    }
    assert {".".join(name.split(".")[:2]) for name in skipped(DENOISER, {"last_blocks": 1})} == {
        "single_transformer_blocks.3"
    }


def test_a_word_stands_for_a_kind_however_the_model_names_it() -> None:
    assert all("attn" in name for name in skipped(DECODER, "attention"))
    assert len(skipped(DECODER, "attention")) == 12
    assert skipped(DENOISER, "attention") == [f"transformer_blocks.{i}.attn.to_q" for i in range(3)]
    assert {group_of(name) for name in skipped(DENOISER, "mlp")} == {
        "transformer_blocks.*.ff.net.*",
        "single_transformer_blocks.*.proj_mlp",
    }


def test_the_words_of_denoisers_spare_what_conditions_them_and_not_the_layers_of_their_blocks() -> None:
    names = skipped(DENOISER, "defaults", defaults=patterns("embedder", "modulation", "output"))
    quantized = {layer.name for layer in DENOISER} - set(names)
    assert {group_of(name) for name in quantized} == {
        "transformer_blocks.*.attn.to_q",
        "transformer_blocks.*.ff.net.*",
        "single_transformer_blocks.*.proj_mlp",
        "single_transformer_blocks.*.proj_out",
    }


def test_plain_text_is_a_whole_part_of_a_name() -> None:
    assert len(skipped(DECODER, "down_proj")) == 6
    assert skipped(DECODER, "layers.4.mlp") == ["layers.4.mlp.down_proj"]
    assert skipped(DECODER, "proj") == []


def test_an_expression_must_fit_the_whole_name() -> None:
    assert skipped(DECODER, r"re:layers\.[01]\.mlp\..*") == ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]
    assert skipped(DECODER, "re:mlp") == []


def test_a_list_replaces_the_defaults_unless_it_names_them() -> None:
    defaults = patterns("down_proj")
    by_default = plan(DECODER, QuantizationPolicy(scheme="int8"), defaults=defaults)
    assert sum(each.method is None for each in by_default) == 6
    assert {each.reason for each in by_default if each.method is None} == {"skip: defaults (down_proj)"}
    assert len(skipped(DECODER, "q_proj", defaults=defaults)) == 6
    assert len(skipped(DECODER, "defaults", "q_proj", defaults=defaults)) == 12


def test_a_rule_that_fits_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"place: 'lm_haed' fits no linear layer\..*layers\.\*\.mlp\.down_proj"):
        check_rules([DECODER, DENOISER], patterns("attention", "lm_haed"), place="place")
    check_rules([DECODER, DENOISER], patterns("defaults", "x_embedder", "down_proj"), place="place")


RULES = st.one_of(
    st.sampled_from(["attention", "mlp", "q_proj", "layers.3", r"re:.*o_proj"]),
    st.fixed_dictionaries({"first_blocks": st.integers(1, 9)}),
    st.fixed_dictionaries({"last_blocks": st.integers(1, 9)}),
)


@settings(deadline=None)
@given(st.lists(RULES, max_size=4), st.permutations(range(4)))
def test_every_layer_gets_one_decision_and_more_rules_never_quantize_more(
    rules: list[object], order: list[int]
) -> None:
    decisions = plan(DECODER, policy(*rules))
    assert [decision.layer for decision in decisions] == list(DECODER)
    shuffled = [rules[i] for i in order if i < len(rules)]
    assert set(skipped(DECODER, *shuffled)) == set(skipped(DECODER, *rules))
    assert set(skipped(DECODER, *rules[:-1])) <= set(skipped(DECODER, *rules))


@given(st.lists(RULES, max_size=3), st.sampled_from(["fp8", "int8", "int4", "nvfp4"]))
def test_a_policy_survives_the_way_to_the_worker(rules: list[object], scheme: str) -> None:
    first = policy(*rules, scheme=scheme)
    data = first.model_dump(mode="json", exclude_unset=True)
    assert QuantizationPolicy.model_validate(data) == first


def test_a_scheme_alone_stands_for_a_policy() -> None:
    assert QuantizationPolicy.model_validate(written_policy("int8")) == QuantizationPolicy(scheme="int8")


def test_a_component_differs_in_what_it_is_given() -> None:
    whole = QuantizationPolicy.model_validate(
        {"scheme": "int4", "skip": ["attention"], "components": {"head": {"scheme": "int8"}, "vae": None}}
    )
    head = whole.of("head")
    assert head is not None
    assert (head.scheme, head.what, head.skip) == ("int8", "weights", whole.skip)
    assert whole.of("vae") is None
    assert whole.of("other") == whole.model_copy(update={"components": {}})
    assert [str(method) for method in whole.methods()] == ["int4 weights", "int8 weights"]


def test_the_report_quantizes_each_group_alone() -> None:
    layers = {"model": DECODER, "head": (LinearShape("head", 64, 64),)}
    groups = groups_of(layers)
    assert [group.num_layers for group in groups] == [6, 6, 6, 1]
    covered: list[str] = []
    for group in groups:
        alone = policy_of(group, policy("attention"), layers)
        for name, shapes in layers.items():
            own = alone.of(name)
            chosen = [d.layer.name for d in plan(shapes, own) if d.method] if own is not None else []
            assert bool(chosen) == (name == group.component)
            covered += chosen
    assert sorted(covered) == sorted(layer.name for shapes in layers.values() for layer in shapes)


@given(st.from_regex(r"[a-z]{1,4}(\.([0-9]{1,3}|[a-z_]{1,6})){0,5}", fullmatch=True))
def test_a_group_has_no_numbers_left_between_dots(name: str) -> None:
    assert re.search(r"(^|\.)\d+(\.|$)", group_of(name)) is None
