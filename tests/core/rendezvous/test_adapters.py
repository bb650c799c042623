"""Adapters are state of a shared module; each request is drawn with its own all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sixfold.core.rendezvous.adapters import Adapters, AdapterSwitch, adapted_layers
from tests.core.rendezvous.harness import PipelineModel, alone, run_together, works_for
from tests.tiny_adapters import save_adapter
from tests.tiny_pipelines import TinyPipeline, flux, sdxl

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]
CHOSEN: dict[str, Adapters] = {
    "r1": (("one", 1.0),),
    "r2": (("two", 0.7),),
    "r3": (("one", 0.5), ("two", -1.0)),
    "r4": (("one", 1.0),),
}


def with_adapters(make: Callable[[], TinyPipeline], part: str, folder: Path) -> TinyPipeline:
    tiny = make()
    for seed, name in enumerate(("one", "two")):
        save_adapter(tiny.pipeline, folder / name, seed=seed, parts={part: ("to_q", "to_v")})
    for name in ("one", "two"):
        tiny.pipeline.load_lora_weights(folder / name, adapter_name=name)
    return tiny


@pytest.mark.parametrize(("make", "part"), [(flux, "transformer"), (sdxl, "unet")])
async def test_requests_with_different_adapters_at_once_are_each_what_set_adapters_gives_alone(
    make: Callable[[], TinyPipeline], part: str, tmp_path: Path
) -> None:
    tiny = with_adapters(make, part, tmp_path)
    works = works_for(tiny)
    module: Any = getattr(tiny.pipeline, part)
    model = PipelineModel(tiny.pipeline, works, switches={id(module): AdapterSwitch(adapted_layers(module))})
    model.adapters = CHOSEN
    assert await run_together(model) == {}
    for batch in model.batches:
        assert len({CHOSEN.get(name, ()) for name in batch}) == 1, batch
    assert any(len(batch) > 1 for batch in model.batches)
    plain: dict[Adapters, Any] = {}
    for name, work in works.items():
        chosen = CHOSEN.get(name, ())
        stock = make().pipeline
        if chosen:
            for each, _ in chosen:
                stock.load_lora_weights(tmp_path / each, adapter_name=each)
            stock.set_adapters([each for each, _ in chosen], [scale for _, scale in chosen])
        expected = alone(stock, work)
        assert np.abs(model.results[name] - expected).max() <= 1e-5, name
        if chosen:
            plain[chosen] = np.abs(expected - alone(make().pipeline, work)).max()
    assert min(plain.values()) > 1e-3  # the adapters do something
