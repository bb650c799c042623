"""A real small model, left to its own devices, answers in the form of any schema."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import jsonschema
import pytest

from sixfold.core.config import load_config
from sixfold.core.plugins import load_plugins
from sixfold.core.registry import resolve_entry
from sixfold.plugins.llm.generation import ChatInput, ChatMessage, Choice, GrammarSpec, SamplingParams
from sixfold.plugins.llm.model import TransformersModel
from tests.plugins.llm.schema_strategies import DrawnSchema, schemas

pytestmark = pytest.mark.models

_ROOT = Path(__file__).resolve().parents[3]
_MAX_TOKENS = 400
"""No bounded schema needs more; an answer without bounds is closed there."""
_AT_ONCE = 125
_HEALTH_CHECKS: Any = hypothesis.HealthCheck  # an enumeration whose metaclass types leave out


_FORMATS: Any = jsonschema.FormatChecker(formats=("uuid", "ipv4"))


@_FORMATS.checks("date")  # type: ignore[untyped-decorator]  # jsonschema ships no types
def _is_date(instance: object) -> bool:
    """RFC 3339 has a year 0, a leap year, which Python's dates and jsonschema's own check have not."""
    if not isinstance(instance, str) or re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", instance) is None:
        return not isinstance(instance, str)
    try:
        datetime.date.fromisoformat(re.sub("^0000", "2000", instance))
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def smollm(load_tiny: Any) -> Iterator[TransformersModel]:
    settings = load_config(_ROOT / "examples" / "demo.yaml")
    resolved = resolve_entry(settings.models["chat"], load_plugins(), settings.cache_dir, lambda _w, _d, _t: None)
    model = load_tiny(resolved.path, dtype="auto", kv_cache_bytes=1 << 30)
    yield model
    model.close()


def draw_schemas(count: int) -> list[DrawnSchema]:
    """The same schemas in every run."""
    drawn: list[DrawnSchema] = []

    @hypothesis.seed(20261128)
    @hypothesis.settings(
        max_examples=count * 2, database=None, deadline=None, suppress_health_check=tuple(_HEALTH_CHECKS)
    )
    @hypothesis.given(schemas())
    def collect(schema: DrawnSchema) -> None:
        if len(drawn) < count and schema not in drawn:
            drawn.append(schema)

    collect()
    assert len(drawn) == count
    return drawn


def answers(driver: Any, model: TransformersModel, drawn: Sequence[DrawnSchema]) -> list[Choice]:
    """One sampled answer for each schema."""
    inputs = [
        ChatInput(
            messages=(ChatMessage(role="user", content="Make up a record, as JSON."),),
            params=SamplingParams(
                max_tokens=_MAX_TOKENS,
                temperature=1.0,
                seed=number,
                grammar=GrammarSpec(kind="json_schema", text=json.dumps(item.schema)),
            ),
        )
        for number, item in enumerate(drawn)
    ]
    found: list[Choice] = []
    for first in range(0, len(inputs), _AT_ONCE):
        for driven in driver(model).run(inputs[first : first + _AT_ONCE]):
            found.extend(driven.generation.choices)
    return found


def check(drawn: Sequence[DrawnSchema], found: Sequence[Choice]) -> int:
    """Every answer validates, and every bounded one ended by itself. Returns how many the limit of tokens closed."""
    for item, choice in zip(drawn, found, strict=True):
        assert choice.finish_reason == "stop" or not item.is_bounded, (item.schema, choice.text)
        jsonschema.validate(
            json.loads(choice.text),
            item.schema,
            cls=jsonschema.Draft202012Validator,
            format_checker=_FORMATS,
        )
    return sum(choice.finish_reason == "length" for choice in found)


def test_answers_to_20_schemas_validate(smollm: TransformersModel, driver: Any) -> None:
    drawn = [item for item in draw_schemas(40) if item.is_bounded][:20]
    assert check(drawn, answers(driver, smollm, drawn)) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_answers_to_500_schemas_validate(smollm: TransformersModel, driver: Any) -> None:
    """Some schemas are unbounded; of these some answers run into the limit, and are closed there."""
    drawn = draw_schemas(500)
    num_closed = check(drawn, answers(driver, smollm, drawn))
    print(
        f"{sum(not item.is_bounded for item in drawn)} schemas without a bound, {num_closed} answers closed by the limit"
    )
    assert num_closed >= 5
