"""Pictures and clips: each optimisation of a denoiser's step, of a decode and of the engine alone, in turns; see `alone.py`."""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from alone_caches import measure_caches
from alone_timing import Notes, Way, interleave
from image import capture_call, graphs_on, repeat_rows
from image_serving import Job, poisson_jobs, serve_engine
from image_steps import has_blocks, replayed, set_compiled, swapped_fp8, with_all_cached
from image_subjects import build
from torch.nn.attention import SDPBackend, sdpa_kernel

Arguments = Callable[[int], dict[str, Any]]
"""Of a forward, by rows."""


class Denoiser:
    """A denoiser whose compiled and fp8 forms are made once and put in for a visit.

    Args:
        module: The denoiser.
        compiles: Whether its blocks are compiled, too.
    """

    def __init__(self, module: Any, *, compiles: bool = True) -> None:
        self.module = module
        self.forms = tuple(form for form in FORMS if compiles or "compiled" not in form)
        self._compiled: dict[Any, Any] = {}
        if compiles:
            torch._dynamo.config.recompile_limit = 64  # blocks of several widths, each with and without fp8
            set_compiled(module, True)
            self._compiled = {each: each._compiled_call_impl for each in module.modules() if each._compiled_call_impl}
            set_compiled(module, False)
        self._fp8 = swapped_fp8(module)
        print(f"fp8: {len(self._fp8)} layers", flush=True)

    @contextlib.contextmanager
    def being(self, *forms: str) -> Generator[None]:
        """In these forms ("compiled", "fp8") inside."""
        for parent, name, _stock, fp8 in self._fp8 if "fp8" in forms else ():
            setattr(parent, name, fp8)
        for block, call in self._compiled.items() if "compiled" in forms else ():
            block._compiled_call_impl = call
        try:
            yield
        finally:
            for parent, name, stock, _fp8 in self._fp8:
                setattr(parent, name, stock)
            for block in self._compiled:
                block._compiled_call_impl = None

    def way(self, arguments: dict[str, Any], *forms: str, backend: SDPBackend | None = None) -> Way:
        """A forward in these forms, and "graphs"; attention by a backend of torch's."""

        @contextlib.contextmanager
        def switch() -> Generator[None]:
            with self.being(*forms), contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
                yield

        if "graphs" not in forms:
            return Way(lambda: self.module(**arguments), switch)
        with switch(), torch.no_grad():
            replay = replayed(self.module, arguments)
        return Way(replay)


FORMS = ("graphs", "compiled", "fp8", "compiled graphs", "fp8 graphs", "fp8 compiled graphs")
PAIRS = (
    ("graphs", "eager", "graphs"),
    ("compiled", "eager", "compiled"),
    ("compiled", "graphs", "compiled graphs"),
    ("fp8", "eager", "fp8"),
    ("fp8", "graphs", "fp8 graphs"),
    ("fp8", "compiled graphs", "fp8 compiled graphs"),
    ("attention-cudnn", "graphs", "cudnn graphs"),
    ("attention-flash", "graphs", "flash graphs"),
    ("row-cache", "eager", "all cached"),
)
_BACKENDS = {"cudnn graphs": SDPBackend.CUDNN_ATTENTION, "flash graphs": SDPBackend.FLASH_ATTENTION}


