"""docs/config.md describes every field with its true default, and its examples are valid."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sixfold.core.config import Limits, ModelEntry, Objective, Settings, load_config
from sixfold.core.environment import EnvironmentEntry
from sixfold.core.parallel.settings import ParallelSettings
from sixfold.core.runtime.quantization.policy import ComponentPolicy, QuantizationPolicy, SkipRule
from sixfold.core.serving.settings import ApiKeySettings, BatchSettings, KeyLimits, ServerSettings
from sixfold.core.sources.wheel_reference import WheelReference
from sixfold.core.telemetry.settings import TelemetrySettings

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
SECTIONS: dict[str, type[BaseModel]] = {
    "The file": Settings,
    "models.NAME": ModelEntry,
    "models.NAME.env": EnvironmentEntry,
    "models.NAME.objective": Objective,
    "models.NAME.limits": Limits,
    "models.NAME.quantization": QuantizationPolicy,
    "models.NAME.parallel": ParallelSettings,
    "models.NAME.quantization.skip[]": SkipRule,
    "models.NAME.quantization.components.NAME": ComponentPolicy,
    "server": ServerSettings,
    "server.batches": BatchSettings,
    "server.api_keys[]": ApiKeySettings,
    "server.api_keys[].limits": KeyLimits,
    "telemetry": TelemetrySettings,
}
WORDED_DEFAULTS = {
    "`[defaults]`",
    "all defaults",
    "the key",
    "`throughput`",
    "`$XDG_CACHE_HOME/sixfold`, else `~/.cache/sixfold`",
}


def rows(title: str) -> dict[str, tuple[str, str]]:
    """Default and meaning by field, as the section's table has them."""
    section = re.split(rf"^#+ {re.escape(title)}$", DOC, flags=re.MULTILINE)[1]
    section = re.split(r"^#", section, flags=re.MULTILINE)[0]
    found = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", section, flags=re.MULTILINE)
    return {name: (default, meaning) for name, default, meaning in found}


def written(default: object) -> str:
    """A default as YAML writes it."""
    match default:
        case None:
            return "`null`"
        case bool():
            return f"`{str(default).lower()}`"
        case () | []:
            return "`[]`"
        case {}:
            return "`{}`"
        case int() | float() | str() if not hasattr(default, "name"):
            return f"`{default}`"
        case _:
            return f"`{str(getattr(default, 'name', default)).lower()}`"


@pytest.mark.parametrize("title", SECTIONS)
def test_the_table_has_exactly_the_fields_of_the_settings(title: str) -> None:
    assert list(rows(title)) == list(SECTIONS[title].model_fields)


@pytest.mark.parametrize("title", SECTIONS)
def test_the_table_states_the_true_defaults(title: str) -> None:
    for name, (default, meaning) in rows(title).items():
        field = SECTIONS[title].model_fields[name]
        assert meaning.strip(), f"{title}.{name} has no description"
        if default in WORDED_DEFAULTS:
            continue
        expected = "required" if field.default is PydanticUndefined else written(field.default)
        assert default == expected, f"{title}.{name}"


@pytest.mark.parametrize("model", SECTIONS.values())
def test_every_field_has_a_docstring_in_the_code(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def alternatives(annotation: Any) -> list[Any]:
    """The type and all that it is made of."""
    return [annotation, *(inner for argument in get_args(annotation) for inner in alternatives(argument))]


def test_no_settings_class_is_left_out() -> None:
    def nested(model: type[BaseModel]) -> set[type[BaseModel]]:
        found = {model}
        for field in model.model_fields.values():
            for candidate in alternatives(field.annotation):
                if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                    found |= nested(candidate)
        return found

    assert nested(Settings) == set(SECTIONS.values())


def test_the_examples_are_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", DOC, flags=re.DOTALL)
    assert len(examples) == 5
    for text in [*examples, (ROOT / "examples" / "demo.yaml").read_text(encoding="utf-8")]:
        path = tmp_path / "sixfold.yaml"
        path.write_text(text, encoding="utf-8")
        for entry in load_config(path, environ={}).models.values():
            scheme, _, reference = entry.source.partition(":")
            if scheme == "pypi":
                WheelReference.parse(reference)


def test_the_demo_serves_its_models_on_port_8000() -> None:
    settings = load_config(ROOT / "examples" / "demo.yaml", environ={})
    assert settings.server.port == 8000
    names = [entry.names for entry in settings.models.values()]
    assert ("chat", "SmolLM2-135M-Instruct") in names
    assert ("embed", "all-MiniLM-L6-v2") in names
    assert ("speak", "tts-1", "Kokoro-82M") in names
    assert ("hear", "whisper-1") in names
