"""The state of a sequence as a value: copied out of a slot, kept, sent, and copied into another.

A snapshot is never written to. Whoever holds it counts it: it is gone when nobody does. As bytes it is a safetensors
file, whose metadata say what made it and which carries a checksum; bytes that come from anywhere are parsed with every
check, since whoever made them may have made up the checksum too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from torch import Tensor

from service.errors import InvalidInput, SessionConflict
from service.models.base import StateTensor
from service.models.files import WEIGHTS_FILE

FORMAT = "serpentine-snapshot-2"
MAX_HEADER_BYTES = 64 * 1024
MAX_ASIDE_BYTES = 16 * 2**20
MAX_STEPS = 2**62
_STATE, _ASIDE = "state.", "aside."
_ENTRIES = {"format", "model", "fingerprint", "instructions", "steps", "notes", "checksum"}
_INSTRUCTIONS = re.compile("[a-z0-9_ ]{0,200}")
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL"}
_ASIDE_DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "I16": np.int16, "BOOL": np.bool_}
_NAMES = {np.dtype(kind): name for name, kind in _ASIDE_DTYPES.items()}

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One slot's rows, as they were after `steps` steps. Nothing of it may be written to.

    fingerprint  of what made it: model, weights, recipe, backend
    instructions the instruction sets of the processors that it has come through, where bits depend on them
    rows         {state tensor: its row}
    aside        what a sequence has beside its rows, such as input that no step has read yet: {name: array}
    notes        the same, where it is JSON
    """

    fingerprint: str
    rows: Mapping[str, Tensor]
    steps: int
    aside: Mapping[str, Array] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    instructions: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        """Bytes of memory that it holds."""
        rows = sum(row.numel() * row.element_size() for row in self.rows.values())
        return rows + sum(array.nbytes for array in self.aside.values())

    def beside(self, aside: Mapping[str, Array], notes: Mapping[str, Any] | None = None) -> Snapshot:
        """The same state with other things beside it; the rows are shared."""
        return replace(self, aside=aside, notes=notes or {})


def is_sound(row: Tensor, tensor: StateTensor) -> bool:
    """Whether a row holds what a run can leave there: numbers, or the infinite value that a sequence starts from."""
    if not tensor.dtype.is_floating_point:
        return tensor.dtype == torch.bool or bool((row >= 0).all())
    sound = row.isfinite()
    return bool((sound if math.isfinite(tensor.initial) else sound | (row == tensor.initial)).all())


