#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <thread>

namespace serpentine {
namespace {

constexpr int kSpins = 2000;  // about 20 microseconds

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

uint32_t wait_for_change(std::atomic<uint32_t>& word, uint32_t old) {
    for (int i = 0; i < kSpins; ++i) {
        const uint32_t now = word.load(std::memory_order_acquire);
        if (now != old) return now;
        relax();
    }
    word.wait(old, std::memory_order_acquire);
    return word.load(std::memory_order_acquire);
}

std::atomic<Pool*> pool_of_process{nullptr};
std::mutex making;

}  // namespace

void Team::barrier() {
    Meeting& m = meeting_;
    const uint32_t phase = m.phase.load(std::memory_order_relaxed);
    if (m.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < m.size) {
        wait_for_change(m.phase, phase);
        return;
    }
    m.arrived.store(0, std::memory_order_relaxed);
    for (int i = 0; i < m.size; ++i) m.shares[i].taken.store(0, std::memory_order_relaxed);
    m.phase.store(phase + 1, std::memory_order_release);
    m.phase.notify_all();
}

Pool& Pool::shared() {
    if (Pool* pool = pool_of_process.load(std::memory_order_acquire)) return *pool;
    std::lock_guard lock(making);
    if (!pool_of_process.load()) {
        static std::once_flag once;
        std::call_once(once, [] {
            pthread_atfork([] { making.lock(); }, [] { making.unlock(); },
                           [] {
                               pool_of_process.store(nullptr);
                               making.unlock();
                           });
        });
        // Never destroyed: its threads may still sleep in it when the process ends.
        pool_of_process.store(new Pool(), std::memory_order_release);
    }
    return *pool_of_process.load();
}

void Pool::start(int threads, Call call, void* body) {
    threads = std::clamp(threads, 1, kMaxThreads);
    std::lock_guard lock(mutex_);
    meeting_.size = threads;
    Team team(meeting_, 0);
    if (threads == 1) return call(body, team);
    for (; workers_ + 1 < threads; ++workers_) std::thread(&Pool::work, this, workers_ + 1).detach();
    call_ = call, body_ = body;
    const uint32_t jobs = (posted_.load(std::memory_order_relaxed) >> 8) + 1;
    posted_.store(jobs << 8 | static_cast<uint32_t>(threads), std::memory_order_release);
    posted_.notify_all();
    call(body, team);
    team.barrier();  // everyone has left the body
}

void Pool::work(int id) {
    uint32_t seen = 0;
    for (;;) {
        seen = wait_for_change(posted_, seen);
        if (id >= static_cast<int>(seen & 0xff)) continue;
        Team team(meeting_, id);
        call_(body_, team);
        team.barrier();
    }
}

}  // namespace serpentine
