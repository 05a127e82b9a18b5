// Memory that is allocated once, at the start: weights and workspaces.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace serpentine {

// Zeros, aligned to a cache line; on huge pages where it is large and the system allows them.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t count) : size_(count) {
        const size_t bytes = count * sizeof(T);
        const size_t alignment = bytes >= kHuge ? kHuge : kLine;
        const size_t rounded = (bytes / alignment + 1) * alignment;
        data_.reset(static_cast<T*>(std::aligned_alloc(alignment, rounded)));
        if (!data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (alignment == kHuge) madvise(data_.get(), rounded, MADV_HUGEPAGE);  // advice: nothing to do where refused
#endif
        std::memset(data_.get(), 0, bytes);
    }
    T* data() const { return data_.get(); }
    size_t size() const { return size_; }
    size_t bytes() const { return size_ * sizeof(T); }

  private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    static constexpr size_t kLine = 64, kHuge = size_t{2} << 20;
    std::unique_ptr<T[], Free> data_;
    size_t size_ = 0;
};

}  // namespace serpentine
