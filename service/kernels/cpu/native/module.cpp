// The Python module. Tensors come as addresses: the Python side has checked dtype, layout and shape, and holds them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>

#include "coupled.h"
#include "dispatch.h"
#include "mixture.h"
#include "ops.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace serpentine {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

Dtype dtype_named(const std::string& name) {
    if (name == "float32") return Dtype::f32;
    if (name == "bfloat16") return Dtype::bf16;
    throw std::invalid_argument("dtype: float32 or bfloat16, got " + name);
}

struct PyPacking {
    Packing packing;
    PyPacking(int64_t rows, int64_t sequences, int64_t slots_of_pool, Address offsets, Address slots, Address fresh,
              int64_t reads, Address read)
        : packing{rows, sequences, slots_of_pool, reads, at<int64_t>(offsets), at<int64_t>(slots), at<bool>(fresh),
                  at<int64_t>(read)} {}
};

void bind_ops(nb::module_& m) {
    nb::class_<PyPacking>(m, "Packing")
        .def(nb::init<int64_t, int64_t, int64_t, Address, Address, Address, int64_t, Address>(), "rows"_a,
             "sequences"_a, "slots_of_pool"_a, "offsets"_a, "slots"_a, "fresh"_a, "reads"_a = 0, "read"_a = 0);

    m.def(
        "selective_scan",
        [](const std::string& isa, const PyPacking& p, Address x, Address dt, Address A, Address B, Address C,
           Address D, Address y, int d, int n, Address state, int64_t stride, int threads) {
            const ScanTensors tensors{at<float>(x), at<float>(dt), at<float>(A), at<float>(B), at<float>(C),
                                      at<float>(D), at<float>(y), 1, d, n};
            selective_scan(kernels_named(isa), p.packing, tensors, {at<float>(state), stride}, threads);
        },
        "isa"_a, "packing"_a, "x"_a, "dt"_a, "A"_a, "B"_a, "C"_a, "D"_a, "y"_a, "d"_a, "n"_a, "state"_a,
        "state_stride"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());

    m.def(
        "coupled_scan",
        [](const std::string& isa, const PyPacking& p, Address x, Address dt, Address A, Address B, Address C,
           Address D, Address y, int chains, int d, int n, Address coupling, bool renormalise, bool rank_one,
           Address present, Address state, int64_t state_stride, Address started, int64_t started_stride,
           int threads) {
            const ScanTensors tensors{at<float>(x), at<float>(dt), at<float>(A), at<float>(B), at<float>(C),
                                      at<float>(D), at<float>(y), chains, d, n};
            coupled_scan(kernels_named(isa), p.packing, tensors, {at<float>(coupling), renormalise, rank_one},
                         at<bool>(present), {at<float>(state), state_stride}, {at<bool>(started), started_stride},
                         threads);
        },
        "isa"_a, "packing"_a, "x"_a, "dt"_a, "A"_a, "B"_a, "C"_a, "D"_a, "y"_a, "chains"_a, "d"_a, "n"_a,
        "coupling"_a, "renormalise"_a, "rank_one"_a, "present"_a, "state"_a, "state_stride"_a, "started"_a,
        "started_stride"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());

    m.def(
        "causal_conv1d",
        [](const std::string& isa, const PyPacking& p, Address x, Address weight, Address bias, Address y, int chains,
           int d, int taps, Address present, Address state, int64_t stride, int threads) {
            const ConvTensors tensors{at<float>(x), at<float>(weight), at<float>(bias), at<float>(y), chains, d, taps};
            causal_conv1d(kernels_named(isa), p.packing, tensors, at<bool>(present), {at<float>(state), stride},
                          threads);
        },
        "isa"_a, "packing"_a, "x"_a, "weight"_a, "bias"_a, "y"_a, "chains"_a, "d"_a, "taps"_a, "present"_a, "state"_a,
        "state_stride"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());

    m.def(
        "routed_linear",
        [](const std::string& isa, const std::string& dtype, Address x, Address weight, Address bias, Address route,
           Address y, int rows, int copies, int outputs, int inputs, int threads) {
            const LinearTensors tensors{at<float>(x), at<float>(weight), at<float>(bias), at<int64_t>(route),
                                        at<float>(y), rows, copies, outputs, inputs};
            routed_linear(kernels_named(isa), tensors, dtype_named(dtype), threads);
        },
        "isa"_a, "dtype"_a, "x"_a, "weight"_a, "bias"_a, "route"_a, "y"_a, "rows"_a, "copies"_a, "outputs"_a,
        "inputs"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
}

void bind_mixture(nb::module_& m) {
    nb::class_<Mixture>(m, "Mixture")
        .def(
            "__init__",
            [](Mixture* self, int d_model, int d_inner, int d_state, int d_conv, int dt_rank, int vocabulary,
               int modalities, float eps, Address embedding, Address norm_f, Address head, Address borders,
               const std::string& dtype, const std::string& isa, int block_rows) {
                new (self) Mixture({d_model, d_inner, d_state, d_conv, dt_rank, vocabulary, modalities, eps},
                                   at<float>(embedding), at<float>(norm_f), at<float>(head), at<int64_t>(borders),
                                   dtype_named(dtype), kernels_named(isa), block_rows);
            },
            "d_model"_a, "d_inner"_a, "d_state"_a, "d_conv"_a, "dt_rank"_a, "vocabulary"_a, "modalities"_a, "eps"_a,
            "embedding"_a, "norm_f"_a, "head"_a, "borders"_a, "dtype"_a, "isa"_a, "block_rows"_a)
        .def(
            "add_layer",
            [](Mixture& self, Address norm, Address in_proj, Address conv_weight, Address conv_bias, Address x_proj,
               Address dt_proj, Address dt_bias, Address A, Address D, Address out_proj, int in_copies, int x_copies,
               int dt_copies, int out_copies) {
                self.add_layer({at<float>(norm), at<float>(in_proj), at<float>(conv_weight), at<float>(conv_bias),
                                at<float>(x_proj), at<float>(dt_proj), at<float>(dt_bias), at<float>(A), at<float>(D),
                                at<float>(out_proj), in_copies, x_copies, dt_copies, out_copies});
            },
            "norm"_a, "in_proj"_a, "conv_weight"_a, "conv_bias"_a, "x_proj"_a, "dt_proj"_a, "dt_bias"_a, "A"_a, "D"_a,
            "out_proj"_a, "in_copies"_a, "x_copies"_a, "dt_copies"_a, "out_copies"_a)
        .def(
            "run",
            [](Mixture& self, const PyPacking& p, Address tokens, Address conv, Address ssm, Address logits,
               int threads) {
                self.run(p.packing, at<int64_t>(tokens), at<float>(conv), at<float>(ssm), at<float>(logits), threads);
            },
            "packing"_a, "tokens"_a, "conv"_a, "ssm"_a, "logits"_a, "threads"_a,
            nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("weight_bytes", &Mixture::weight_bytes);
}

using Addresses = std::vector<Address>;

Affine affine(const Addresses& pair) { return {at<float>(pair[0]), at<float>(pair[1])}; }

void bind_coupled(nb::module_& m) {
    nb::class_<Coupled>(m, "Coupled")
        .def(
            "__init__",
            [](Coupled* self, int modalities, int d_model, int d_inner, int d_state, int d_conv, int dt_rank,
               int d_head, int outputs, float eps, bool rank_one, bool renormalise, bool dense, bool maximum, bool mean,
               bool mean_first, const std::string& dtype, const std::string& isa, int block_rows) {
                new (self) Coupled({modalities, d_model, d_inner, d_state, d_conv, dt_rank, d_head, outputs, eps,
                                    rank_one, renormalise, dense, maximum, mean, mean_first},
                                   dtype_named(dtype), kernels_named(isa), block_rows);
            },
            "modalities"_a, "d_model"_a, "d_inner"_a, "d_state"_a, "d_conv"_a, "dt_rank"_a, "d_head"_a, "outputs"_a,
            "eps"_a, "rank_one"_a, "renormalise"_a, "dense"_a, "maximum"_a, "mean"_a, "mean_first"_a, "dtype"_a,
            "isa"_a, "block_rows"_a)
        .def(
            "add_input",
            [](Coupled& self, int features, int hidden, Address mean, Address scale, const Addresses& linear,
               const Addresses& norm, const Addresses& second, const Addresses& second_norm) {
                self.add_input({features, hidden, at<float>(mean), at<float>(scale), affine(linear), affine(norm),
                                affine(second), affine(second_norm)});
            },
            "features"_a, "hidden"_a, "mean"_a, "scale"_a, "linear"_a, "norm"_a, "second"_a, "second_norm"_a)
        .def(
            "add_layer",
            [](Coupled& self, const Addresses& norm, Address in_proj, Address conv_weight, Address conv_bias,
               Address x_proj, const Addresses& dt_proj, Address A, Address D, Address out_proj, Address coupling) {
                self.add_layer({affine(norm), at<float>(in_proj), at<float>(conv_weight), at<float>(conv_bias),
                                at<float>(x_proj), affine(dt_proj), at<float>(A), at<float>(D), at<float>(out_proj),
                                at<float>(coupling)});
            },
            "norm"_a, "in_proj"_a, "conv_weight"_a, "conv_bias"_a, "x_proj"_a, "dt_proj"_a, "A"_a, "D"_a, "out_proj"_a,
            "coupling"_a)
        .def(
            "add_ends",
            [](Coupled& self, const Addresses& norm_f, const Addresses& cross, Address weights, const Addresses& dense,
               const Addresses& out_proj) {
                self.add_ends({affine(norm_f), affine(cross), at<float>(weights), affine(dense), affine(out_proj)});
            },
            "norm_f"_a, "cross"_a, "weights"_a, "dense"_a, "out_proj"_a)
        .def(
            "run",
            [](Coupled& self, const PyPacking& p, const nb::list& inputs, Address present, Address conv, Address ssm,
               Address started, Address pool_max, Address pool_sum, Address pool_count, bool alone, Address outputs,
               int threads) {
                std::array<const float*, kMaxChains> values{};  // no vector: a step allocates nothing
                size_t count = 0;
                for (const nb::handle input : inputs) values.at(count++) = at<float>(nb::cast<Address>(input));
                const CoupledState state{at<float>(conv),     at<float>(ssm),      at<bool>(started),
                                         at<float>(pool_max), at<float>(pool_sum), at<int64_t>(pool_count)};
                const nb::gil_scoped_release release;
                self.run(p.packing, {values.data(), count}, at<bool>(present), state, alone, at<float>(outputs),
                         threads);
            },
            "packing"_a, "inputs"_a, "present"_a, "conv"_a, "ssm"_a, "started"_a, "pool_max"_a, "pool_sum"_a,
            "pool_count"_a, "alone"_a, "outputs"_a, "threads"_a)
        .def_prop_ro("weight_bytes", &Coupled::weight_bytes);
}

}  // namespace
}  // namespace serpentine

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // what the interpreter still holds at its end is no leak of ours
    m.def("instruction_sets", &serpentine::instruction_sets);
    serpentine::bind_ops(m);
    serpentine::bind_mixture(m);
    serpentine::bind_coupled(m);
}
