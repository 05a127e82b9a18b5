// A Mixture-of-Mamba, a step of the whole model a call. Symbols as in service/models/mixture_of_mamba.py.
#pragma once

#include <vector>

#include "channels.h"
#include "packed.h"
#include "packing.h"

namespace serpentine {

struct MixtureSizes {
    int d_model, d_inner, d_state, d_conv, dt_rank, vocabulary, modalities;
    float eps;
};

// One block's tensors, fp32 and contiguous, in the layouts of the reference model; copies: 1 or M of each projection.
struct MixtureLayerTensors {
    const float *norm, *in_proj, *conv_weight, *conv_bias, *x_proj, *dt_proj, *dt_bias, *A, *D, *out_proj;
    int in_copies, x_copies, dt_copies, out_copies;
};

class Mixture {
  public:
    // borders [modalities - 1]: first id of each modality but the first. head null: tied to the embedding.
    Mixture(const MixtureSizes& sizes, const float* embedding, const float* norm_f, const float* head,
            const int64_t* borders, Dtype dtype, const Kernels& kernels, int block_rows);
    void add_layer(const MixtureLayerTensors& tensors);

    // Advance every sequence by its tokens [rows], from and into its slot, and write logits [reads, vocabulary].
    // conv [slots, layers, 1, d_conv - 1, d_inner], ssm [slots, layers, d_state, d_inner]: mutated.
    // Throws std::invalid_argument before anything is written.
    void run(const Packing& packing, const int64_t* tokens, float* conv, float* ssm, float* logits, int threads);

    size_t weight_bytes() const;

  private:
    struct Layer {
        Buffer<float> norm;
        Packed in_proj, x_proj, dt_proj, out_proj;
        Channels conv_weight, conv_bias, A, D;
    };
    struct Block {  // the rows that are at work
        int64_t first;
        int rows;
    };

    void check(const Packing& packing, const int64_t* tokens);
    void open_block(const Packing& packing, const int64_t* tokens, Block block, float* ssm);
    void run_block(Team& team, const Packing& packing, const int64_t* tokens, Block block, float* conv, float* ssm,
                   float* logits);
    void run_layer(Team& team, size_t index, int rows, float* conv, float* ssm);
    // The scan of channels begin..end-1 of a layer over one segment.
    void scan(size_t index, int segment, int begin, int end, float* ssm);
    void embed(int64_t token, float* e) const;
    void norm(const float* e, const float* weight, ptrdiff_t row);
    Routes routes(const Packed& weight) const;
    // Rows of `activation_`, of the current layer input, in the weights' dtype.
    Rows activation() const;
    int64_t work_of_a_row() const;

    MixtureSizes sizes_;
    Dtype dtype_;
    const Kernels& kernels_;
    int block_rows_;
    std::vector<int64_t> borders_;
    Room room_;
    Buffer<float> embedding_, norm_f_;
    Buffer<uint16_t> embedding16_;
    Packed head_;
    std::vector<Layer> layers_;

    PackingCheck check_packing_;
    std::vector<Segment> segments_;
    std::vector<const float*> states_;        // of the segments' slots, of the first layer
    std::vector<std::vector<int>> rows_of_;  // of the block, by modality
    std::vector<std::vector<int>> all_rows_;  // of the block, in one list
    struct Read {
        int row;
        int64_t output;
    };
    std::vector<Read> reads_;
    int64_t reads_until_ = 0;  // of the caller's reads, those that `reads_` has taken account of
    std::vector<int> read_rows_;
    ptrdiff_t model_stride_, inner_stride_, projected_stride_, activation_stride_;
    Buffer<float> e_, uz_, x_, projected_, dt_, activation_;
    Buffer<uint16_t> x16_, projected16_, activation16_;
};

}  // namespace serpentine
