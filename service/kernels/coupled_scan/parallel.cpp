// The time loop of parallel.py in fp32 on a CPU, forward and backward: the same arithmetic, one pass over a step's
// [m, n, d] while it lies in a register, where PyTorch makes some thirty passes. Built when a training run starts.

#include <torch/extension.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

struct Sizes {
    int64_t length, count, m, n, d, q;  // q: chains of the state, 1 under rank one
};

// r = sum_i weights[i] h[i, n], or scale * sigma[n] under rank one.
void mix(const Sizes& s, bool rank_one, const float* weights, int64_t m, const float* h, int64_t n, float* r) {
    const int64_t nd = s.n * s.d;
    if (rank_one) {
        float scale = *std::max_element(weights + m * s.m, weights + (m + 1) * s.m);
        for (int64_t k = 0; k < s.d; ++k) r[k] = scale * h[n * s.d + k];
        return;
    }
    for (int64_t k = 0; k < s.d; ++k) r[k] = weights[m * s.m] * h[n * s.d + k];
    for (int64_t i = 1; i < s.m; ++i) {
        const float w = weights[m * s.m + i];
        for (int64_t k = 0; k < s.d; ++k) r[k] += w * h[i * nd + n * s.d + k];
    }
}

// One state row of a step: out += h, y += c h, where h = exp(dt a) r + b dt x. All [d].
void step_row(int64_t d, const float* __restrict dt, const float* __restrict x, const float* __restrict a,
              const float* __restrict r, float b, float c, float* __restrict y, float* __restrict out) {
#pragma omp simd
    for (int64_t k = 0; k < d; ++k) {
        const float h = std::exp(dt[k] * a[k]) * r[k] + b * dt[k] * x[k];
        y[k] += c * h;
        out[k] += h;
    }
}

struct RowGrads {
    float b, c;
};

// The gradients of step_row, given those of h from later steps (gh) and of y: accumulates into gdtx, gdt and ga,
// writes that of r.
RowGrads step_row_backward(int64_t d, const float* __restrict dt, const float* __restrict x,
                           const float* __restrict a, const float* __restrict r, const float* __restrict gh,
                           const float* __restrict gy, float b, float c, float* __restrict gdtx,
                           float* __restrict gdt, float* __restrict ga, float* __restrict gr) {
    float sum_b = 0.f, sum_c = 0.f;
#pragma omp simd reduction(+ : sum_b, sum_c)
    for (int64_t k = 0; k < d; ++k) {
        const float decay = std::exp(dt[k] * a[k]), kept = decay * r[k], u = dt[k] * x[k];
        const float g = gh[k] + c * gy[k], exponent = g * kept;
        sum_c += (kept + b * u) * gy[k];
        sum_b += g * u;
        gdtx[k] += b * g;
        gr[k] = g * decay;
        gdt[k] += exponent * a[k];
        ga[k] += exponent * dt[k];
    }
    return {sum_b, sum_c};
}

Sizes sizes_of(const torch::Tensor& x, const torch::Tensor& A, bool rank_one) {
    return {x.size(0), x.size(1), x.size(2), A.size(1), x.size(3), rank_one ? 1 : x.size(2)};
}

}  // namespace

// x, dt [l, b, m, d], A [m, n, d], B, C [l, b, m, n], weights [l, b, m, m], all contiguous fp32
// -> y [l, b, m, d], the state before each step [l, b, q, n, d]
std::vector<torch::Tensor> forward(torch::Tensor x, torch::Tensor dt, torch::Tensor A, torch::Tensor B,
                                   torch::Tensor C, torch::Tensor weights, bool rank_one) {
    const Sizes s = sizes_of(x, A, rank_one);
    auto y = torch::zeros_like(x);
    auto earlier = torch::empty({s.length, s.count, s.q, s.n, s.d}, x.options());
    const float *px = x.data_ptr<float>(), *pdt = dt.data_ptr<float>(), *pA = A.data_ptr<float>();
    const float *pB = B.data_ptr<float>(), *pC = C.data_ptr<float>(), *pW = weights.data_ptr<float>();
    float *py = y.data_ptr<float>(), *pe = earlier.data_ptr<float>();
    at::parallel_for(0, s.count, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> state(s.q * s.n * s.d), next(s.q * s.n * s.d), r(s.d);
        for (int64_t b = begin; b < end; ++b) {
            std::fill(state.begin(), state.end(), 0.f);
            for (int64_t t = 0; t < s.length; ++t) {
                const int64_t row = t * s.count + b;
                std::copy(state.begin(), state.end(), pe + row * s.q * s.n * s.d);
                std::fill(next.begin(), next.end(), 0.f);
                for (int64_t m = 0; m < s.m; ++m) {
                    const float *xr = px + (row * s.m + m) * s.d, *dtr = pdt + (row * s.m + m) * s.d;
                    float* yr = py + (row * s.m + m) * s.d;
                    for (int64_t n = 0; n < s.n; ++n) {
                        mix(s, rank_one, pW + row * s.m * s.m, m, state.data(), n, r.data());
                        const float bn = pB[(row * s.m + m) * s.n + n], cn = pC[(row * s.m + m) * s.n + n];
                        float* out = next.data() + ((rank_one ? 0 : m) * s.n + n) * s.d;
                        step_row(s.d, dtr, xr, pA + (m * s.n + n) * s.d, r.data(), bn, cn, yr, out);
                    }
                }
                state.swap(next);
            }
        }
    });
    return {y, earlier};
}

