// Work shared among threads by tickets: whoever is free takes the next one, so a worker that wakes
// late, or is kept off its core, costs nothing but the help it did not give.
#pragma once

#include <fastrnn/fastrnn.h>

#include <atomic>
#include <cstdint>

namespace fastrnn {

constexpr int kMaxThreads = 64;  // of one team

struct Pool;

// The threads that work on one call: the caller and those workers of the process-wide pool, or lent
// threads, that happen to come. Only one team has them at a time; another caller works alone
// meanwhile.
class Team {
 public:
  explicit Team(int size, Interrupt interrupt = {});
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Once true, the rest of all work is passed over.
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  // The same, and asks; only the caller's thread may.
  bool asked_to_stop();

  // Calls body(i, slot) for every i in [0, count), each once, and returns when all have returned.
  // Calls with the same slot, in [0, size()), do not overlap; slot 0 is the caller's thread.
  template <class Body>
  void run(int64_t count, const Body& body) {
    const auto ticket = [&](int64_t i, int slot) {
      if (!(slot == 0 ? asked_to_stop() : stopped())) body(i, slot);
    };
    run_tickets(
        count,
        [](const void* b, int64_t i, int slot) {
          (*static_cast<const decltype(ticket)*>(b))(i, slot);
        },
        &ticket);
  }

  // Calls body(chain, 0), body(chain, 1), ... in this order for every chain; chains are
  // independent, and any thread may take the next step of any chain.
  template <class Body>
  void run_chains(int chains, int64_t steps, const Body& body) {
    run_chain_steps(
        chains, steps,
        [](const void* b, int64_t c, int64_t s) { (*static_cast<const Body*>(b))(c, s); }, &body);
  }

 private:
  using Ticket = void (*)(const void* body, int64_t i, int slot);
  using ChainStep = void (*)(const void* body, int64_t chain, int64_t step);
  void run_tickets(int64_t count, Ticket call, const void* body);
  void run_chain_steps(int chains, int64_t steps, ChainStep call, const void* body);

  void borrow();
  bool works_alone() const;

  int size_;
  Pool* pool_ = nullptr;                  // that this team has taken
  const ThreadLender* lender_ = nullptr;  // whose threads it takes when there is work to share
  bool borrowed_ = false;
  Interrupt interrupt_;
  std::atomic<bool> stopped_{false};
};

// Threads that share the panels of one product, see panel_parts() in forward.h.
struct PanelTeam {
  Team* team = nullptr;  // null: the caller alone
  int parts = 1;

  // Calls work(begin, end, part) for ranges that cover [0, panels).
  template <class Work>
  void run(int64_t panels, const Work& work) const {
    if (!team) return work(int64_t(0), panels, 0);
    team->run(parts,
              [&](int64_t i, int) { work(panels * i / parts, panels * (i + 1) / parts, int(i)); });
  }
};

}  // namespace fastrnn
