// The threads of the arithmetic. They spin a little while between pieces of work, then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace serpentine {

constexpr int kMaxThreads = 128;

// What the threads of a job share.
struct Meeting {
    struct alignas(64) Share {
        std::atomic<int> taken{0};
    };
    int size = 1;
    Share shares[kMaxThreads];
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> phase{0};
};

// The threads that run one job together, as one of them sees it. All make the same calls in the same order.
class Team {
  public:
    Team(Meeting& meeting, int id) : meeting_(meeting), id_(id) {}
    int size() const { return meeting_.size; }

    // f(i) for every i in 0..items-1; returns when all of them are done. Each thread takes a share of neighbours, in
    // order, so that what it asks for ahead is its own, and no other's caches hold what it writes; then what is left
    // of the others'.
    template <class F>
    void each(int items, F&& f) {
        const int threads = size();
        if (threads == 1) {
            for (int i = 0; i < items; ++i) f(i);
            return;
        }
        for (int turn = 0; turn < threads; ++turn) {
            const int of = (id_ + turn) % threads, end = begin_of(of + 1, items);
            const int begin = begin_of(of, items);
            std::atomic<int>& taken = meeting_.shares[of].taken;
            if (of != id_ && begin + taken.load(std::memory_order_relaxed) >= end) continue;
            for (int i; (i = begin + taken.fetch_add(1, std::memory_order_relaxed)) < end;) f(i);
        }
        barrier();
    }

    // First of the items that are a thread's share.
    int begin_of(int thread, int items) const {
        return static_cast<int>(static_cast<int64_t>(items) * thread / size());
    }

  private:
    friend class Pool;
    void barrier();

    Meeting& meeting_;
    int id_;
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
    Meeting meeting_;
    // A count of jobs, and in the low byte how many threads the latest wants: a thread that it does not want must
    // not look at the job, which may be gone.
    alignas(64) std::atomic<uint32_t> posted_{0};
};

// Of at most `most` threads, as many as `work` multiply-adds keep busy for longer than it takes to wake them.
inline int threads_for(int most, int64_t work) {
    constexpr int64_t kWorkOfAThread = int64_t{1} << 20;
    return work < most * kWorkOfAThread ? static_cast<int>(1 + work / kWorkOfAThread) : most;
}

}  // namespace serpentine
