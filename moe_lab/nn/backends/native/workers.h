// XLA's own threads, shared with everything else that runs.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace moe_lab {

// Tasks that may run side by side, once all tasks of the stages before number `after` have ended.
struct Stage {
  long tasks, after;
  std::function<void(long, int)> task;
};

class Workers {
 public:
  Workers(xla::ffi::ThreadPool& pool, long slots)
      : pool_(pool), count_(std::max<long>(1, std::min<long>(pool.num_threads(), slots))) {}

  long count() const { return count_; }

  // Runs task(i, worker) for every i below a stage's `tasks`, worker < slots, and returns when all have ended. Tasks are
  // taken in order, so what a task waits for has been taken before it. The caller works too, and a helper that starts
  // late finds nothing left to do: nobody waits for a thread that never comes.
  void run(std::vector<Stage> stages) {
    auto work = std::make_shared<Work>(std::move(stages));
    long tasks = 0;
    for (const Stage& stage : work->stages) tasks += stage.tasks;
    for (long helper = 1; helper < std::min(count_, tasks); ++helper) pool_.Schedule([work] { work->run(); });
    work->run();
    work->wait(work->stages.size());
  }

  void run(long tasks, std::function<void(long, int)> task) { run({{tasks, 0, std::move(task)}}); }

 private:
  struct Work {
    explicit Work(std::vector<Stage> all) : stages(std::move(all)), done(stages.size()) {}

    void run() {
      int worker = workers.fetch_add(1);
      long stage = 0, begin = 0;
      for (long i = next.fetch_add(1);; i = next.fetch_add(1)) {
        for (; stage < long(stages.size()) && i - begin >= stages[stage].tasks; ++stage) begin += stages[stage].tasks;
        if (stage == long(stages.size())) return;
        wait(stages[stage].after);
        stages[stage].task(i - begin, worker);
        done[stage].fetch_add(1);
      }
    }

    void wait(long after) const {
      for (long stage = 0; stage < after; ++stage)
        while (done[stage].load() < stages[stage].tasks) std::this_thread::yield();
    }

    std::vector<Stage> stages;
    std::vector<std::atomic<long>> done;  // tasks of each stage
    std::atomic<long> next{0};
    std::atomic<int> workers{0};
  };

  xla::ffi::ThreadPool& pool_;
  long count_;
};

}  // namespace moe_lab
