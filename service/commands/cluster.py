"""The command `cluster`: the service on a Ray cluster that runs already."""

from __future__ import annotations

import math
from argparse import Namespace
from types import ModuleType

from service.commands import StartError
from service.commands.common import given
from service.features.extras import MissingExtra

MOST_PORT = 65535


def run(arguments: Namespace) -> int:
    """Deploy or stop. Raises StartError."""
    try:
        replicas = _checked(arguments)
        if arguments.action == "stop":
            _imported().stop(arguments.address)
        else:
            _deploy(arguments, replicas)
    except (ValueError, OSError, RuntimeError) as error:  # of Ray too
        raise StartError(str(error)) from error
    return 0


def _imported() -> ModuleType:
    try:
        from service.cluster import deploy
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "ray.serve"):
            raise
        raise MissingExtra("a cluster needs ray, which is not installed: pip install 'serpentine[cluster]'") from None
    return deploy


def _deploy(arguments: Namespace, replicas: tuple[int, int]) -> None:
    cluster = _imported()
    shape = cluster.Shape(
        replicas,
        up_after_s=arguments.up_after,
        down_after_s=arguments.down_after,
        gateways=arguments.gateways,
        cpus=arguments.cpus,
        gpus=arguments.gpus,
        spread=arguments.spread,
    )
    settings = {
        name: value for name, value in given(arguments).items() if value is not None and name not in ("host", "port")
    }
    cluster.deploy(settings, shape, host=arguments.host, port=arguments.port, address=arguments.address)
    print(f"Serpentine listens on port {arguments.port} of every node it runs on; `serve status` shows its replicas.")


def _checked(arguments: Namespace) -> tuple[int, int]:
    """The least and the most replicas. Raises ValueError naming the first option that does not fit."""
    least, _, most = arguments.replicas.partition(":")
    try:
        replicas = int(least), int(most or least)
    except ValueError:
        raise ValueError(f"--replicas: N or N:MOST is expected, not {arguments.replicas!r}") from None
    if not 1 <= replicas[0] <= replicas[1]:
        raise ValueError(f"--replicas: at least one, and the least first, is expected, not {arguments.replicas!r}")
    limits = {"port": (1, MOST_PORT), "gateways": (1, math.inf)}
    limits |= dict.fromkeys(("up_after", "down_after", "cpus", "gpus"), (0, math.inf))
    for name, (low, high) in limits.items():
        if not low <= (value := getattr(arguments, name)) <= high:
            raise ValueError(f"--{name.replace('_', '-')}: {low} to {high} is expected, not {value}")
    return replicas
