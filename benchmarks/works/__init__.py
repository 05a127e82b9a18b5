"""What is measured: one module a work. A work is `run(bench) -> figures`, as they are ready."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from benchmarks.figures import Bench, Figure
from benchmarks.works import (
    coupled_scan,
    decode,
    digits_trio,
    generate,
    generate_http,
    predict_engine,
    predict_http,
    scan_training,
    tracing,
)

WORKS: Mapping[str, Callable[[Bench], Iterator[Figure]]] = MappingProxyType(
    {
        "coupled_scan": coupled_scan.run,
        "decode": decode.run,
        "digits_trio": digits_trio.run,
        "generate": generate.run,
        "generate_http": generate_http.run,
        "predict_engine": predict_engine.run,
        "predict_http": predict_http.run,
        "scan_training": scan_training.run,
        "tracing": tracing.run,
    }
)
ALL_CORES = frozenset({"generate_http", "predict_http", "tracing"})  # clients and a service; the others have one
