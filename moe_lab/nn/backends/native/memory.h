// Where results are written for the first time.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace moe_lab {

// A large array often is fresh from the system, which then makes its pages one by one as they are touched. Where huge
// pages are given to those who ask, this asks for them. It is advice: nothing depends on it but time.
inline float* in_huge_pages(float* data, size_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 2 << 20;
  uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  uintptr_t end = reinterpret_cast<uintptr_t>(data + count) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace moe_lab
