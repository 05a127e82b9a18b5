// Memory that is allocated once, at the start: weights and workspaces.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace serpentine {

constexpr size_t kCacheLine = 64, kHugePage = size_t{2} << 20;

class Room;

// Zeros, aligned to a cache line; on huge pages where it is large and the system allows them.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t count) : size_(count) {
        const size_t bytes = count * sizeof(T);
        const size_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine;
        const size_t rounded = (bytes / alignment + 1) * alignment;
        data_ = {static_cast<T*>(std::aligned_alloc(alignment, rounded)), Free{true}};
        if (!data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (alignment == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);  // advice: nothing to do where refused
#endif
        std::memset(data_.get(), 0, bytes);
    }
    // In the room, if there is one and it takes pieces of that size.
    Buffer(size_t count, Room* room);
    T* data() const { return data_.get(); }
    size_t size() const { return size_; }
    size_t bytes() const { return size_ * sizeof(T); }

  private:
    struct Free {
        bool owned = false;
        void operator()(T* p) const {
            if (owned) std::free(p);
        }
    };
    std::unique_ptr<T[], Free> data_;
    size_t size_ = 0;
};

// Huge pages that small pieces share. It outlives them. A step that reads all weights of a large model finds no page of
// them in the translation buffers, and the smaller the pages, the more it has to look up.
class Room {
  public:
    // Zeros; null: the piece fills pages of its own.
    void* take(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
        return nullptr;  // a piece by itself, so that what is read past its end is seen
#endif
        const size_t rounded = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
        if (rounded >= kHugePage) return nullptr;
        if (pages_.empty() || used_ + rounded > kHugePage) {
            pages_.emplace_back(kHugePage);
            used_ = 0;
        }
        used_ += rounded;
        return pages_.back().data() + (used_ - rounded);
    }

  private:
    std::vector<Buffer<std::byte>> pages_;
    size_t used_ = 0;  // of the last
};

template <class T>
Buffer<T>::Buffer(size_t count, Room* room) {
    if (void* piece = room ? room->take(count * sizeof(T)) : nullptr) {
        data_ = {static_cast<T*>(piece), Free{}};
        size_ = count;
    } else {
        *this = Buffer(count);
    }
}

}  // namespace serpentine
