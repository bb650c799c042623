"""A TCP relay that holds a transfer in its middle, so that a test can end either side there."""

from __future__ import annotations

import socket
import threading


class StoppingRelay:
    """Passes one connection on to an owner of blocks, and holds what it sends after a number of bytes.

    Args:
        host: Of the owner.
        port: Of the owner.
        num_bytes: That pass from the owner before it is held.
    """

    def __init__(self, host: str, port: int, num_bytes: int) -> None:
        self._target = (host, port)
        self._left = num_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.is_holding = threading.Event()
        """Set once the bytes have passed: the transfer stands."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends both connections, as the death of the process behind them does."""
        self._listener.close()
        for sock in self._sockets:
            sock.close()

    def _run(self) -> None:
        reader, _ = self._listener.accept()
        owner = socket.create_connection(self._target)
        self._sockets += [reader, owner]
        threading.Thread(target=self._forward, args=(reader, owner), daemon=True).start()
        while self._left and (data := owner.recv(min(self._left, 4096))):
            reader.sendall(data)
            self._left -= len(data)
        self.is_holding.set()

    @staticmethod
    def _forward(reader: socket.socket, owner: socket.socket) -> None:
        try:
            while data := reader.recv(4096):
                owner.sendall(data)
        except OSError:
            return  # the test has ended one of both
