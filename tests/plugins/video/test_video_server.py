"""The official OpenAI client against a real server with a real worker process."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import yaml
from PIL import Image

from sixfold.core.object_ids import store_of
from tests.plugins.video.conftest import decode
from tests.servers import DemoServer, start_server, stop_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # OpenAI's own service will end; the API stays

PROMPT = "a red ball moves right"
SMALL = {"num_inference_steps": 4, "seed": 5}


def write_config(folder: Path, models: dict[str, Path], **server: Any) -> Path:
    options = {"default_width": 32, "default_height": 32, "default_frames": 9, "default_fps": 8, "default_steps": 4}
    data = {
        "models": {name: {"source": f"file:{path}", "options": options} for name, path in models.items()},
        "server": {"port": 0, "data_dir": str(folder / "data"), **server},
    }
    config = folder / "video.yaml"
    config.write_text(yaml.safe_dump(data))
    return config


@pytest.fixture(scope="module")
def server(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    models = {"clips": folder("wan"), "stills": folder("wan_image")}
    server = start_server(write_config(tmp_path_factory.mktemp("server"), models))
    try:
        yield server
    finally:
        assert stop_server(server) == 0


@pytest.fixture
def client(server: DemoServer) -> Iterator[Any]:
    with connect(server, "none") as client:
        yield client


def connect(server: DemoServer, key: str) -> Any:
    """Untyped: the client marks its own video methods as deprecated."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def make(client: Any, **changes: Any) -> Any:
    extra = {**SMALL, **changes.pop("extra_body", {})}
    return client.videos.create_and_poll(
        **{"prompt": PROMPT, "model": "clips", "poll_interval_ms": 20, "extra_body": extra, **changes}
    )


def test_a_video_is_created_polled_and_downloaded(client: Any, server: DemoServer) -> None:
    video = make(client, seconds="1", size="64x32")
    assert store_of(video.id) == httpx.get(f"{server.url}/ready").json()["store_id"]
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert (video.seconds, video.size, video.model, video.prompt) == ("1", "64x32", "clips", PROMPT)
    assert video.completed_at is not None and video.expires_at == video.completed_at + 86_400
    answer = client.videos.download_content(video.id)
    assert answer.response.headers["content-type"] == "video/mp4"
    frames, facts = decode(answer.read())
    assert (frames.shape, facts["fps"], facts["codec"]) == ((9, 32, 64, 3), 8, "h264")


def test_thumbnail_and_spritesheet(client: Any) -> None:
    video = make(client)
    thumbnail = client.videos.download_content(video.id, variant="thumbnail")
    assert thumbnail.response.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(thumbnail.read())).size == (32, 32)
    sheet = client.videos.download_content(video.id, variant="spritesheet")
    assert sheet.response.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(sheet.read())).size == (96, 96)


def test_parts_of_a_file_can_be_fetched(client: Any, server: DemoServer) -> None:
    video = make(client)
    url = f"{server.url}/v1/videos/{video.id}/content"
    whole = httpx.get(url).content
    part = httpx.get(url, headers={"range": "bytes=10-29"})
    assert (part.status_code, part.content) == (206, whole[10:30])
    assert part.headers["content-range"] == f"bytes 10-29/{len(whole)}"


def test_progress_counts_the_steps_that_are_done(client: Any, server: DemoServer) -> None:
    video = client.videos.create(prompt=PROMPT, model="clips", extra_body={"num_inference_steps": 60})
    assert (video.status, video.progress) == ("queued", 0)
    seen: list[tuple[str, int]] = []
    while video.status in ("queued", "in_progress"):
        video = client.videos.retrieve(video.id)
        seen.append((video.status, video.progress))
    running = [progress for status, progress in seen if status == "in_progress"]
    assert running == sorted(running)
    assert len({progress for progress in running if 0 < progress < 100}) > 1
    assert seen[-1] == ("completed", 100)


def test_the_same_seed_gives_the_same_file_and_a_remix_keeps_the_settings(client: Any) -> None:
    first, again = make(client, size="64x32"), make(client, size="64x32")
    data = client.videos.download_content(first.id).read()
    assert client.videos.download_content(again.id).read() == data
    remix = client.videos.remix(first.id, prompt="a blue square moves left")
    assert remix.remixed_from_video_id == first.id
    remix = client.videos.poll(remix.id, poll_interval_ms=20)
    assert (remix.status, remix.size, remix.seed) == ("completed", "64x32", 5)
    assert client.videos.download_content(remix.id).read() != data