// -> gradients of x, dt, A, B, C, weights; that of weights is zeros under rank one, where they are constants
std::vector<torch::Tensor> backward(torch::Tensor grad_y, torch::Tensor x, torch::Tensor dt, torch::Tensor A,
                                    torch::Tensor B, torch::Tensor C, torch::Tensor weights, torch::Tensor earlier,
                                    bool rank_one) {
    const Sizes s = sizes_of(x, A, rank_one);
    const int64_t nd = s.n * s.d;
    auto gx = torch::zeros_like(x), gdt = torch::zeros_like(x), gB = torch::empty_like(B), gC = torch::empty_like(C);
    auto gW = torch::zeros_like(weights);
    auto gA = torch::zeros({s.count, s.m, s.n, s.d}, x.options());  // summed over b last, so that threads do not meet
    const float *px = x.data_ptr<float>(), *pdt = dt.data_ptr<float>(), *pA = A.data_ptr<float>();
    const float *pB = B.data_ptr<float>(), *pC = C.data_ptr<float>(), *pW = weights.data_ptr<float>();
    const float *pe = earlier.data_ptr<float>(), *pgy = grad_y.data_ptr<float>();
    float *pgx = gx.data_ptr<float>(), *pgdt = gdt.data_ptr<float>(), *pgA = gA.data_ptr<float>();
    float *pgB = gB.data_ptr<float>(), *pgC = gC.data_ptr<float>(), *pgW = gW.data_ptr<float>();
    at::parallel_for(0, s.count, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> gh(s.q * nd), before(s.q * nd), r(s.d), gmixed(s.d), gdtx(s.d);
        for (int64_t b = begin; b < end; ++b) {
            std::fill(gh.begin(), gh.end(), 0.f);
            for (int64_t t = s.length - 1; t >= 0; --t) {
                const int64_t row = t * s.count + b;
                const float *W = pW + row * s.m * s.m, *h = pe + row * s.q * nd;
                std::fill(before.begin(), before.end(), 0.f);
                for (int64_t m = 0; m < s.m; ++m) {
                    const int64_t at = row * s.m + m;
                    const float *xr = px + at * s.d, *dtr = pdt + at * s.d, *gy = pgy + at * s.d;
                    float *gdtr = pgdt + at * s.d, *gxr = pgx + at * s.d;
                    std::fill(gdtx.begin(), gdtx.end(), 0.f);
                    for (int64_t n = 0; n < s.n; ++n) {
                        mix(s, rank_one, W, m, h, n, r.data());
                        const float bn = pB[at * s.n + n], cn = pC[at * s.n + n];
                        const float* a = pA + (m * s.n + n) * s.d;
                        const float* ghr = gh.data() + ((rank_one ? 0 : m) * s.n + n) * s.d;
                        float *ga = pgA + ((b * s.m + m) * s.n + n) * s.d, *gm = gmixed.data();
                        const RowGrads grads = step_row_backward(s.d, dtr, xr, a, r.data(), ghr, gy, bn, cn,
                                                                 gdtx.data(), gdtr, ga, gm);
                        pgB[at * s.n + n] = grads.b;
                        pgC[at * s.n + n] = grads.c;
                        if (rank_one) {
                            const float scale = *std::max_element(W + m * s.m, W + (m + 1) * s.m);
                            for (int64_t k = 0; k < s.d; ++k) before[n * s.d + k] += scale * gm[k];
                            continue;
                        }
                        for (int64_t i = 0; i < s.m; ++i) {
                            const float w = W[m * s.m + i], *hi = h + i * nd + n * s.d;
                            float *out = before.data() + i * nd + n * s.d, sum = 0.f;
#pragma omp simd reduction(+ : sum)
                            for (int64_t k = 0; k < s.d; ++k) {
                                out[k] += w * gm[k];
                                sum += gm[k] * hi[k];
                            }
                            pgW[row * s.m * s.m + m * s.m + i] += sum;
                        }
                    }
                    for (int64_t k = 0; k < s.d; ++k) {
                        gxr[k] = gdtx[k] * dtr[k];
                        gdtr[k] += gdtx[k] * xr[k];
                    }
                }
                gh.swap(before);
            }
        }
    });
    return {gx, gdt, gA.sum(0), gB, gC, gW};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
    module.def("forward", &forward);
    module.def("backward", &backward);
}
