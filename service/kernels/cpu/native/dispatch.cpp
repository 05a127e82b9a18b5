#include "dispatch.h"

#include <stdexcept>

namespace serpentine {
namespace {

// __builtin_cpu_supports asks the processor, and the operating system whether it keeps the registers.
std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found = {portable_kernels()};
#if defined(SERPENTINE_X86)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return found;
    found.push_back(avx2_kernels());
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return found;
    found.push_back(avx512_kernels());
    if (__builtin_cpu_supports("avx512bf16")) found.push_back(avx512bf16_kernels());
#endif
    return found;
}

}  // namespace

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* kernels : available()) names.emplace_back(kernels->name);
    return names;
}

const Kernels& kernels_named(const std::string& name) {
    std::string known;
    for (const Kernels* kernels : available()) {
        if (name == kernels->name) return *kernels;
        known += (known.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("instruction set " + name + ": this processor and build have " + known);
}

}  // namespace serpentine
