"""The applications, and how they are put on a cluster."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions, ProxyLocation, RequestRouterConfig
from starlette.types import ASGIApp, Receive, Scope, Send

from service.cluster.gateway import Gateway
from service.cluster.replica import STREAMS, Replica
from service.served import kind_of
from service.settings import Settings, load_settings

REPLICAS, GATEWAY = "serpentine-replicas", "serpentine"
ANSWERS_S = 5.0  # for a head to accept a connection; Ray itself would try for a quarter of an hour
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@dataclass(frozen=True)
class Shape:
    """What a deployment takes.

    replicas  the least and the most; where they differ, their number goes by `scaling.wanted`
    up_after_s, down_after_s  that another number must have been wanted for
    gateways  small processes that pass requests on
    cpus, gpus  that Ray reserves for a replica
    spread    at most one replica and one gateway a node
    every_node_listens  else only the head does
    """

    replicas: tuple[int, int] = (1, 1)
    up_after_s: float = 30.0
    down_after_s: float = 600.0
    gateways: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    spread: bool = False
    every_node_listens: bool = True


def deploy(given: Mapping[str, Any], shape: Shape, *, host: str, port: int, address: str | None = None) -> None:
    """Put the service on the cluster at `address` (None: that of the environment, or one that runs on this machine).

    given: settings; with those of the environment and the file here, every replica's. Returns once every replica is
    ready; then the proxies listen on host:port. Raises SettingsError, ValueError, ConnectionError, and what Ray raises.
    """
    settings = load_settings(given)
    if settings.session_store is None and shape.replicas[1] > 1:
        raise ValueError("several replicas share sessions through a store: set SERPENTINE_SESSION_STORE")
    for folder in settings.models:
        kind_of(folder)  # Ray would try each of its replicas three times
    _join(address)
    where = ProxyLocation.EveryNode if shape.every_node_listens else ProxyLocation.HeadOnly
    serve.start(proxy_location=where, http_options=HTTPOptions(host=host, port=port))
    serve.run(_replicas(settings, shape), name=REPLICAS, route_prefix=STREAMS)
    serve.run(_gateway(settings, shape), name=GATEWAY, route_prefix="/")


def stop(address: str | None = None) -> None:
    """Take the service from the cluster; what is being answered has its drain. Raises ConnectionError.

    Where nothing else is served there, Serve and its proxies go too.
    """
    _join(address)
    for name in (GATEWAY, REPLICAS):
        if name in serve.status().applications:
            serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()


def _join(address: str | None) -> None:
    if not ray.is_initialized():
        ray.init(address=_answering(address), log_to_driver=False)


def _answering(address: str | None) -> str:
    """A head's address as Ray reads it. Raises ConnectionError where there is none, or nobody answers there."""
    found: str = canonicalize_bootstrap_address_or_die(address or "auto")
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_S).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {found}: {error}") from None
    return found


def everywhere(settings: Settings) -> dict[str, Any]:
    """What was set here, for processes that have another environment and another folder: defaults stay their own."""
    own = {"config", "host", "port"}
    return {name: _absolute(getattr(settings, name)) for name in settings.model_fields_set - own}


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    return value.absolute() if isinstance(value, Path) else value


def _replicas(settings: Settings, shape: Shape) -> serve.Application:
    least, most = shape.replicas
    scaling = AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        upscale_delay_s=shape.up_after_s,
        downscale_delay_s=shape.down_after_s,
        policy=AutoscalingPolicy(policy_function="service.cluster.scaling:wanted"),
    )
    inside = settings.slots + settings.max_waiting  # the replica's own admission refuses beyond
    options: dict[str, Any] = {"autoscaling_config": scaling} if least < most else {"num_replicas": least}
    if shape.spread:
        options["max_replicas_per_node"] = 1
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="Replica",
        max_ongoing_requests=2 * inside,
        max_queued_requests=inside,
        graceful_shutdown_timeout_s=settings.drain_s,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        ray_actor_options={"num_cpus": shape.cpus, "num_gpus": shape.gpus},
        **options,
    )
    return deployment.bind(everywhere(settings))


def _gateway(settings: Settings, shape: Shape) -> serve.Application:
    def build() -> ASGIApp:
        gateway = Gateway(serve.get_deployment_handle("Replica", REPLICAS), settings)

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            else:
                await gateway(scope, receive, send)

        return call

    options: dict[str, Any] = {"max_replicas_per_node": 1} if shape.spread else {}
    deployment = serve.deployment(
        serve.ingress(build)(),
        name="Gateway",
        num_replicas=shape.gateways,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0.1},
        **options,
    )
    return deployment.bind()


async def _lifespan(receive: Receive, send: Send) -> None:
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})
