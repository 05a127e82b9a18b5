// A Coupled Mamba, a chunk of the whole model a call. Symbols as in service/models/coupled_mamba.py.
#pragma once

#include <span>
#include <vector>

#include "channels.h"
#include "packed.h"
#include "packing.h"

namespace serpentine {

struct CoupledSizes {
    int modalities, d_model, d_inner, d_state, d_conv, dt_rank, d_head, outputs;
    float eps;            // of every LayerNorm
    bool rank_one;        // the state of a layer is sigma
    bool renormalise;     // the coupling's rows, over the chains that have started
    bool dense;           // streams are mixed between layers; every row is computed
    bool maximum, mean;   // what the head reads of the pooling
    bool mean_first;
};

// All tensors are fp32 and contiguous, in the layouts of the reference model.
struct Affine {
    const float *weight, *bias;
};

struct CoupledInputTensors {
    int features, hidden;  // hidden 0: one linear map, else Linear, LayerNorm, ReLU, Linear, LayerNorm
    const float *mean, *scale;
    Affine linear, norm, second, second_norm;
};

struct CoupledLayerTensors {
    Affine norm;
    const float *in_proj, *conv_weight, *conv_bias, *x_proj;
    Affine dt_proj;
    const float *A, *D, *out_proj;
    const float* coupling;  // [modalities][modalities]
};

struct CoupledEndTensors {
    Affine norm_f, cross;  // cross is read where dense
    const float* weights;  // of the modalities, not yet over their sum
    Affine dense, out_proj;
};

// Rows of a pool of slots; see CoupledMamba.state_tensors.
struct CoupledState {
    float *conv, *ssm;
    bool* started;
    float *pool_max, *pool_sum;
    int64_t* pool_count;
};

class Coupled {
  public:
    // dtype is that of the maps and of what they multiply; the head, and all that is not a map, are fp32.
    Coupled(const CoupledSizes& sizes, Dtype dtype, const Kernels& kernels, int block_rows);
    // Once a modality, once a layer, and once: in this order.
    void add_input(const CoupledInputTensors& tensors);
    void add_layer(const CoupledLayerTensors& tensors);
    void add_ends(const CoupledEndTensors& tensors);

    // Advance every sequence by its rows, and write the head's outputs [reads, outputs]; with `alone`
    // [reads, 2 * outputs], then those of each row by itself.
    // inputs [rows, features] a modality, present [modalities, rows].
    // Throws std::invalid_argument before anything is written.
    void run(const Packing& packing, std::span<const float* const> inputs, const bool* present,
             const CoupledState& state, bool alone, float* outputs, int threads);

    size_t weight_bytes() const;

  private:
    struct Norm {
        Buffer<float> weight, bias;
    };
    struct Input {
        int features, hidden;
        Buffer<float> mean, scale;
        Packed linear, second;
        Norm norm, second_norm;
    };
    struct Layer {
        Norm norm;  // [modalities][d_model]
        Packed in_proj, x_proj, dt_proj, out_proj;
        std::vector<Channels> conv_weight, conv_bias, A, D;
        Buffer<float> coupling;
    };
    struct Block {  // the steps that are at work
        int64_t first;
        int rows;
    };
    struct Read {
        int row;
        int64_t output;
    };

    void open_block(const Packing& packing, const bool* present, Block block);
    void run_inputs(Team& team, std::span<const float* const> inputs, Block block);
    void run_layer(Team& team, size_t index, const CoupledState& state);
    void convolve(Team& team, size_t index, const CoupledState& state);
    void scan(Team& team, size_t index, const CoupledState& state);
    void mix_streams(Team& team, bool last);
    void pool(const Segment& segment, const CoupledState& state);
    void read(const float* maximum, const float* total, const int64_t* count, int row);
    void read_alone(int row);
    void run_head(Team& team, float* outputs, ptrdiff_t output_stride);
    void close_block(const CoupledState& state);

    // f(row, m) for every computed row of every modality, rows of the workspace.
    template <class F>
    void each_row(Team& team, F&& f);
    int row_of(int m, int t) const { return m * block_rows_ + t; }
    size_t work_of_a_row() const;
    Packed packed(const float* weight, const float* bias, int copies, int outputs, int inputs) const;
    CoupledSizes sizes_;
    Dtype dtype_;
    const Kernels& kernels_;
    int block_rows_;
    std::vector<Input> inputs_;
    std::vector<Layer> layers_;
    Norm norm_f_;
    Packed cross_, dense_, out_proj_;
    std::vector<float> weights_;

    PackingCheck check_packing_;
    std::vector<Segment> segments_;
    std::vector<uint8_t> present_;            // of the block, a byte a step, a bit a modality
    std::vector<std::vector<int>> rows_of_;   // computed rows, by modality
    std::vector<Read> reads_;                 // of the block, by row
    std::vector<std::vector<int>> read_rows_;  // the same rows, each once, in one list
    ptrdiff_t model_, inner_, head_;  // strides
    ptrdiff_t features_ = 0, hidden_ = 0;
    Operands values_, hidden_rows_, activation_, x_, projected_, mixed_;
    Buffer<float> e_, uz_, dt_, read_features_, head_rows_, outputs_;
};

}  // namespace serpentine
