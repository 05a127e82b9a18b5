"""The command `cluster`: the service on a Ray cluster that runs already."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any

from service.features.extras import MissingExtra

MOST_PORT = 65535


def add_cluster_options(parser: ArgumentParser) -> None:
    """The options of `cluster`."""
    parser.add_argument("action", choices=("deploy",), help="deploy: put the service there, or replace what is there")
    parser.add_argument("--address", help="of the cluster's head (RAY_ADDRESS, or one on this machine)")
    parser.add_argument("--host", default="0.0.0.0", help="address that every node listens on (0.0.0.0)")
    parser.add_argument("--port", type=int, default=8080, help="port that every node listens on (8080)")
    parser.add_argument("--replicas", default="1", metavar="N[:MOST]", help="how many, or the least and the most (1)")
    parser.add_argument("--gateways", type=int, default=1, help="processes that pass requests on (1)")
    parser.add_argument("--cpus", type=float, default=1.0, help="that a replica reserves (1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="that a replica reserves (0)")
    parser.add_argument("--spread", action="store_true", help="at most one replica and one gateway a node")


def deploy_to_cluster(arguments: Namespace, given: Mapping[str, Any]) -> int:
    """Deploy -> the exit status. Raises ValueError, ConnectionError, MissingExtra."""
    least, _, most = arguments.replicas.partition(":")
    try:
        replicas = int(least), int(most or least)
    except ValueError:
        raise ValueError(f"--replicas: N or N:MOST is expected, not {arguments.replicas!r}") from None
    if not 1 <= replicas[0] <= replicas[1]:
        raise ValueError(f"--replicas: at least one, and the least first, is expected, not {arguments.replicas!r}")
    limits = {"port": (1, MOST_PORT), "gateways": (1, math.inf), "cpus": (0, math.inf), "gpus": (0, math.inf)}
    for name, (low, high) in limits.items():
        if not low <= (value := getattr(arguments, name)) <= high:
            raise ValueError(f"--{name}: {low} to {high} is expected, not {value}")
    try:
        from service.cluster.deploy import Shape, deploy
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "ray.serve"):
            raise
        raise MissingExtra("a cluster needs ray, which is not installed: pip install 'serpentine[cluster]'") from None
    shape = Shape(replicas, arguments.gateways, arguments.cpus, arguments.gpus, arguments.spread)
    settings = {name: value for name, value in given.items() if value is not None and name not in ("host", "port")}
    deploy(settings, shape, host=arguments.host, port=arguments.port, address=arguments.address)
    print(f"Serpentine listens on port {arguments.port} of every node; `serve status` shows its replicas.")
    return 0
