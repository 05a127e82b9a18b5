// The threads of the arithmetic. They spin a little while between pieces of work, then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace serpentine {

// The threads that run one job together. Every thread of the team makes the same calls in the same order.
class Team {
  public:
    int size() const { return size_; }

    // f(i) for every i in 0..items-1, `grain` neighbours at a time by whichever thread is free; returns when all of
    // them are done.
    template <class F>
    void each(int items, F&& f, int grain = 1) {
        if (size_ == 1) {
            for (int i = 0; i < items; ++i) f(i);
            return;
        }
        for (int begin; (begin = next_.fetch_add(grain, std::memory_order_relaxed)) < items;)
            for (int i = begin; i < begin + grain && i < items; ++i) f(i);
        barrier();
    }

  private:
    friend class Pool;
    void barrier();

    int size_ = 1;
    alignas(64) std::atomic<int> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

class Pool {
  public:
    // The process's pool. A forked child gets a new one: threads do not survive a fork.
    static Pool& shared();

    // body(team) on `threads` threads, the caller among them; one job at a time. `body` must not throw.
    template <class F>
    void run(int threads, F&& body) {
        start(threads, [](void* f, Team& team) { (*static_cast<F*>(f))(team); }, &body);
    }

  private:
    using Call = void (*)(void*, Team&);
    void start(int threads, Call call, void* body);
    void work(int id);

    std::mutex mutex_;
    int workers_ = 0;
    Call call_ = nullptr;
    void* body_ = nullptr;
    Team team_;
    // A count of jobs, and in the low byte how many threads the latest wants: a thread that it does not want must
    // not look at the job, which may be gone.
    alignas(64) std::atomic<uint32_t> posted_{0};
};

constexpr int kMaxThreads = 128;

// Of at most `most` threads, as many as `work` multiply-adds keep busy for longer than it takes to wake them.
inline int threads_for(int most, int64_t work) {
    constexpr int64_t kWorkOfAThread = int64_t{1} << 20;
    return work < most * kWorkOfAThread ? static_cast<int>(1 + work / kWorkOfAThread) : most;
}

}  // namespace serpentine
