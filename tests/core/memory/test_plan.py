from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sixfold.core.cli import main
from sixfold.core.config import ModelEntry
from sixfold.core.errors import SourceError
from sixfold.core.family import Family, NoOptions
from sixfold.core.memory.machine import Device, Machine, with_devices
from sixfold.core.memory.need import MemoryNeed, MemoryQuestion
from sixfold.core.memory.plan import SERVER_BYTES, plan_models
from sixfold.core.registry import ResolvedModel

GIB = 1 << 30
ROOT = Path(__file__).parents[3]


def machine(gib: float, *, gpu_gib: float = 0.0) -> Machine:
    cpu = Machine(devices=(Device(name="cpu", total_bytes=SERVER_BYTES + int(gib * GIB), has_bfloat16=True),))
    return with_devices(cpu, {"cuda:0": int(gpu_gib * GIB)} if gpu_gib else {})


def model(name: str, need: MemoryNeed | Exception, **fields: Any) -> ResolvedModel:
    def memory(question: MemoryQuestion) -> MemoryNeed:
        if isinstance(need, Exception):
            raise need
        return need

    family = Family(
        name="none/fake",
        summary="",
        operations=frozenset(),
        loader="none:none",
        input_type=msgspec.Struct,
        output_type=msgspec.Struct,
        extra="none",
        memory=memory,
    )
    entry = ModelEntry.model_validate({"name": name, "source": "file:x", "device": "auto", **fields})
    return ResolvedModel(entry=entry, family=family, path=Path("/nowhere"), options=NoOptions())


def of_gib(weights: float, **fields: Any) -> MemoryNeed:
    return MemoryNeed(weights_bytes=int(weights * GIB), process_bytes=0, **fields)


def test_models_that_fit_together_fit() -> None:
    plan = plan_models([model("a", of_gib(2)), model("b", of_gib(2), replicas=2)], machine(6))
    assert plan.fits and not plan.advice
    assert [(m.name, m.device, sum(c.num_bytes for c in m.claims) // GIB) for m in plan.models] == [
        ("a", "cpu", 2),
        ("b", "cpu", 4),
    ]
    assert plan.devices[0].claimed_bytes == plan.devices[0].total_bytes


def test_the_less_important_is_the_one_that_does_not_fit() -> None:
    plan = plan_models([model("a", of_gib(3)), model("b", of_gib(3), priority=1)], machine(5))
    assert [(m.name, m.fits) for m in plan.models] == [("b", True), ("a", False)]
    (advice,) = plan.advice
    assert advice.startswith("models.a needs 3.0 GiB of cpu, 1.0 GiB more than is free there")
    assert "b 3.0 GiB" in advice and "set models.a.load to on_demand" in advice


def test_models_on_demand_must_fit_alone() -> None:
    entries = [model("a", of_gib(3)), model("b", of_gib(4), load="on_demand"), model("c", of_gib(6), load="on_demand")]
    plan = plan_models(entries, machine(5))
    assert [(m.name, m.fits) for m in plan.models] == [("a", True), ("b", True), ("c", False)]
    assert not plan.fits


def test_a_cache_that_is_too_large_is_told_the_size_that_fits_whosever_it_is() -> None:
    greedy = of_gib(1, cache_bytes=4 * GIB, cache_token_bytes=1024, cache_option="kv_cache_bytes")
    plan = plan_models([model("a", greedy), model("b", of_gib(2))], machine(6))
    assert plan.models[0].cache_tokens == 4 * GIB // 1024
    assert f"set models.a.options.kv_cache_bytes to at most {3 * GIB} (3.0 GiB)" in plan.advice[0]
    assert plan_models([model("a", of_gib(1, cache_bytes=3 * GIB)), model("b", of_gib(2))], machine(6)).fits


def test_a_cache_that_takes_its_share_of_a_gpu_leaves_the_rest_to_the_next() -> None:
    greedy = of_gib(10, cache_share=0.8, cache_token_bytes=1 << 20)
    plan = plan_models([model("a", greedy), model("b", of_gib(10))], machine(1, gpu_gib=80))
    assert plan.fits
    assert [m.device for m in plan.models] == ["cuda:0", "cuda:0"]
    assert plan.models[0].on("cuda:0") == 10 * GIB + 56 * GIB


def test_a_device_that_is_not_there_is_a_problem() -> None:
    plan = plan_models([model("a", of_gib(1), device="cuda:3")], machine(4))
    assert not plan.fits
    assert "this machine has no cuda:3" in plan.problems[0]


def test_files_that_cannot_be_read_are_a_problem_and_a_family_that_fails_counts_its_files(tmp_path: Path) -> None:
    broken = model("a", SourceError("config.json of the model is not valid JSON."))
    strange = model("b", ZeroDivisionError())
    (tmp_path / "model.bin").write_bytes(b"x" * 1000)
    strange = ResolvedModel(entry=strange.entry, family=strange.family, path=tmp_path, options=strange.options)
    plan = plan_models([broken, strange], machine(4))
    assert plan.problems == ("models.a: config.json of the model is not valid JSON.",)
    assert [claim.num_bytes for claim in plan.models[0].claims if claim.kind == "weights"] == [1000]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The two small diffusion models of the examples, which need no network."""
    path = tmp_path / "sixfold.yaml"
    sources = {
        name: f"file:{ROOT / 'examples' / folder}" for name, folder in (("draw", "tiny_image"), ("film", "tiny_video"))
    }
    path.write_text(
        json.dumps({"models": {name: {"source": source, "device": "cpu"} for name, source in sources.items()}})
    )
    return path


def test_the_command_prints_a_table_and_says_by_its_status_whether_all_fits(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(config), "--device", "cpu=8GiB"]) == 0
    header, draw, film, *_rest = capsys.readouterr().out.splitlines()
    assert header.split() == "MODEL FAMILY DEVICE WEIGHTS CACHE WORKING PROCESS TOTAL FITS".split()
    assert draw.startswith("draw") and draw.endswith("yes")
    assert film.startswith("film") and film.endswith("yes")
    assert main(["plan", str(config), "--device", "cpu=3.5GiB"]) == 1
    assert "set models.film.load to on_demand" in capsys.readouterr().out


def test_the_command_prints_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--json", "--device", "cpu=8000000000"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["devices"][0]["total_bytes"] == 8_000_000_000
    assert {model["name"] for model in plan["models"]} == {"draw", "film"}


@pytest.mark.parametrize("text", ["cuda:0", "gpu=3GiB", "cpu=lots", "cpu=3GG"])
def test_a_device_that_makes_no_sense_is_explained(config: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--device", text]) == 2
    assert "must be a name and a size, such as cuda:0=80GiB" in capsys.readouterr().err
