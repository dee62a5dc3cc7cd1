// Calls into the engine without the GIL.
#pragma once

#include <fastrnn/fastrnn.h>
#include <pybind11/pybind11.h>

#include <chrono>

// The GIL is released as long as this lives, and from time to time taken back for a moment to run
// the handlers of signals that came, so that Ctrl-C ends a long call. Taking it back may mean to
// wait for other Python threads, so it happens rarely.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()), next_(Clock::now() + kPeriod) {}
  ~Unlocked() { PyEval_RestoreThread(state_); }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

  fastrnn::Interrupt interrupt() { return {asked, this}; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr auto kPeriod = std::chrono::milliseconds(200);

  static bool asked(void* context) {
    auto& self = *static_cast<Unlocked*>(context);
    if (Clock::now() < self.next_) return false;
    PyEval_RestoreThread(self.state_);
    const bool raised = PyErr_CheckSignals() != 0;
    self.state_ = PyEval_SaveThread();
    self.next_ = Clock::now() + kPeriod;
    return raised;
  }

  PyThreadState* state_;
  Clock::time_point next_;
};

// Calls run(b) without the GIL; raises what a signal's handler raised meanwhile.
template <class Buffers, class Run>
void run_unlocked(Buffers& b, const Run& run) {
  bool finished = false;
  {
    Unlocked unlocked;
    b.interrupt = unlocked.interrupt();
    finished = run();
  }
  if (!finished) throw pybind11::error_already_set();
}
