"""Members of a real etcd on loopback, as processes that a test may stop and start."""

import random
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp

_GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Ports from below those that the system gives to whoever asks for any: they stay free until they are listened on."""
    first = int(_GIVEN_AWAY.read_text(encoding="ascii").split()[0]) if _GIVEN_AWAY.exists() else 0
    ports = random.SystemRandom().sample(range(first - 8000, first), 8000) if first > 10_000 else [0] * count
    found: list[int] = []
    with ExitStack() as stack:
        for port in ports:
            one = stack.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", port))
            except OSError:  # somebody's
                continue
            found.append(one.getsockname()[1])
            if len(found) == count:
                break
    return found


class EtcdCluster:
    """Members on free ports.

    Args:
        num_members: 1 or 3.
        tls: A certificate that is its own authority, and its key: members serve https, and clients must show it, too.
    """

    def __init__(self, num_members: int, *, tls: tuple[Path, Path] | None = None) -> None:
        ports = free_ports(2 * num_members)
        self._tls = tls
        self._folder = Path(mkdtemp(prefix="etcd-"))
        scheme = "http" if tls is None else "https"
        self._clients = [f"{scheme}://127.0.0.1:{port}" for port in ports[:num_members]]
        self._peers = [f"http://127.0.0.1:{port}" for port in ports[num_members:]]
        self._members: dict[int, subprocess.Popen[bytes]] = {}
        for member in range(num_members):
            self.start(member)

    @property
    def endpoints(self) -> list[str]:
        return self._clients

    def start(self, member: int) -> None:
        initial = ",".join(f"m{index}={peer}" for index, peer in enumerate(self._peers))
        command = ["etcd", "--name", f"m{member}", "--data-dir", str(self._folder / str(member)), "--unsafe-no-fsync"]
        command += ["--listen-client-urls", self._clients[member], "--advertise-client-urls", self._clients[member]]
        command += ["--listen-peer-urls", self._peers[member], "--initial-advertise-peer-urls", self._peers[member]]
        command += ["--initial-cluster", initial, "--heartbeat-interval", "50", "--election-timeout", "500"]
        if self._tls is not None:
            certificate, key = map(str, self._tls)
            command += ["--cert-file", certificate, "--key-file", key]
            command += ["--client-cert-auth", "--trusted-ca-file", certificate]
        with (self._folder / f"{member}.log").open("ab") as log:
            self._members[member] = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self, member: int) -> None:
        process = self._members.pop(member)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for member in list(self._members):
            self.kill(member)
        shutil.rmtree(self._folder)
