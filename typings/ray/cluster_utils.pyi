from typing import Any

class Cluster:
    address: str
    webui_url: str
    def __init__(self, *, initialize_head: bool, head_node_args: dict[str, Any]) -> None: ...
    def shutdown(self) -> None: ...
