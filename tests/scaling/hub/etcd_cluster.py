"""Members of a real etcd on loopback, as processes that a test may stop and start."""

import shutil
import signal
import socket
import subprocess
from pathlib import Path
from tempfile import mkdtemp


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


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
