"""``sixfold quantize-report``: the unquantized model, the policy and each group of layers, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from sixfold.core.cli import quantize_report
from sixfold.core.errors import ConfigError, UsageError
from sixfold.core.family import Family
from sixfold.core.hookspecs import Progress, Source, hookimpl
from sixfold.core.plugins import Plugins, new_manager
from sixfold.core.runtime.quantization.methods import INT8_BOTH, INT8_WEIGHTS
from sixfold.core.runtime.quantization.plan import LinearShape, plan
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.quantization.quality import Quality, QualityProbe

LAYERS = {
    "body": tuple(LinearShape(f"layers.{i}.{name}", 8, 8) for i in range(2) for name in ("attn", "mlp")),
    "head": (LinearShape("head", 8, 8),),
}


class Payload(msgspec.Struct):
    pass


class FakeProbe(QualityProbe):
    """Loses one percent a quantized layer."""

    @property
    def inputs_text(self) -> str:
        return f"nothing but {self.inputs}"

    def layers(self) -> Mapping[str, tuple[LinearShape, ...]]:
        return LAYERS

    def measure(self, policy: QuantizationPolicy | None, *, timed: bool) -> Quality:
        plans = [] if policy is None else [plan(shapes, own) for n, shapes in LAYERS.items() if (own := policy.of(n))]
        count = sum(decision.method is not None for decisions in plans for decision in decisions)
        figures = {"accuracy": 1 - count / 100} | ({"seconds": 2.0} if timed else {})
        return Quality(figures=figures, weight_bytes=(10 - count) << 20)


class HereSource:
    scheme = "here"

    def resolve(self, reference: str, *, cache_dir: Path, progress: Progress) -> Path:
        return cache_dir / reference


def plugins(quality: str = f"{__name__}:FakeProbe") -> Plugins:
    module = ModuleType("fake")

    @hookimpl
    def register_families(register: Callable[[Family], None]) -> None:
        register(
            Family(
                name="a/model",
                summary="For tests.",
                operations=frozenset(),
                loader="nowhere:load",
                input_type=Payload,
                output_type=Payload,
                extra="x",
                detect=lambda _files: 50,
                quantization=frozenset({INT8_WEIGHTS, INT8_BOTH}),
                quality=quality,
            )
        )

    @hookimpl
    def register_sources(register: Callable[[Source], None]) -> None:
        register(HereSource())

    for hook in (register_families, register_sources):
        setattr(module, hook.__name__, hook)
    manager = new_manager()
    manager.register(module, name="fake")
    return Plugins(manager)


def report(*arguments: str, quality: str = f"{__name__}:FakeProbe") -> int:
    parser = argparse.ArgumentParser()
    quantize_report.configure(parser)
    return quantize_report.run(plugins(quality), parser.parse_args(arguments))


def test_the_table_compares_the_model_with_the_policy_and_with_each_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert report("here:model", "--inputs", "words") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'here:model (a/model on cpu), {"scheme": "int8"}' or "cuda" in lines[0]
    assert lines[1] == "measured on nothing but words"
    assert [line.split() for line in lines[3:]] == [
        ["QUANTIZED", "LAYERS", "MIB", "ACCURACY", "SECONDS"],
        ["unquantized", "0", "10.0", "1", "2"],
        ["the", "policy", "5", "5.0", "0.95", "2"],
        ["body:", "layers.*.attn", "2", "8.0", "0.98", "-"],
        ["body:", "layers.*.mlp", "2", "8.0", "0.98", "-"],
        ["head:", "head", "1", "9.0", "0.99", "-"],
    ]


def test_json_holds_the_same_and_the_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert report("here:model", "--json", "--whole", "--what", "weights+activations", "--skip", "attn") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["policy"] == {"scheme": "int8", "what": "weights+activations", "skip": [{"pattern": "attn"}]}
    assert [row["quantized"] for row in found["rows"]] == ["unquantized", "the policy"]
    assert found["rows"][1] == {
        "quantized": "the policy",
        "layers": 5,
        "weight_bytes": 7 << 20,
        "figures": {"accuracy": 0.97, "seconds": 2.0},
    }


def test_an_entry_of_a_configuration_brings_its_policy_which_flags_override(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sixfold.yaml"
    path.write_text("models: {m: {source: 'here:model', quantization: {scheme: int8, skip: [head]}}}")
    assert report("m", "--config", str(path), "--json", "--whole") == 0
    assert json.loads(capsys.readouterr().out)["policy"]["skip"] == [{"pattern": "head"}]
    assert report("m", "--config", str(path), "--json", "--whole", "--skip", "mlp") == 0
    assert json.loads(capsys.readouterr().out)["policy"]["skip"] == [{"pattern": "mlp"}]
    with pytest.raises(UsageError, match=r"has no model 'n'\. Known: m\."):
        report("n", "--config", str(path))


def test_a_family_without_a_measure_or_the_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="a/model measures no quality"):
        report("here:model", quality="")
    with pytest.raises(ConfigError, match=r"a/model does not offer fp8 weights\. The nearest .*scheme: int8"):
        report("here:model", "--scheme", "fp8")
