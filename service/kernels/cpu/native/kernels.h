// The functions that exist once an instruction set, and what they take.
//
// Reduction orders are fixed: an output depends on its own inputs only, by the same operations in the same order,
// however many rows, sequences or steps a call has. No function allocates, throws or keeps anything.
#pragma once

#include <cstddef>
#include <cstdint>

namespace serpentine {

constexpr int kVector = 16;     // channels in a register
constexpr int kPanel = 4;       // most registers of outputs in a panel of weights
constexpr int kMaxChains = 8;   // modalities of a coupled scan
constexpr int kMaxWindow = 32;  // taps of a convolution

enum class Dtype { f32, bf16 };

// What becomes of a linear layer's result: kept, added to what is there, or through softplus or ReLU.
enum class Then { store, add, softplus, relu };

// Memory that is wanted after the work at hand: asked for meanwhile.
struct Soon {
    const float* at = nullptr;
    ptrdiff_t count = 0;
};

// Rows through one panel of weights: y[row] = then(w x[row] + bias).
struct PanelArgs {
    const void* x;            // fp32, or bf16 where the weights are
    ptrdiff_t x_stride;       // elements from row to row
    const int* rows;          // which rows; null: 0..count-1
    const int* y_rows;        // where each goes; null: as x
    int count;
    const void* w;            // [k][width][16] fp32, or [pairs of k][width][16][2] bf16
    int depth;                // k, or pairs of k
    int width;                // registers of outputs
    bool squeezed;            // w is as in squeezed.h; width is kPanel
    int outputs;              // of them that exist, at most 16 * width
    const float* bias;        // [outputs] or null
    float* y;                 // first output of the panel in row 0
    ptrdiff_t y_stride;
    uint16_t* y16;            // the same, rounded to bf16; or null
    ptrdiff_t y16_stride;
    Then then;
    Soon soon;
};

// Depthwise causal convolution of up to 16 channels over the rows of one sequence.
struct ConvArgs {
    const float* u;           // input, at the channel
    ptrdiff_t u_stride;
    int rows;
    const uint8_t* present;   // a byte a row, bit `chain`; null: all present
    int chain;
    int taps;
    const float* weight;      // [taps][16]
    const float* bias;        // [16]
    float* window;            // the slot's latest taps - 1 inputs [taps - 1, d], at the channel; mutated
    ptrdiff_t window_stride;
    const float* next;        // window that is wanted soon, laid out as this one; or null
    int channels;
    bool fresh;
    bool silu;
    float* x;                 // result; zero at absent rows
    ptrdiff_t x_stride;
    uint16_t* x16;            // the same in bf16, or null
    ptrdiff_t x16_stride;
};

// One chain's inputs of a scan, at row 0 of the sequence.
struct ChainArgs {
    const float* x;           // at the channel
    const float* dt;          // at the channel
    const float* B;
    const float* C;
    const float* A;           // [n][16], times log2(e)
    const float* D;           // [16]
    const float* z;           // gate, at the channel; null: none
    float* y;                 // at the channel; or null
    uint16_t* y16;            // the same in bf16, or null
};

struct ScanStrides {
    ptrdiff_t x, dt, BC, z, y, y16;
};

// The selective scan of up to 16 channels over the rows of one sequence.
struct SelectiveArgs {
    ChainArgs chain;
    ScanStrides stride;
    int rows;
    const uint8_t* present;   // a byte a row, bit `bit`: at the others the state stays and the result is 0; null: all
    int bit;
    int states;
    float* h;                 // the slot's state [n, d], at the channel; mutated
    ptrdiff_t h_stride;
    int channels;
    bool fresh;
    const float* next;        // state that is wanted soon, laid out as h: asked for meanwhile; or null
};

// The coupled scan of up to 16 channels over the rows of one sequence.
struct CoupledArgs {
    const ChainArgs* chains;
    ScanStrides stride;
    int count;                // chains
    const float* coupling;    // [count][count]
    bool renormalise;
    bool rank_one;            // the state is sigma, one chain
    int rows;
    const uint8_t* present;   // a byte a row, a bit a chain
    int states;
    float* h;                 // the slot's state [chains or 1][n, d], at the channel; mutated
    ptrdiff_t h_stride;       // from state to state
    ptrdiff_t h_chain;        // from chain to chain
    int channels;
    bool fresh;
    uint8_t started;          // chains that had input before the first row
};

struct Kernels {
    const char* name;
    bool squeezed;  // whether linear_bf16 takes squeezed panels
    void (*linear_f32)(const PanelArgs&);
    void (*linear_bf16)(const PanelArgs&);
    // x -> x / sqrt(mean(x^2) + eps) * weight. y or y16 may be null.
    void (*rms_norm)(const float* x, const float* weight, int d, float eps, float* y, uint16_t* y16);
    // x -> (x - mean) / sqrt(variance + eps) * weight + bias. y may be x.
    void (*layer_norm)(const float* x, const float* weight, const float* bias, int d, float eps, float* y,
                       uint16_t* y16);
    void (*round)(const float* x, int d, uint16_t* y16);
    void (*widen)(const uint16_t* x16, int d, float* x);
    void (*convolve)(const ConvArgs&);
    void (*selective)(const SelectiveArgs&);
    void (*coupled)(const CoupledArgs&);
};

// The tables of the instruction sets that this build holds; null where it does not.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512bf16_kernels();
const Kernels* amx_kernels();
const Kernels* amx_emulated_kernels();

}  // namespace serpentine
