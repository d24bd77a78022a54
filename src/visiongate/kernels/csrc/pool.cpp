#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace visiongate {
namespace {

constexpr int kMaxThreads = 256;
constexpr auto kSpin = std::chrono::microseconds(60);  // then an idle worker sleeps
constexpr int kClosed = 1 << 20;                       // flag in Pool::gate

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

struct alignas(64) Run {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

// One job at a time. A worker that is not awake yet when the caller has done everything is not
// waited for: the caller closes the gate, and who comes late goes back to waiting.
//
//     gate = number of workers inside + kClosed while no job is open
class Pool {
 public:
  void run(int64_t num_items, void (*body)(void*, int64_t), void* context) {
    const int count = num_threads_;
    if (count == 1 || num_items == 1 || !caller_.try_lock()) {
      for (int64_t item = 0; item < num_items; ++item) body(context, item);
      return;
    }
    start_workers(count);
    body_ = body;
    context_ = context;
    num_runs_ = count;
    for (int t = 0; t < count; ++t) {
      runs_[t].next.store(num_items * t / count, std::memory_order_relaxed);
      runs_[t].end = num_items * (t + 1) / count;
    }
    gate_.fetch_and(~kClosed);
    epoch_.fetch_add(1);
    if (num_sleeping_.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
    work(0);
    gate_.fetch_or(kClosed);
    for (int turns = 0; gate_.load() != kClosed; ++turns) {
      pause_cpu();
      if (turns > 4000) sched_yield();
    }
    caller_.unlock();
  }

  void set_num_threads(int count) {
    std::lock_guard<std::mutex> lock(caller_);
    num_threads_ = count < 1 ? 1 : count > kMaxThreads ? kMaxThreads : count;
  }

  int num_threads() const { return num_threads_; }

 private:
  void start_workers(int count) {
    for (; num_started_ < count; ++num_started_)
      std::thread(&Pool::serve, this, num_started_).detach();
  }

  void work(int thread) {
    const int count = num_runs_;
    for (int step = 0; step < count; ++step) {
      Run& run = runs_[(thread + step) % count];
      for (;;) {
        const int64_t item = run.next.fetch_add(1, std::memory_order_relaxed);
        if (item >= run.end) break;
        body_(context_, item);
      }
    }
  }

  void serve(int thread) {
    uint64_t seen = 0;
    for (;;) {
      seen = wait_for_job(seen);
      if (!(gate_.fetch_add(1) & kClosed) && thread < num_runs_) work(thread);
      gate_.fetch_sub(1);
    }
  }

  uint64_t wait_for_job(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 64; ++i) {
        const uint64_t now = epoch_.load();
        if (now != seen) return now;
        pause_cpu();
      }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> lock(sleep_);
    num_sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return epoch_.load() != seen; });
    num_sleeping_.fetch_sub(1);
    return epoch_.load();
  }

  std::mutex caller_;
  int num_threads_ = 1;
  int num_started_ = 1;  // thread 0 is the caller
  int num_runs_ = 0;
  void (*body_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  Run runs_[kMaxThreads];
  alignas(64) std::atomic<int> gate_{kClosed};
  alignas(64) std::atomic<uint64_t> epoch_{0};
  std::atomic<int> num_sleeping_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
};

Pool* the_pool = nullptr;

// A forked child has none of the threads: it starts anew (the parent's pool is left where it is).
void forget_threads() {
  const int count = the_pool->num_threads();
  the_pool = new Pool;
  the_pool->set_num_threads(count);
}

Pool& pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    the_pool = new Pool;
    pthread_atfork(nullptr, nullptr, forget_threads);
  });
  return *the_pool;
}

struct Scratch {
  void* memory[kNumScratchSlots] = {};
  size_t sizes[kNumScratchSlots] = {};
  ~Scratch() {
    for (void* block : memory) free(block);
  }
};

}  // namespace

void parallel_for(int64_t num_items, void (*body)(void*, int64_t), void* context) {
  pool().run(num_items, body, context);
}

void set_num_threads(int count) { pool().set_num_threads(count); }
int num_threads() { return pool().num_threads(); }

void* scratch(ScratchSlot slot, size_t num_bytes) {
  thread_local Scratch mine;
  if (mine.sizes[slot] < num_bytes) {
    free(mine.memory[slot]);
    const size_t size = (num_bytes + 63) / 64 * 64;
    mine.memory[slot] = aligned_alloc(64, size);
    if (mine.memory[slot] == nullptr) abort();
    mine.sizes[slot] = size;
  }
  return mine.memory[slot];
}

}  // namespace visiongate
