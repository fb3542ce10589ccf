// Products of some tokens with a whole matrix that is read in place, each of its numbers once as long as the tokens are
// few: what writing a text waits for. A result's bits depend on its own token and its own column of the matrix only.
#pragma once

#include <cmath>

#include <type_traits>
#include <vector>

#include "vectors.h"

namespace moe_lab {

// Letters: T tokens, D summed width, F columns of the result. Rows of x [T, D], w and y [T, F] lie so far apart.
template <typename Weight>
struct Dense {
  const float* x;
  const Weight* w;
  float* y;
  long T, D, x_row, w_row, y_row;
};

// As many rows of the matrix are multiplied at a time as the registers can hold numbers of two tokens for.
constexpr int kDepthAtOnce = kLanes == 16 ? 8 : 4;
// Rows of a strip that stay in the second cache while all tokens pass them, and tokens whose sums stay in the first.
constexpr long kStripRows = 128, kStripTokens = 16, kStripColumns = 256;

// Columns of a task: as few tasks as keep all threads busy.
inline long strip_columns(long columns, long threads) {
  long parts = ceil_div(ceil_div(columns, kStripColumns), threads) * threads;
  return ceil_div(ceil_div(columns, parts), kLanes) * kLanes;
}

// y[t] (+)= x[t] w for Depth rows of w, in their order.
template <int Tokens, int Depth, typename Weight>
inline void add_rows(const float* x, long x_row, const Weight* w, long w_row, float* y, long y_row, long columns,
                     bool add) {
  Vec left[Tokens][Depth];
  MOE_LAB_UNROLL for (int t = 0; t < Tokens; ++t)
    MOE_LAB_UNROLL for (int k = 0; k < Depth; ++k) left[t][k] = broadcast(x[t * x_row + k]);
  long column = 0;
  for (; column + kLanes <= columns; column += kLanes) {
    Vec sum[Tokens];
    MOE_LAB_UNROLL for (int t = 0; t < Tokens; ++t) sum[t] = add ? load(y + t * y_row + column) : Vec{};
    MOE_LAB_UNROLL for (int k = 0; k < Depth; ++k) {
      __builtin_prefetch(w + (k + Depth) * w_row + column);
      Vec right = in_register(load(w + k * w_row + column));
      MOE_LAB_UNROLL for (int t = 0; t < Tokens; ++t) sum[t] += left[t][k] * right;
    }
    MOE_LAB_UNROLL for (int t = 0; t < Tokens; ++t) store(y + t * y_row + column, sum[t]);
  }
  for (; column < columns; ++column)
    for (int t = 0; t < Tokens; ++t) {
      float sum = add ? y[t * y_row + column] : 0.f;
      for (int k = 0; k < Depth; ++k) sum = multiply_add(x[t * x_row + k], widen(w[k * w_row + column]), sum);
      y[t * y_row + column] = sum;
    }
}

// y (+)= x w for columns [begin, end) of w [D, F].
template <typename Weight>
inline void columns_product(const Dense<Weight>& d, long begin, long end, bool add = false) {
  for (long block = 0; block < d.D; block += kStripRows) {
    long last = std::min(block + kStripRows, d.D);
    for (long first = 0; first < d.T; first += kStripTokens) {
      long tokens = std::min(first + kStripTokens, d.T);
      auto visit = [&](long k, auto depth) {
        auto add_all = [&](const auto* w, long w_row) {
          auto add_to = [&](long t, auto tokens) {
            add_rows<tokens, depth>(d.x + t * d.x_row + k, d.x_row, w, w_row, d.y + t * d.y_row + begin, d.y_row,
                                    end - begin, add || k > 0);
          };
          long t = first;
          for (; t + 2 <= tokens; t += 2) add_to(t, std::integral_constant<int, 2>());
          if (t < tokens) add_to(t, std::integral_constant<int, 1>());
        };
        const Weight* w = d.w + k * d.w_row + begin;
        if (std::is_same_v<Weight, float> || tokens - first <= 2 || end - begin > kStripColumns)
          return add_all(w, d.w_row);
        float wide[depth * kStripColumns];
        for (int row = 0; row < depth; ++row) widen(w + row * d.w_row, end - begin, wide + row * kStripColumns);
        add_all(wide, kStripColumns);
      };
      long k = block;
      for (; k + kDepthAtOnce <= last; k += kDepthAtOnce) visit(k, std::integral_constant<int, kDepthAtOnce>());
      for (; k < last; ++k) visit(k, std::integral_constant<int, 1>());
    }
  }
}

inline float total(Vec lanes) {
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// y = x / sqrt(mean(x^2) + eps) * scale for rows [begin, end) of x [T, D].
inline void norm_rows(const float* x, const float* scale, float eps, long D, float* y, long begin, long end) {
  for (long t = begin; t < end; ++t) {
    const float* from = x + t * D;
    float* to = y + t * D;
    Vec squares{};
    float rest = 0.f;
    long k = 0;
    for (; k + kLanes <= D; k += kLanes) squares += load(from + k) * load(from + k);
    for (long last = k; last < D; ++last) rest = multiply_add(from[last], from[last], rest);
    float root = 1.f / std::sqrt((total(squares) + rest) / D + eps);
    for (long i = 0; i < D; ++i) to[i] = from[i] * root * scale[i];
  }
}

template <int Rows, int Tokens, typename Weight>
inline void dot_products(const float* x, long x_row, const Weight* w, long w_row, long D, float* y, long y_row) {
  Vec sum[Rows][Tokens]{};
  long k = 0;
  for (; k + kLanes <= D; k += kLanes) {
    Vec left[Tokens];
    MOE_LAB_UNROLL for (int t = 0; t < Tokens; ++t) left[t] = in_register(load(x + t * x_row + k));
    MOE_LAB_UNROLL for (int r = 0; r < Rows; ++r) {
      __builtin_prefetch(w + (r + Rows) * w_row + k);
      Vec right = in_register(load(w + r * w_row + k));
      MOE_LAB_UNROLL for (int t = 0; t < Tokens; ++t) sum[r][t] += left[t] * right;
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int t = 0; t < Tokens; ++t) {
      float rest = 0.f;
      for (long last = k; last < D; ++last) rest = multiply_add(x[t * x_row + last], widen(w[r * w_row + last]), rest);
      y[t * y_row + r] = total(sum[r][t]) + rest;
    }
}

// y = x w^T for rows [begin, end) of w [F, D].
template <typename Weight>
inline void rows_product(const Dense<Weight>& d, long begin, long end) {
  constexpr int kRows = 4, kTokens = kLanes == 16 ? 4 : 2;
  std::vector<float> wide(std::is_same_v<Weight, float> || d.T <= kTokens ? 0 : kRows * d.D);
  auto visit = [&](long r, auto rows) {
    auto dot_all = [&](const auto* w, long w_row) {
      auto dot = [&](long t, auto tokens) {
        dot_products<rows, tokens>(d.x + t * d.x_row, d.x_row, w, w_row, d.D, d.y + t * d.y_row + r, d.y_row);
      };
      long t = 0;
      for (; t + kTokens <= d.T; t += kTokens) dot(t, std::integral_constant<int, kTokens>());
      for (; t < d.T; ++t) dot(t, std::integral_constant<int, 1>());
    };
    const Weight* w = d.w + r * d.w_row;
    if (wide.empty()) return dot_all(w, d.w_row);
    for (int row = 0; row < rows; ++row) widen(w + row * d.w_row, d.D, wide.data() + row * d.D);
    dot_all(wide.data(), d.D);
  };
  long r = begin;
  for (; r + kRows <= end; r += kRows) visit(r, std::integral_constant<int, kRows>());
  for (; r < end; ++r) visit(r, std::integral_constant<int, 1>());
}

}  // namespace moe_lab
