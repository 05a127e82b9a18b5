"""The C++ module. Tensors come as addresses; service/kernels/cpu checks dtypes, layouts and shapes beforehand."""

class Packing:
    def __init__(
        self,
        rows: int,
        sequences: int,
        slots_of_pool: int,
        offsets: int,
        slots: int,
        fresh: int,
        reads: int = 0,
        read: int = 0,
    ) -> None: ...

class Mixture:
    weight_bytes: int

    def __init__(
        self,
        *,
        d_model: int,
        d_inner: int,
        d_state: int,
        d_conv: int,
        dt_rank: int,
        vocabulary: int,
        modalities: int,
        eps: float,
        embedding: int,
        norm_f: int,
        head: int,
        borders: int,
        dtype: str,
        isa: str,
        block_rows: int,
    ) -> None: ...
    def add_layer(
        self,
        *,
        norm: int,
        in_proj: int,
        conv_weight: int,
        conv_bias: int,
        x_proj: int,
        dt_proj: int,
        dt_bias: int,
        A: int,
        D: int,
        out_proj: int,
        in_copies: int,
        x_copies: int,
        dt_copies: int,
        out_copies: int,
    ) -> None: ...
    def run(self, packing: Packing, tokens: int, conv: int, ssm: int, logits: int, threads: int) -> None: ...

class Coupled:
    weight_bytes: int

    def __init__(
        self,
        *,
        modalities: int,
        d_model: int,
        d_inner: int,
        d_state: int,
        d_conv: int,
        dt_rank: int,
        d_head: int,
        outputs: int,
        eps: float,
        rank_one: bool,
        renormalise: bool,
        dense: bool,
        maximum: bool,
        mean: bool,
        mean_first: bool,
        dtype: str,
        isa: str,
        block_rows: int,
    ) -> None: ...
    def add_input(
        self,
        *,
        features: int,
        hidden: int,
        mean: int,
        scale: int,
        linear: list[int],
        norm: list[int],
        second: list[int],
        second_norm: list[int],
    ) -> None: ...
    def add_layer(
        self,
        *,
        norm: list[int],
        in_proj: int,
        conv_weight: int,
        conv_bias: int,
        x_proj: int,
        dt_proj: list[int],
        A: int,
        D: int,
        out_proj: int,
        coupling: int,
    ) -> None: ...
    def add_ends(
        self, *, norm_f: list[int], cross: list[int], weights: int, dense: list[int], out_proj: list[int]
    ) -> None: ...
    def run(self, packing: Packing, inputs: list[int], present: int, *arguments: int) -> None: ...

def instruction_sets() -> list[str]: ...

# Positional, in the order of the definitions in native/module.cpp.
def selective_scan(isa: str, packing: Packing, *arguments: int) -> None: ...
def coupled_scan(isa: str, packing: Packing, *arguments: int) -> None: ...
def causal_conv1d(isa: str, packing: Packing, *arguments: int) -> None: ...
def routed_linear(isa: str, dtype: str, *arguments: int) -> None: ...
