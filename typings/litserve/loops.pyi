from typing import Any

def inference_worker(
    lit_api: Any,
    device: str,
    worker_id: int,
    request_queue: Any,
    transport: Any,
    workers_setup_status: dict[str, str],
    callback_runner: Any,
    restart_workers: bool,
) -> None: ...
