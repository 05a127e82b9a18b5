"""llama.cpp as a rival, in a process and an environment of its own (requirements.txt).

`python worker.py FOLDER` reads the fp32 weights of transformers' MambaForCausalLM in FOLDER, writes them there as GGUF
with the projections, the embedding and the head in bf16, and loads that. It then answers lines of JSON, one each:

    {"tokens": [[…], …], "fresh": true, "logits": "path"}  ->  {"seconds": …}

tokens: of each sequence, from its state on or (fresh) from the start, all in one call of `llama_decode`. logits: a file
for the last tokens' logits, [sequences, ids] fp32, in which case the time tells nothing; else null.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import xllamacpp
from numpy.typing import NDArray

SEQUENCES, TOKENS = 32, 512  # at most, in a call
CONTEXT_DEFAULTS = (512, 2048, 512, 1)  # n_ctx, n_batch, n_ubatch, n_seq_max as the library presets them

LINEAR = {"in_proj": "ssm_in", "x_proj": "ssm_x", "dt_proj": "ssm_dt", "out_proj": "ssm_out"}


class Params(ctypes.Structure):
    """llama_model_params or llama_context_params: no more than its first four numbers, and room for the rest."""

    _fields_ = [("first", ctypes.c_uint32 * 4), ("rest", ctypes.c_uint8 * 1008)]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    """A safetensors file whose tensors are all fp32."""
    data = np.memmap(path, np.uint8, "r")
    size = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + size].tobytes())
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            if entry["dtype"] != "F32":
                raise ValueError(f"{name}: F32 expected, got {entry['dtype']}")
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = data[begin:end].view(np.float32).reshape(entry["shape"])
    return tensors


def write(folder: Path) -> Path:
    """The folder's model as GGUF."""
    config, tensors = json.loads((folder / "config.json").read_text()), read(folder / "model.safetensors")
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(2**20)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(config["intermediate_size"])
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(config["time_step_rank"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in tensors.items():
        if renamed := _renamed(name):
            _add(writer, renamed, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _renamed(name: str) -> str | None:
    """transformers' name -> GGUF's; None: it is another one's, tied."""
    ends = {"backbone.embeddings.weight": "token_embd.weight", "backbone.norm_f.weight": "output_norm.weight"}
    if name == "lm_head.weight":
        return None
    if name in ends:
        return ends[name]
    _, _, layer, rest = name.split(".", 3)
    rest = rest.removeprefix("mixer.")
    plain = {"norm.weight": "attn_norm.weight", "A_log": "ssm_a", "D": "ssm_d"}
    module, _, kind = rest.partition(".")
    return f"blk.{layer}." + plain.get(rest, f"{(LINEAR | {'conv1d': 'ssm_conv1d'}).get(module)}.{kind}")


def _add(writer: gguf.GGUFWriter, name: str, tensor: NDArray[np.float32]) -> None:
    if name.endswith("ssm_a"):
        tensor = -np.exp(tensor)
    if "ssm_conv1d.weight" in name:
        tensor = tensor[:, 0]
    kind = gguf.GGMLQuantizationType.F32
    if tensor.ndim == 2 and not name.endswith(("ssm_a", "ssm_conv1d.weight")):
        kind = gguf.GGMLQuantizationType.BF16
    writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(tensor), kind), raw_dtype=kind)


class Model:
    """A loaded model and the states of its sequences. One thread."""

    def __init__(self, path: Path, ids: int) -> None:
        self.ids = ids
        library = ctypes.CDLL(os.environ.get("LLAMA_LIBRARY", xllamacpp.xllamacpp.__file__))
        self._library = library
        for name in ("llama_model_default_params", "llama_context_default_params"):
            getattr(library, name).restype = Params
        for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_get_memory"):
            getattr(library, name).restype = ctypes.c_void_p
        library.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
        self._silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        library.llama_log_set(self._silence, None)
        library.llama_backend_init()
        model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        if not model:
            raise RuntimeError("llama.cpp does not load the model that was written for it")
        params = library.llama_context_default_params()
        if tuple(params.first) != CONTEXT_DEFAULTS:
            raise RuntimeError(f"another release of llama.cpp: its context starts with {tuple(params.first)}")
        params.first[:] = (2**20, TOKENS, TOKENS, SEQUENCES)
        self._context = ctypes.c_void_p(library.llama_init_from_model(ctypes.c_void_p(model), params))
        library.llama_set_n_threads(self._context, 1, 1)
        self._memory = ctypes.c_void_p(library.llama_get_memory(self._context))
        self._lengths = [0] * SEQUENCES

    def run(self, tokens: list[list[int]], fresh: bool) -> tuple[float, list[int]]:
        """Seconds of the call, and the places of the last tokens in it."""
        if fresh:
            self._library.llama_memory_clear(self._memory, True)
            self._lengths = [0] * SEQUENCES
        rows = [(sequence, token) for sequence, row in enumerate(tokens) for token in row]
        count = len(rows)
        last = [sum(map(len, tokens[: i + 1])) - 1 for i in range(len(tokens))]
        positions = [self._lengths[i] + j for i, row in enumerate(tokens) for j in range(len(row))]
        sequences = [ctypes.pointer(ctypes.c_int32(sequence)) for sequence, _ in rows]
        batch = Batch(
            count,
            (ctypes.c_int32 * count)(*(token for _, token in rows)),
            None,
            (ctypes.c_int32 * count)(*positions),
            (ctypes.c_int32 * count)(*[1] * count),
            (ctypes.POINTER(ctypes.c_int32) * count)(*sequences),
            (ctypes.c_int8 * count)(*(int(i in last) for i in range(count))),
        )
        begun = time.perf_counter()
        code = self._library.llama_decode(self._context, batch)
        self._library.llama_synchronize(self._context)
        seconds = time.perf_counter() - begun
        if code:
            raise RuntimeError(f"llama_decode answered {code}")
        for sequence, row in enumerate(tokens):
            self._lengths[sequence] += len(row)
        return seconds, last

    def logits(self, at: int) -> NDArray[np.float32]:
        """Of the token at that place of the last call."""
        return np.ctypeslib.as_array(self._library.llama_get_logits_ith(self._context, at), (self.ids,)).copy()


def main() -> None:
    """Answer until the input ends."""
    folder = Path(sys.argv[1])
    ids = json.loads((folder / "config.json").read_text())["vocab_size"]
    model = Model(write(folder), ids)
    print(json.dumps({"system": ctypes.string_at(_system(model)).decode()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        seconds, last = model.run(asked["tokens"], asked["fresh"])
        if asked["logits"]:
            np.stack([model.logits(at) for at in last]).tofile(asked["logits"])
        print(json.dumps({"seconds": seconds}), flush=True)


def _system(model: Model) -> int:
    model._library.llama_print_system_info.restype = ctypes.c_void_p
    return int(model._library.llama_print_system_info())


if __name__ == "__main__":
    main()
