#include "fiber.h"

#include <vector>

#if defined(__x86_64__)
// Pushes what a call must keep, leaves the stack pointer in *from and takes up the one in `to`.
asm(R"(
.text
.type fastrnn_emulator_switch, @function
fastrnn_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastrnn_emulator_switch, .-fastrnn_emulator_switch
.section .note.GNU-stack,"",@progbits
.text
)");
extern "C" void fastrnn_emulator_switch(void** from, void* to);
#endif

// A fiber that is given up keeps what its frames own.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options();
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

namespace emulator {
namespace {

std::vector<unsigned char*> spare;  // stacks of fibers that have ended

}  // namespace

Fiber::~Fiber() {
  end_sanitizer();
  if (memory_) spare.push_back(memory_);
}

void Fiber::prepare(void (*entry)()) {
  if (!memory_ && !spare.empty()) {
    memory_ = spare.back();
    spare.pop_back();
  }
  if (!memory_) {
    void* memory = mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE)) std::abort();
    memory_ = static_cast<unsigned char*>(memory);
  }
  end_sanitizer();
#if defined(FASTRNN_EMULATOR_TSAN)
  tsan_ = __tsan_create_fiber(0);
#endif
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(memory_ + kGuard, kStack);
  fake_stack_ = nullptr, bottom_ = memory_ + kGuard, size_ = kStack;
#endif
#if defined(__x86_64__)
  // At entry the stack is 8 off a multiple of 16, as after a call.
  auto** top = reinterpret_cast<void**>(memory_ + kGuard + kStack);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_ = top;
#else
  if (getcontext(&context_)) std::abort();
  context_.uc_stack.ss_sp = memory_ + kGuard;
  context_.uc_stack.ss_size = kStack;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::switch_to(Fiber& to) {
#if defined(FASTRNN_EMULATOR_TSAN)
  constexpr unsigned kNoSync = 1;
  __tsan_switch_to_fiber(to.tsan_, kNoSync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, to.bottom_, to.size_);
  last_from = this;
#endif
#if defined(__x86_64__)
  fastrnn_emulator_switch(&stack_, to.stack_);
#else
  if (swapcontext(&context_, &to.context_)) std::abort();
#endif
  entered();
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &size);
  last_from->bottom_ = bottom, last_from->size_ = size;
#endif
}

}  // namespace emulator
