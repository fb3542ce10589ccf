// XLA's own threads, shared with everything else that runs.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace moe_lab {

class Workers {
 public:
  Workers(xla::ffi::ThreadPool& pool, long slots)
      : pool_(pool), count_(std::max<long>(1, std::min<long>(pool.num_threads(), slots))) {}

  // Runs task(i, worker) for every i below `tasks`, worker < slots, and returns when all have ended. The caller works
  // too, and a helper that starts late finds nothing left to do: nobody waits for a thread that never comes.
  void run(long tasks, std::function<void(long, int)> task) {
    struct State {
      std::function<void(long, int)> task;
      long tasks;
      std::atomic<long> next{0}, done{0};
      std::atomic<int> worker{0};
    };
    auto state = std::make_shared<State>();
    state->task = std::move(task);
    state->tasks = tasks;
    std::function<void()> work = [state] {
      int worker = state->worker.fetch_add(1);
      for (long i; (i = state->next.fetch_add(1)) < state->tasks; state->done.fetch_add(1)) state->task(i, worker);
    };
    for (long helper = 1; helper < std::min(count_, tasks); ++helper) pool_.Schedule(std::function<void()>(work));
    work();
    while (state->done.load() < tasks) std::this_thread::yield();
  }

 private:
  xla::ffi::ThreadPool& pool_;
  long count_;
};

}  // namespace moe_lab