def test_jobs_are_listed_newest_first_and_page_by_page(client: Any) -> None:
    made = [make(client).id for _ in range(3)]
    page = client.videos.list(limit=2)
    assert [video.id for video in page.data] == made[:0:-1]
    assert page.has_more
    assert client.videos.list(limit=2, after=made[1]).data[0].id == made[0]
    assert [video.id for video in client.videos.list(order="desc", limit=100)][:3] == made[::-1]
    oldest = client.videos.list(order="asc", limit=1).data[0]
    assert oldest.created_at <= client.videos.retrieve(made[0]).created_at


def test_a_deleted_video_is_gone_with_its_files(client: Any, server: DemoServer) -> None:
    video = make(client)
    files = server.config.parent / "data" / "video" / "files"
    num_files = len(list(files.iterdir()))
    answer = client.videos.delete(video.id)
    assert (answer.id, answer.deleted, answer.object) == (video.id, True, "video.deleted")
    assert len(list(files.iterdir())) == num_files - 3
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.NotFoundError):
        client.videos.delete(video.id)


def test_a_running_video_is_cancelled_by_its_deletion(client: Any, server: DemoServer) -> None:
    video = client.videos.create(prompt=PROMPT, model="clips", extra_body={"num_inference_steps": 100})
    while client.videos.retrieve(video.id).progress < 2:
        pass
    client.videos.delete(video.id)
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'sixfold:num_requests_running{model_name="clips"} 0.0' in metrics


def test_a_reference_image_starts_the_clip(client: Any, server: DemoServer) -> None:
    red, blue = (png((200, 20, 20)), png((20, 20, 200)))
    videos = [make(client, model="stills", input_reference=("first.png", image, "image/png")) for image in (red, blue)]
    assert [video.status for video in videos] == ["completed", "completed"]
    assert client.videos.download_content(videos[0].id).read() != client.videos.download_content(videos[1].id).read()
    # The client's own types allow {"image_url": ...}, but version 3.54 refuses to send it.
    url = "data:image/png;base64," + base64.b64encode(red).decode()
    form = {"model": "stills", "prompt": PROMPT, "seed": "5", "input_reference[image_url]": url}
    answer = httpx.post(f"{server.url}/v1/videos", data=form)
    same = client.videos.poll(answer.json()["id"], poll_interval_ms=20)
    assert client.videos.download_content(same.id).read() == client.videos.download_content(videos[0].id).read()
    remix = client.videos.poll(client.videos.remix(same.id, prompt=PROMPT).id, poll_interval_ms=20)
    assert client.videos.download_content(remix.id).read() == client.videos.download_content(same.id).read()


