// Vectors of float32 as wide as the processor's, through the compiler's own vector types.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

namespace moe_lab {

// kSliver rows of kVectors vectors are what the registers hold while a product sums, with kVectors + 1 vectors to spare.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kSliver = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kSliver = 4;
#elif defined(__SSE__)
constexpr int kLanes = 4, kSliver = 4;
#else
constexpr int kLanes = 4, kSliver = 8;
#endif
constexpr int kVectors = 3;
// A panel holds this many tokens side by side, one in each lane: [numbers of a token][kPanel].
constexpr int kPanel = kLanes * kVectors;

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
// In arrays vectors begin anywhere. Nothing else may have this type: clang gives a variable of it a place on the stack
// that is not aligned, and then spills into it as if it were.
typedef float StoredVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

#define MOE_LAB_UNROLL _Pragma("GCC unroll 32")

inline Vec load(const float* at) { return *reinterpret_cast<const StoredVec*>(at); }
inline void store(float* at, Vec value) { *reinterpret_cast<StoredVec*>(at) = value; }
inline Vec broadcast(float value) { return value - Vec{}; }  // and not a sum, which would make a 0 of -0

// sum + a * b of one number as a lane of vectors has it. Written as a sum, a compiler may round the product first.
inline float multiply_add(float a, float b, float sum) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, sum);
#else
  return sum + a * b;
#endif
}

// bfloat16 is the upper half of a float32.
struct Narrow {
  uint16_t bits;
};
typedef uint16_t NarrowVec __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

inline float widen(float value) { return value; }
inline float widen(Narrow value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, 4);
  return wide;
}
inline Vec load(const Narrow* at) {
  typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
  return (Vec)(__builtin_convertvector(*reinterpret_cast<const NarrowVec*>(at), Bits) << 16);
}

template <typename Weight>
inline void widen(const Weight* from, long count, float* to) {
  for (long i = 0; i < count; ++i) to[i] = widen(from[i]);
}

// Keeps a vector that is used several times in a register. An x86 multiply-add can take an operand from memory, so
// compilers load such a vector anew with each use: then a step of a product has more loads than multiply-adds, and the
// loads set its pace. Without such an instruction (older x86, other processors) there is nothing to prevent.
inline Vec in_register(Vec value) {
#if defined(__FMA__)
  asm("" : "+v"(value));
#endif
  return value;
}

inline long ceil_div(long a, long b) { return (a + b - 1) / b; }

inline IntVec lanes_below(long count) {
  IntVec mask;
  for (int lane = 0; lane < kLanes; ++lane) mask[lane] = lane < count ? -1 : 0;
  return mask;
}

template <size_t... i>
inline Vec interleave(Vec a, Vec b, bool upper, std::index_sequence<i...>) {
  return upper ? __builtin_shufflevector(a, b, (kLanes / 2 + i / 2 + i % 2 * kLanes)...)
               : __builtin_shufflevector(a, b, (i / 2 + i % 2 * kLanes)...);
}

// Rows become columns, in log2(kLanes) rounds that interleave the first half of the rows with the second.
inline void transpose(Vec (&rows)[kLanes]) {
  constexpr auto lanes = std::make_index_sequence<kLanes>();
  for (int round = 1; round < kLanes; round *= 2) {
    Vec next[kLanes];
    MOE_LAB_UNROLL for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave(rows[i], rows[i + kLanes / 2], false, lanes);
      next[2 * i + 1] = interleave(rows[i], rows[i + kLanes / 2], true, lanes);
    }
    MOE_LAB_UNROLL for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Tokens [count][width], token r at from(r), into panels [width][kPanel]. Lanes of a last vector without a token: zero.
template <typename From>
void rows_to_panels(long count, long width, const float* zeros, From from, float* panels) {
  for (long first = 0; first < count; first += kLanes) {
    const float* row[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) row[lane] = first + lane < count ? from(first + lane) : zeros;
    float* to = panels + first / kPanel * width * kPanel + first % kPanel;
    long i = 0;
    for (; i + kLanes <= width; i += kLanes) {
      Vec square[kLanes];
      MOE_LAB_UNROLL for (int lane = 0; lane < kLanes; ++lane) square[lane] = load(row[lane] + i);
      transpose(square);
      MOE_LAB_UNROLL for (int k = 0; k < kLanes; ++k) store(to + (i + k) * kPanel, square[k]);
    }
    for (; i < width; ++i)
      for (int lane = 0; lane < kLanes; ++lane) to[i * kPanel + lane] = row[lane][i];
  }
}

// The way back, into rows that lie `width` apart; with `add` they are added to what is there.
inline void panels_to_rows(const float* panels, long count, long width, float* rows, bool add) {
  for (long first = 0; first < count; first += kLanes) {
    const float* from = panels + first / kPanel * width * kPanel + first % kPanel;
    float* to = rows + first * width;
    long own = std::min<long>(kLanes, count - first), i = 0;
    for (; i + kLanes <= width; i += kLanes) {
      Vec square[kLanes];
      MOE_LAB_UNROLL for (int k = 0; k < kLanes; ++k) square[k] = load(from + (i + k) * kPanel);
      transpose(square);
      for (long lane = 0; lane < own; ++lane) {
        float* at = to + lane * width + i;
        store(at, add ? load(at) + square[lane] : square[lane]);
      }
    }
    for (; i < width; ++i)
      for (long lane = 0; lane < own; ++lane) {
        float& at = to[lane * width + i];
        at = from[i * kPanel + lane] + (add ? at : 0.f);
      }
  }
}

}  // namespace moe_lab
