// The recurrent ops by themselves, on the caller's fp32 tensors. Contracts: the reference of each under service/kernels.
// They throw std::invalid_argument for a packing that does not hold; shapes are the caller's to check.
#pragma once

#include <vector>

#include "kernels.h"
#include "packing.h"

namespace serpentine {

// A pool of state: row of slot s begins at data + s * stride.
template <class T>
struct PoolOf {
    T* data;
    ptrdiff_t stride;
};

struct ScanTensors {
    const float *x, *dt, *A, *B, *C, *D;
    float* y;
    int chains, d, n;
};

void selective_scan(const Kernels& kernels, const Packing& packing, const ScanTensors& tensors, PoolOf<float> state,
                    int threads);

struct Coupling {
    const float* weights;  // [chains][chains]
    bool renormalise, rank_one;
};

// present [chains][rows] or null; started: rows of `chains`.
void coupled_scan(const Kernels& kernels, const Packing& packing, const ScanTensors& tensors, const Coupling& coupling,
                  const bool* present, PoolOf<float> state, PoolOf<bool> started, int threads);

struct ConvTensors {
    const float *x, *weight, *bias;
    float* y;
    int chains, d, taps;
};

void causal_conv1d(const Kernels& kernels, const Packing& packing, const ConvTensors& tensors, const bool* present,
                   PoolOf<float> state, int threads);

struct LinearTensors {
    const float *x, *weight, *bias;  // bias may be null
    const int64_t* route;
    float* y;
    int rows, copies, outputs, inputs;
};

void routed_linear(const Kernels& kernels, const LinearTensors& tensors, Dtype dtype, int threads);

// A byte a row of present [chains][rows], a bit a chain; null: all chains.
std::vector<uint8_t> presence_bits(const bool* present, int chains, int64_t rows);

}  // namespace serpentine