def png(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"size": "33x32"}, "size"),
        ({"size": "huge"}, "size"),
        ({"size": "8192x8192"}, "size"),
        ({"seconds": "many"}, "seconds"),
        ({"seconds": "3600"}, "seconds"),
        ({"prompt": "  "}, "prompt"),
        ({"extra_body": {"num_frames": 8}}, "num_frames"),
        ({"extra_body": {"num_inference_steps": 1000}}, "num_inference_steps"),
        ({"extra_body": {"guidance_scale": 1.0, "negative_prompt": "blur"}}, "negative_prompt"),
        ({"extra_body": {"sharpness": 3}}, "sharpness"),
        ({"input_reference": ("a.png", b"not an image", "image/png")}, "input_reference"),
        ({"model": "stills"}, "input_reference"),
        ({"model": "stills", "input_reference": ("a.png", b"", "image/png")}, "input_reference"),
        ({"model": "stills", "input_reference": ("a.png", b"not an image", "image/png")}, "input_reference"),
        ({"model": "stills", "input_reference": ("a.png", png((1, 2, 3))[:60], "image/png")}, "input_reference"),
        ({"model": "stills", "input_reference": ("a.png", png((1, 2, 3), (48, 32)), "image/png")}, "input_reference"),
    ],
)
def test_what_a_model_cannot_do_is_refused_with_the_parameter(
    client: Any, arguments: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.videos.create(**{"prompt": PROMPT, "model": "clips", **arguments})
    assert refusal.value.param is not None and refusal.value.param.startswith(param), refusal.value


@pytest.mark.parametrize("reference", [{"file_id": "file-1"}, {"image_url": "http://127.0.0.1/a.png"}, {}])
def test_a_reference_that_may_not_be_fetched_is_refused(server: DemoServer, reference: dict[str, str]) -> None:
    body = {"model": "stills", "prompt": PROMPT, "input_reference": reference}
    answer = httpx.post(f"{server.url}/v1/videos", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_reference")


def test_no_model_or_an_unknown_one(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="clips, stills"):
        client.videos.create(prompt=PROMPT)
    with pytest.raises(openai.NotFoundError):
        client.videos.create(prompt=PROMPT, model="sora-2")


def test_what_is_not_offered_says_so(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="no model that edits"):
        client.videos.edit(prompt=PROMPT, video=b"mp4")
    with pytest.raises(openai.BadRequestError, match="no model that edits"):
        client.videos.extend(prompt=PROMPT, seconds="4", video=b"mp4")
    with pytest.raises(openai.BadRequestError, match="characters"):
        client.videos.get_character("char_1")


def test_json_bodies_are_taken_as_well(server: DemoServer) -> None:
    body = {"model": "clips", "prompt": PROMPT, "seconds": "0.5", "num_inference_steps": 1}
    answer = httpx.post(f"{server.url}/v1/videos", json=body)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["seconds"], answer.json()["num_frames"]) == ("0.5", 5)


async def test_clips_of_many_clients_share_forwards_and_each_is_as_alone(server: DemoServer) -> None:
    untyped: Any = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    async with untyped as client:

        async def film(index: int) -> bytes:
            settings = {"num_inference_steps": 8 + index, "guidance_scale": 1.0 + index, "seed": index}
            video = await client.videos.create_and_poll(
                prompt=PROMPT, model="clips", poll_interval_ms=50, extra_body=settings
            )
            assert video.status == "completed", video.error
            content: bytes = (await client.videos.download_content(video.id)).read()
            return content

        together = await asyncio.gather(*map(film, range(6)))
        alone = [await film(index) for index in range(6)]
    assert len(set(alone)) == 6
    # Frames agree within 1e-5 (test_video_equality.py), so a pixel in thousands rounds to the next byte; the encoder then
    # may choose other blocks. Each file must still be that of its own request and of no other.
    mine, theirs = ([decode(data)[0].astype(np.int16) for data in files] for files in (together, alone))
    distances = np.array([[np.abs(one - other).mean() for other in theirs] for one in mine])
    assert (distances.diagonal() < (distances + np.diag([np.inf] * 6)).min(axis=1) / 5).all(), distances
    metrics = httpx.get(f"{server.url}/metrics").text
    rows, forwards = (metric(metrics, f"denoiser_{what}_total", "clips") for what in ("rows", "forwards"))
    assert rows > forwards


def metric(text: str, name: str, model: str) -> float:
    line = next(
        line for line in text.splitlines() if line.startswith(f'sixfold:{name}{{engine="0",model_name="{model}"')
    )
    return float(line.rsplit(" ", 1)[1])


def test_one_key_does_not_see_another_keys_videos_and_jobs_survive_a_restart(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    keys = [f"{name}-secret-key-of-enough-length" for name in ("ward", "lab")]
    holders = [{"name": key[:4], "sha256": hashlib.sha256(key.encode()).hexdigest()} for key in keys]
    config = write_config(tmp_path, {"clips": folder("wan")}, api_keys=holders)
    server = start_server(config)
    try:
        ward, lab = (connect(server, key) for key in keys)
        done = make(ward)
        data = ward.videos.download_content(done.id).read()
        for ask in (lab.videos.retrieve, lab.videos.delete, lab.videos.download_content):
            with pytest.raises(openai.NotFoundError):
                ask(done.id)
        with pytest.raises(openai.NotFoundError):
            lab.videos.remix(done.id, prompt="mine")
        assert lab.videos.list().data == []
        running = ward.videos.create(prompt=PROMPT, model="clips", extra_body={"num_inference_steps": 100, "seed": 9})
        while ward.videos.retrieve(running.id).progress < 2:
            pass
        server.process.send_signal(signal.SIGKILL)
        assert stop_server(server) == -signal.SIGKILL
        server = start_server(config)
        ward = connect(server, keys[0])
        assert ward.videos.download_content(done.id).read() == data
        again = ward.videos.poll(running.id, poll_interval_ms=50)
        assert (again.status, again.seed, again.error) == ("completed", 9, None)
        ward.videos.delete(running.id)
        assert [video.id for video in ward.videos.list().data] == [done.id]
    finally:
        stop_server(server)
