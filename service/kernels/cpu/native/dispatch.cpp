#include "dispatch.h"

#include <stdexcept>

#if defined(SERPENTINE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace serpentine {
namespace {

#if defined(SERPENTINE_AMX)
// Whether the processor has tiles for bf16 and the system lets this process use them, which it has to be asked.
bool asked_for_tiles() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;  // in edx
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kBf16) || !(d & kTile)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// __builtin_cpu_supports asks the processor, and the operating system whether it keeps the registers.
std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found = {portable_kernels()};
#if defined(SERPENTINE_X86)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return found;
#if defined(SERPENTINE_AMX)
    found.insert(found.begin(), amx_emulated_kernels());
#endif
    found.push_back(avx2_kernels());
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return found;
    found.push_back(avx512_kernels());
    if (!__builtin_cpu_supports("avx512bf16")) return found;
    found.push_back(avx512bf16_kernels());
#if defined(SERPENTINE_AMX)
    static const bool tiles = asked_for_tiles();
    if (tiles) found.push_back(amx_kernels());
#endif
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
