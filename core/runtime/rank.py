"""The process of a rank other than the first: loads its copy of the shared modules, then computes what rank 0 orders."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import sys

import torch

from sixfold.core.errors import SixfoldError, UsageError
from sixfold.core.parallel.codec import read_message
from sixfold.core.parallel.follower import Follower, Orders
from sixfold.core.parallel.mesh import join
from sixfold.core.parallel.messages import Loaded, LoadingFailed
from sixfold.core.parallel.modules import RankModules
from sixfold.core.plugins import load_plugins
from sixfold.core.runtime.devices import use_device
from sixfold.core.runtime.loading import imported, load_context
from sixfold.core.runtime.ranks import RankStart
from sixfold.core.telemetry.logs import configure_logging

_log = logging.getLogger(__name__)


def main(fd: int) -> int:
    """Follows until rank 0 says stop or goes away; the exit status."""
    sock = socket.socket(fileno=fd)
    start = read_message(sock)
    if start is None:
        return 0
    assert isinstance(start, RankStart) and start.load.ranks is not None
    orders = Orders(sock)
    torch.set_num_threads(start.load.num_threads)
    try:
        use_device(start.load.device)
        family = load_plugins().families[start.load.family]
        modules = imported(family.rank_loader)(load_context(family, start.load))
    except Exception as error:  # a model's code may raise anything while it loads; rank 0 must hear it
        if not isinstance(error, SixfoldError):
            _log.exception("rank %d could not load", start.rank)
        message = str(error) if isinstance(error, SixfoldError) else f"{type(error).__name__}: {error}"
        orders.send(LoadingFailed(message=message, is_usage_error=isinstance(error, UsageError)))
        return 1
    orders.send(Loaded())
    ranks = start.load.ranks
    device = torch.device(start.load.device)
    mesh = join(ranks.degrees, start.rank, device, start.store, timeout_s=ranks.step_timeout_s)
    Follower(orders, RankModules(modules, mesh), mesh).run()
    return 0


if __name__ == "__main__":
    configure_logging("info", "json" if sys.argv[2] == "json" else "text", pid=os.getpid())
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: the groups' threads may wait for ranks that have ended already.
    os._exit(status)