@torch.no_grad()
def measure_forwards(
    notes: Notes, modality: str, shape: str, denoiser: Denoiser, given: Arguments, rows: Sequence[int], rounds: int
) -> None:
    """Forwards by rows in all forms, and what several rows of one forward save."""
    module, by_rows = denoiser.module, {}
    for count in rows:
        arguments = given(count)
        ways = {"eager": denoiser.way(arguments)}
        wanted = {form: (form.split(), None) for form in denoiser.forms} | {
            name: (["graphs"], backend) for name, backend in _BACKENDS.items() if modality == "image"
        }
        for name, (forms, backend) in wanted.items():
            try:
                ways[name] = denoiser.way(arguments, *forms, backend=backend)
            except Exception as error:  # a kernel or a recording that this card or library does not have
                print(f"{name} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
        if has_blocks(module):
            ways["all cached"] = _all_cached(module, arguments, count)
        found = interleave(ways, rounds=rounds, calls=2)
        place = f"{shape}, {count} rows"
        notes.keep(place, found)
        if "all cached" in found:
            _note_most(notes, modality, place, found)
            del found["all cached"]
        notes.pairs(place, found, [(f"{modality}.{key}", off, on) for key, off, on in PAIRS])
        by_rows[count] = found
        del ways
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    few, many = rows[0], rows[-1]
    for name in ("eager", "graphs"):
        if many > few and name in by_rows[few] and name in by_rows[many]:
            off, on = many // few * by_rows[few][name], by_rows[many][name]
            place = f"{shape}, {many // few} forwards of {few} rows or one of {many}"
            notes.add(f"{modality}.merged-rows", place, off=1e3 * off, on=1e3 * on, base=name)


def _all_cached(module: Any, arguments: dict[str, Any], rows: int) -> Way:
    """The blocks are wrapped during a visit alone: compiled ones would notice. Its first forward fills the cache."""
    inside: list[Callable[[], Any]] = []

    @contextlib.contextmanager
    def switch() -> Generator[None]:
        with with_all_cached(module, arguments, rows) as run:
            inside[:] = [run]
            yield

    return Way(lambda: inside[0](), switch)


def _note_most(notes: Notes, modality: str, place: str, found: Mapping[str, float]) -> None:
    off, on = 1e3 * found["eager"], 1e3 * found["all cached"]
    note = "the most it could give: all blocks but the first skipped"
    notes.add(f"{modality}.row-cache", place, off=off, on=on, base="eager", note=note)


@torch.no_grad()
def measure_decodes(notes: Notes, subject: Any, size: int, rounds: int) -> None:
    """Four decodes or one of four, and channels last."""
    vae, side = subject.pipeline.vae, size // 8

    def latents(count: int) -> Any:
        shape = (count, vae.config.latent_channels, side, side)
        return torch.randn(shape, device=subject.device, dtype=vae.dtype)

    four, one = latents(4), latents(1)

    @contextlib.contextmanager
    def channels_last() -> Generator[None]:
        vae.to(memory_format=torch.channels_last)
        try:
            yield
        finally:
            vae.to(memory_format=torch.contiguous_format)

    ways = {
        "one by one": Way(lambda: [vae.decode(one) for _ in range(4)]),
        "together": Way(lambda: vae.decode(four)),
        "together, channels last": Way(lambda: vae.decode(four), channels_last),
    }
    found = interleave(ways, rounds=rounds)
    place = f"{subject.pipeline.__class__.__name__[:-8]}, {size} px, 4 pictures"
    notes.keep(f"decode, {place}", found)
    notes.pairs(place, found, [("image.vae-batch", "one by one", "together")])
    notes.pairs(place, found, [("image.vae-channels-last", "together", "together, channels last")])


def measure_engine(
    notes: Notes, subject: Any, size: int, *, count: int, steps: Sequence[int], units: int, rounds: int
) -> None:
    """The engine when all requests come at once: decoding on the steps' stream or on one of its own, and how many requests
    share a step left to the budget of the measured times or not (all that fit so many latent positions)."""
    from sixfold.core.rendezvous import lane

    jobs = [Job(arrival_s=0.0, num_steps=steps[i % len(steps)], guidance=5.0, size=size, seed=i) for i in range(count)]
    graphs, own = graphs_on(subject), lane.new_stream
    found: dict[str, list[Mapping[str, float]]] = {"as served": [], "one stream": [], "no budget": []}
    for number in range(len(found) * rounds + 1):
        name = list(found)[number % len(found)]
        lane.new_stream = torch.cuda.default_stream if name == "one stream" else own  # the device thread's
        try:
            report = serve_engine(subject, jobs, max_step_units=units, graphs=graphs, share=name != "no budget")
        finally:
            lane.new_stream = own
        if number:  # shapes are recorded in the first
            found[name].append(report)

    def middle(name: str, figure: str) -> float:
        return statistics.median(each[figure] for each in found[name])

    place = f"SDXL, {size} px, {count} pictures at once"
    for key, off in (("image.streams", "one stream"), ("image.measured-budget", "no budget")):
        rates = {"off": middle(off, "images_per_s"), "on": middle("as served", "images_per_s")}
        notes.add(key, place, **rates, unit="images/s", base="graphs")
        means = {"off": 1e3 * middle(off, "mean_s"), "on": 1e3 * middle("as served", "mean_s")}
        notes.add(key, f"{place}, mean latency", **means, base="graphs")


def measure_encoders(notes: Notes, *, tiny: bool) -> None:
    """Prompts are texts, and what pipelines compute before and between the steps is in the steps' stream, or in streams of
    their threads that go before the steps or not."""
    dtype, device = (torch.float32, "cpu") if tiny else (torch.bfloat16, "cuda")
    subject = build("sdxl", tiny=tiny, device=device, dtype=dtype, reads=True)
    graphs, size = graphs_on(subject), 64 if tiny else 512
    steps, count, rate = ((2, 3), 2, 20.0) if tiny else ((4, 8, 12, 20), 24, 4.0)
    jobs = poisson_jobs(count, rate, steps=steps, guidances=(5.0,), sizes=(size,))
    found: dict[str, list[Mapping[str, float]]] = {"steps' stream": [], "own streams": [], "own, not before": []}
    for number in range(len(found) * (1 if tiny else 3) + 1):
        name = list(found)[number % len(found)]
        with _pipelines_on(name):
            report = serve_engine(subject, jobs, max_step_units=64 if tiny else 65_536, graphs=graphs)
        print(name, {key: round(value, 3) for key, value in report.items()}, flush=True)
        if number:  # shapes are recorded in the first
            found[name].append(report)
    place = f"SDXL with its encoders, {size} px, {count} pictures at {rate:g}/s"
    for figure, said in (("mean_s", "mean latency"), ("p95_s", "p95"), ("first_step_p50_s", "to the first step")):
        off, on, plain = (1e3 * statistics.median(each[figure] for each in rows) for rows in found.values())
        note = f"{plain:.1f} ms in streams that do not go before the steps"
        notes.add("image.pipeline-streams", f"{place}, {said}", off=off, on=on, base="graphs", note=note)


@contextlib.contextmanager
def _pipelines_on(name: str) -> Generator[None]:
    """Threads of pipelines that begin inside compute in such a stream."""
    from sixfold.core.rendezvous import streams

    use, new_stream = streams.ThreadStreams.use, streams.new_stream
    if name == "steps' stream":
        streams.ThreadStreams.use = lambda _self: None  # type: ignore[method-assign]
    elif name == "own, not before":
        streams.new_stream = lambda device, *, priority=0: new_stream(device)
    try:
        yield
    finally:
        streams.ThreadStreams.use, streams.new_stream = use, new_stream  # type: ignore[method-assign]


def measure_pictures(
    arch: str, notes: Notes, *, tiny: bool, rows: Mapping[int, Sequence[int]], parts: Sequence[str]
) -> None:
    """One architecture of pictures: forwards, and decodes and the engine (SDXL) or row caches (Flux).

    Args:
        arch: "sdxl" or "flux".
        notes: Takes the figures.
        tiny: For a trial on a CPU.
        rows: Of the forwards, by the sides of the pictures in pixels.
        parts: Of `alone.PARTS`.
    """
    if "encoders" in parts:
        measure_encoders(notes, tiny=tiny)
        if not tiny:
            torch.cuda.empty_cache()
    if not set(parts) - {"encoders"}:
        return
    dtype, device = (torch.float32, "cpu") if tiny else (torch.bfloat16, "cuda")
    subject = build(arch, tiny=tiny, device=device, dtype=dtype)
    rounds, sizes = 1 if tiny else 3 if arch == "sdxl" else 2, tuple(rows)
    module = getattr(subject.pipeline, "unet", None) or subject.pipeline.transformer
    name = {"sdxl": "SDXL", "flux": "Flux.1-dev"}[arch]
    if arch == "sdxl":
        few = (
            {"count": 2, "steps": (2, 3), "units": 64}
            if tiny
            else {"count": 8, "steps": (4, 8, 12, 20), "units": 65_536}
        )
        if "engine" in parts:
            measure_engine(notes, subject, sizes[0], rounds=1 if tiny else 3, **few)
        if "decodes" in parts:
            measure_decodes(notes, subject, sizes[0], rounds)
    elif "caches" in parts:
        job = Job(arrival_s=0.0, num_steps=3 if tiny else 12, guidance=3.5, size=sizes[0], seed=1)
        draw = functools.partial(subject.draw, [job])
        place = f"{name}, {sizes[0]} px, a picture of {job.num_steps} steps"
        measure_caches(notes, "image.row-cache", place, module, lambda: draw()[0], (0.12, 0.3, 1.0))
    if "forwards" not in parts:
        return
    denoiser = Denoiser(module, compiles=not tiny)  # a minute on a CPU; `measure_clips` tries it there
    for size in sizes:
        _, arguments = capture_call(subject, size)
        from_rows = next(iter(arguments.values())).shape[0]

        def given(count: int, arguments: Any = arguments, from_rows: int = from_rows) -> dict[str, Any]:
            return {key: repeat_rows(value, count, from_rows, key) for key, value in arguments.items()}

        measure_forwards(notes, "image", f"{name}, {size} px", denoiser, given, rows[size], rounds)