def fingerprint_of(folder: Path, config: Mapping[str, Any], backend: str) -> str:
    """The hash of all that a state depends on: the config of model and recipe, the weights' file, the backend.

    config: JSON, without what only describes.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([FORMAT, config, backend], sort_keys=True).encode())
    with (folder / WEIGHTS_FILE).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class SnapshotFormat:
    """Snapshots of one served model as bytes. tensors: as the model states them."""

    model: str
    fingerprint: str
    tensors: Mapping[str, StateTensor]

    def initial(self) -> Snapshot:
        """The state that every sequence starts from."""
        rows = {name: torch.full(t.shape, t.initial, dtype=t.dtype) for name, t in self.tensors.items()}
        return Snapshot(self.fingerprint, rows, 0)

    def renewed(self, snapshot: Snapshot, prefix: str) -> Snapshot:
        """The same state, but with the rows whose names begin with `prefix` as a sequence starts."""
        initial = self.initial().rows
        rows = {name: initial[name] if name.startswith(prefix) else row for name, row in snapshot.rows.items()}
        return replace(snapshot, rows=rows)

    def dump(self, snapshot: Snapshot) -> bytes:
        """As safetensors: `state.*`, `aside.*`, the rest in the metadata. The same state gives the same bytes."""
        arrays = {_STATE + name: row.cpu().numpy() for name, row in snapshot.rows.items()}
        arrays |= {_ASIDE + name: np.ascontiguousarray(array) for name, array in snapshot.aside.items()}
        metadata = {
            "format": FORMAT,
            "model": self.model,
            "fingerprint": snapshot.fingerprint,
            "instructions": " ".join(sorted(snapshot.instructions)),
            "steps": str(snapshot.steps),
            "notes": json.dumps(dict(snapshot.notes), sort_keys=True),
        }
        return _written(metadata, arrays)

    def load(self, data: bytes) -> Snapshot:
        """Parse bytes from anywhere.

        Raises InvalidInput at ("snapshot",) where they are no sound snapshot, SessionConflict where they are one of
        another model, recipe or backend.
        """
        entries, metadata = _parsed(data)
        _check_metadata(metadata)
        if metadata["checksum"] != _checksum(metadata, {name: entry["data"] for name, entry in entries.items()}):
            raise _broken("its checksum does not match; it was damaged or changed on its way")
        if metadata["fingerprint"] != self.fingerprint:
            raise SessionConflict(
                f"the snapshot was made by {metadata['model'][:100]!r} with other weights, another recipe or backend "
                f"(hash {metadata['fingerprint'][:16]}); this is {self.model!r} (hash {self.fingerprint[:16]})"
            )
        rows = {name.removeprefix(_STATE): e for name, e in entries.items() if name.startswith(_STATE)}
        aside = {name.removeprefix(_ASIDE): e for name, e in entries.items() if not name.startswith(_STATE)}
        if set(rows) != set(self.tensors):
            raise _broken(f"its state has {sorted(rows)}, this model's {sorted(self.tensors)}")
        return Snapshot(
            self.fingerprint,
            {name: _row(name, rows[name], tensor) for name, tensor in self.tensors.items()},
            int(metadata["steps"]),
            {name: _aside(name, entry) for name, entry in aside.items()},
            json.loads(metadata["notes"]),
            frozenset(metadata["instructions"].split()),
        )


def _written(metadata: Mapping[str, str], arrays: Mapping[str, Array]) -> bytes:
    """A safetensors file. The library's own writer puts the metadata in another order each time."""
    data = {name: arrays[name].tobytes() for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))}
    header: dict[str, Any] = {"__metadata__": {**metadata, "checksum": _checksum(metadata, data)}}
    begin = 0
    for name, content in data.items():
        end = begin + len(content)
        kind = _NAMES[arrays[name].dtype]
        header[name] = {"dtype": kind, "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *data.values()))


def made_by(data: bytes) -> tuple[str, str]:
    """(model, fingerprint) that a snapshot says it was made by. Raises InvalidInput where it is none."""
    _, metadata = _parsed(data)
    _check_metadata(metadata)
    return metadata["model"], metadata["fingerprint"]


def _parsed(data: bytes) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The tensors, as the library gives them once it has checked their borders, and the metadata."""
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > min(MAX_HEADER_BYTES, len(data) - 8):
        raise _broken(f"its header claims {header_bytes} bytes, of {len(data)} in all and {MAX_HEADER_BYTES} at most")
    try:
        entries = dict(deserialize(data))  # type: ignore[no-untyped-call]
        metadata = json.loads(data[8 : 8 + header_bytes]).get("__metadata__") or {}
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _broken(f"it is not safetensors: {error}") from None
    return entries, metadata


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if set(metadata) != _ENTRIES:
        raise _broken(f"its metadata have {sorted(metadata)}, expected {sorted(_ENTRIES)}")
    if metadata["format"] != FORMAT:
        raise _broken(f"it is in format {metadata['format'][:100]!r}; this version reads {FORMAT}")
    if not _INSTRUCTIONS.fullmatch(metadata["instructions"]):
        raise _broken(f"instructions: names are expected, got {metadata['instructions'][:100]!r}")
    steps = metadata["steps"]
    if not (steps.isascii() and steps.isdigit() and len(steps) < 20 and int(steps) <= MAX_STEPS):
        raise _broken(f"steps: a whole number from 0, got {steps[:100]!r}")
    try:
        notes = json.loads(metadata["notes"])
    except (ValueError, RecursionError):
        notes = None
    if not isinstance(notes, dict):
        raise _broken("notes: a JSON object is expected")


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps({k: v for k, v in metadata.items() if k != "checksum"}, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}:{len(tensors[name])}:".encode())
        digest.update(tensors[name])
    return digest.hexdigest()


def _row(name: str, entry: Mapping[str, Any], tensor: StateTensor) -> Tensor:
    if entry["dtype"] != _DTYPES[tensor.dtype] or tuple(entry["shape"]) != tensor.shape:
        expected = f"{_DTYPES[tensor.dtype]} {list(tensor.shape)}"
        raise _broken(f"{_STATE}{name} is {entry['dtype']} {entry['shape']}, expected {expected}")
    data = bytearray(entry["data"])  # a copy that PyTorch may own
    if tensor.dtype == torch.bool and max(data, default=0) > 1:
        raise _broken(f"{_STATE}{name} has booleans that are neither 0 nor 1")
    row = torch.frombuffer(data, dtype=tensor.dtype).reshape(tensor.shape)
    if not is_sound(row, tensor):
        raise _broken(f"{_STATE}{name} has values that no run leaves there")
    return row


def _aside(name: str, entry: Mapping[str, Any]) -> Array:
    if entry["dtype"] not in _ASIDE_DTYPES or not name:
        raise _broken(f"{name[:100]!r} is {entry['dtype']}; beside the state are {', '.join(_ASIDE_DTYPES)}")
    if len(entry["data"]) > MAX_ASIDE_BYTES:
        raise _broken(f"{_ASIDE}{name[:100]} has {len(entry['data'])} bytes, at most {MAX_ASIDE_BYTES} are read")
    if entry["dtype"] == "BOOL" and max(entry["data"], default=0) > 1:
        raise _broken(f"{_ASIDE}{name[:100]} has booleans that are neither 0 nor 1")
    array: Array = np.frombuffer(entry["data"], _ASIDE_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _broken(f"{_ASIDE}{name[:100]} has values that are not finite")
    return array


def _broken(why: str) -> Exception:
    return InvalidInput.at(("snapshot",), why)
