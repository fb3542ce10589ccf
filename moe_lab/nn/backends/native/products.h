// Matrix products C (+)= A B that read A one number at a time, wherever it lies, and B in whole vectors.
//
// Every number of C is summed in the order of k, whatever tile it is computed in, so its bits depend on nothing but its
// own row of A and column of B.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace moe_lab {

// Along the summed index k numbers are `step` apart; from one run of kPanel of them to the next it is `jump`.
struct Left {
  const float* at;
  long row, step, jump;  // `row`: from one row of A to the next
};
struct Right {
  const float* at;
  long step, jump;  // the columns of B lie side by side
};

template <int Rows, int Vectors>
inline __attribute__((always_inline)) void tile_product(Left a, Right b, float* c, long row, long length, bool add) {
  Vec sum[Rows][Vectors];
  MOE_LAB_UNROLL for (int i = 0; i < Rows; ++i)
    MOE_LAB_UNROLL for (int v = 0; v < Vectors; ++v) sum[i][v] = add ? load(c + i * row + v * kLanes) : Vec{};
  for (long left = length; left > 0; left -= kPanel, a.at += a.jump, b.at += b.jump) {
    const float *a_k = a.at, *b_k = b.at;
    for (long k = std::min<long>(left, kPanel); k > 0; --k, a_k += a.step, b_k += b.step) {
      Vec right[Vectors];
      MOE_LAB_UNROLL for (int v = 0; v < Vectors; ++v) right[v] = in_register(load(b_k + v * kLanes));
      MOE_LAB_UNROLL for (int i = 0; i < Rows; ++i) {
        Vec left = in_register(broadcast(a_k[i * a.row]));
        MOE_LAB_UNROLL for (int v = 0; v < Vectors; ++v) sum[i][v] += left * right[v];
      }
    }
  }
  MOE_LAB_UNROLL for (int i = 0; i < Rows; ++i)
    MOE_LAB_UNROLL for (int v = 0; v < Vectors; ++v) store(c + i * row + v * kLanes, sum[i][v]);
}

template <int Rows>
void tile_product(long vectors, Left a, Right b, float* c, long row, long length, bool add) {
  static_assert(kVectors == 3);
  if (vectors == 3) return tile_product<Rows, 3>(a, b, c, row, length, add);
  if (vectors == 2) return tile_product<Rows, 2>(a, b, c, row, length, add);
  tile_product<Rows, 1>(a, b, c, row, length, add);
}

// Calls run(i, rows): slivers of kSliver rows, then of 4, then of 1.
template <typename Run>
void for_each_sliver(long rows, Run run) {
  long i = 0;
  for (; i + kSliver <= rows; i += kSliver) run(i, std::integral_constant<int, kSliver>());
  for (; i + 4 <= rows; i += 4) run(i, std::integral_constant<int, 4>());
  for (; i < rows; ++i) run(i, std::integral_constant<int, 1>());
}

// Long sums are cut into equal depths, and what a panel of B has there can stay in the first cache while all slivers of A
// pass it: with AVX2 that is a seventh faster than the other way around, where each sliver of A stays and reads B from the
// second cache. With AVX-512 a panel is twice as wide, and the slivers of A stay.
constexpr bool kPanelStays = kLanes == 8;
constexpr long kDepth = kPanelStays ? 11 * kPanel : 512;

// How much of a sum of `length` to take at a time, a multiple of `unit`.
inline long equal_depth(long length, long unit) {
  long parts = std::max(1L, ceil_div(length, kDepth));
  return ceil_div(ceil_div(length, parts), unit) * unit;
}

// Calls run(i, rows, panel) for every sliver of rows and every panel.
template <typename Run>
void for_each_tile(long rows, long panels, Run run) {
  if constexpr (kPanelStays) {
    for (long panel = 0; panel < panels; ++panel) for_each_sliver(rows, [&](long i, auto own) { run(i, own, panel); });
  } else {
    for_each_sliver(rows, [&](long i, auto own) {
      for (long panel = 0; panel < panels; ++panel) run(i, own, panel);
    });
  }
}

// With all panels of `tokens` tokens: B panels [length][kPanel], C panels [count][kPanel].
inline void panel_product(long count, Left a, const float* b, float* c, long length, long tokens, bool add) {
  long depth = equal_depth(length, 1);
  for (long k = 0; k < length; k += depth) {
    long own = std::min(depth, length - k);
    for_each_tile(count, ceil_div(tokens, kPanel), [&](long i, auto rows, long panel) {
      Left sliver{a.at + i * a.row + k * a.step, a.row, a.step, a.step * kPanel};
      Right right{b + (panel * length + k) * kPanel, kPanel, kPanel * kPanel};
      long vectors = std::min<long>(ceil_div(tokens - panel * kPanel, kLanes), kVectors);
      tile_product<rows>(vectors, sliver, right, c + (panel * count + i) * kPanel, kPanel, own, add || k > 0);
    });
  }
}

// A sliver of at most kPanel columns of a matrix with `row` numbers in a row; they need not fill whole vectors, but B
// can be read to the end of the last one.
template <int Rows>
void slice_product(Left a, Right b, float* c, long row, long columns, long length, bool add) {
  long vectors = ceil_div(columns, kLanes);
  if (columns % kLanes == 0) return tile_product<Rows>(vectors, a, b, c, row, length, add);
  float whole[Rows * kPanel] = {};
  if (add)
    for (int r = 0; r < Rows; ++r) std::copy_n(c + r * row, columns, whole + r * kPanel);
  tile_product<Rows>(vectors, a, b, whole, kPanel, length, add);
  for (int r = 0; r < Rows; ++r) std::copy_n(whole + r * kPanel, columns, c + r * row);
}

}  // namespace moe_lab
