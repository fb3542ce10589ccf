// Attention of whole rows. Queries lie in the lanes of vectors, keys and values are read one number at a time, so scores,
// softmax and sums of values are products like those of the routed layer and need no turning around. A query meets no
// key behind it, and a panel of queries none in front of the documents that it has tokens of.
#pragma once

#include <vector>

#include "activations.h"
#include "products.h"

namespace moe_lab {

constexpr float kUnseen = -1e30f;

// Letters: B rows, S positions, H query heads, G key-value heads, A width of a head, R turned pairs of a head.
struct Heads {
  const float *q, *k, *v;   // [B, S, H, A], turned [B, G, S, A], [B, S, G, A]
  const int32_t* segments;  // [B, S]
  const float *sin, *cos;   // [B, S, R]
  long B, S, H, G, A, R;
  float scale, softcap;  // 0: none
  long window;           // 0: none

  long group(long head) const { return head / (H / G); }
  const float* keys(long row, long group) const { return k + (row * G + group) * S * A; }
  const float* values(long row, long group) const { return v + (row * S * G + group) * A; }
  long query(long row, long position, long head) const { return ((row * S + position) * H + head) * A; }
  long shared(long row, long position, long group) const { return ((row * S + position) * G + group) * A; }

  // Turns a head at a position by its angles, or back.
  void turn(const float* from, long row, long position, bool back, float* to) const {
    const float *s = sin + (row * S + position) * R, *c = cos + (row * S + position) * R;
    for (long r = 0; r < R; ++r) {
      float first = from[r], second = from[r + R], up = back ? -s[r] : s[r];
      to[r] = first * c[r] - second * up;
      to[r + R] = second * c[r] + first * up;
    }
    std::copy(from + 2 * R, from + A, to + 2 * R);
  }
};

// At most kPanel queries of a head in a row of tokens, and the keys [begin, end) that any of them may see.
struct Queries {
  Queries(const Heads& heads, long row, long head, long first)
      : row(row), head(head), first(first), count(std::min<long>(kPanel, heads.S - first)), end(first + count) {
    const int32_t* segments = heads.segments + row * heads.S;
    if (heads.window > 0) begin = std::max(0L, first - heads.window + 1);
    while (begin < first && std::find(segments + first, segments + end, segments[begin]) == segments + end) ++begin;
  }

  long keys() const { return end - begin; }

  long row, head, first, count, begin = 0, end;
};

// A vector of queries looks at the keys one by one: see(key, score) for each, with the score behind scale and cap, or
// kUnseen.
template <typename See>
inline void look(const Heads& heads, const Queries& own, long lane, const float* scores, See see) {
  const int32_t* segments = heads.segments + own.row * heads.S;
  IntVec index, segment, exists = lanes_below(own.count - lane);
  for (int i = 0; i < kLanes; ++i) {
    index[i] = own.first + lane + i;
    segment[i] = segments[std::min<long>(index[i], heads.S - 1)];
  }
  IntVec oldest = heads.window > 0 ? index - int32_t(heads.window) : IntVec{} - 1;
  for (long key = 0; key < own.keys(); ++key) {
    int32_t at = own.begin + key;
    IntVec seen = exists & (segment == segments[at]) & (index >= at) & (oldest < at);
    Vec score = load(scores + key * kPanel + lane) * heads.scale;
    if (heads.softcap > 0) score = heads.softcap * (1.f - 2.f / (1.f + exponential(score * (2.f / heads.softcap))));
    see(key, seen ? score : Vec{} + kUnseen);
  }
}

inline Vec share(Vec score, Vec top) { return score > kUnseen ? exponential(score - top) : Vec{}; }

// The output of a panel of queries, and of each its greatest score and one over its sum, for the way back. Scratch:
// panels of 3 A + S numbers.
inline void attend(const Heads& heads, const Queries& own, float* scratch, float* out, float* top_out, float* share_out) {
  long A = heads.A, group = heads.group(own.head);
  float *rows = scratch, *q = rows + kPanel * A, *y = q + kPanel * A, *scores = y + kPanel * A;
  const std::vector<float> zeros(A);
  for (long r = 0; r < own.count; ++r)
    heads.turn(heads.q + heads.query(own.row, own.first + r, own.head), own.row, own.first + r, false, rows + r * A);
  rows_to_panels(own.count, A, zeros.data(), [&](long r) { return rows + r * A; }, q);
  const float* keys = heads.keys(own.row, group) + own.begin * A;
  panel_product(own.keys(), {keys, A, 1, 0}, q, scores, A, own.count, false);
  Vec shares[kVectors];
  for (long lane = 0; lane < own.count; lane += kLanes) {
    Vec top = Vec{} + kUnseen, sum{};
    look(heads, own, lane, scores, [&](long key, Vec score) {
      store(scores + key * kPanel + lane, score);
      top = score > top ? score : top;
    });
    for (long key = 0; key < own.keys(); ++key) {
      float* at = scores + key * kPanel + lane;
      Vec part = share(load(at), top);
      sum += part;
      store(at, part);
    }
    Vec one = sum > 0.f ? 1.f / sum : Vec{};
    shares[lane / kLanes] = one;
    for (long i = lane; i < std::min<long>(own.count, lane + kLanes); ++i) {
      top_out[i] = top[i - lane];
      share_out[i] = one[i - lane];
    }
  }
  const float* values = heads.values(own.row, group) + own.begin * heads.G * A;
  panel_product(A, {values, 1, heads.G * A, 0}, scores, y, own.keys(), own.count, false);
  for (long a = 0; a < A; ++a)
    for (long lane = 0; lane < own.count; lane += kLanes) {
      float* at = y + a * kPanel + lane;
      store(at, load(at) * shares[lane / kLanes]);
    }
  panels_to_rows(y, own.count, A, rows, false);
  for (long r = 0; r < own.count; ++r)
    std::copy_n(rows + r * A, A, out + heads.query(own.row, own.first + r, own.head));
}

struct HeadGradients {
  float *q, *k, *v;
};

// c[key] += sum over queries of shares[key][query] * rows[query].
inline void add_to_keys(const Queries& own, const float* shares, const float* rows, long A, float* c) {
  for (long column = 0; column < A; column += kPanel)
    for_each_sliver(own.keys(), [&](long key, auto slivers) {
      Left left{shares + key * kPanel, kPanel, 1, 0};
      Right right{rows + column, A, 0};
      slice_product<slivers>(left, right, c + key * A + column, A, std::min<long>(kPanel, A - column), own.count, true);
    });
}

// All gradients of the query heads that share a key-value head, and of that head. `tops` and `shares`: [B, H, S].
// Scratch: panels of 5 A + 3 S + 2 numbers, and 2 S A more.
inline void attend_backward(const Heads& heads, long row, long group, const float* dy, const float* tops,
                            const float* shares, float* scratch, const HeadGradients& out) {
  long A = heads.A, S = heads.S;
  float *dk = scratch, *dv = dk + S * A, *q_rows = dv + S * A, *dy_rows = q_rows + kPanel * (A + 1);
  float *q = dy_rows + kPanel * (A + 1), *dy_panel = q + kPanel * A, *dq = dy_panel + kPanel * A;
  float *scores = dq + kPanel * A, *dscores = scores + kPanel * S, *parts = dscores + kPanel * S;
  const std::vector<float> zeros(A);
  std::fill_n(dk, 2 * S * A, 0.f);
  const float *all_keys = heads.keys(row, group), *all_values = heads.values(row, group);
  for (long head = group * (heads.H / heads.G); heads.group(head) == group && head < heads.H; ++head)
    for (long first = 0; first < S; first += kPanel) {
      Queries own(heads, row, head, first);
      for (long r = 0; r < own.count; ++r) {
        long at = heads.query(row, first + r, head);
        heads.turn(heads.q + at, row, first + r, false, q_rows + r * A);
        std::copy_n(dy + at, A, dy_rows + r * A);
      }
      rows_to_panels(own.count, A, zeros.data(), [&](long r) { return q_rows + r * A; }, q);
      rows_to_panels(own.count, A, zeros.data(), [&](long r) { return dy_rows + r * A; }, dy_panel);
      const float *keys = all_keys + own.begin * A, *values = all_values + own.begin * heads.G * A;
      panel_product(own.keys(), {keys, A, 1, 0}, q, scores, A, own.count, false);
      panel_product(own.keys(), {values, heads.G * A, 1, 0}, dy_panel, dscores, A, own.count, false);
      for (long lane = 0; lane < own.count; lane += kLanes) {
        Vec top{}, one{}, mean{};
        for (long i = lane; i < std::min<long>(own.count, lane + kLanes); ++i) {
          long at = (row * heads.H + head) * S + first + i;
          top[i - lane] = tops[at], one[i - lane] = shares[at];
        }
        look(heads, own, lane, scores, [&](long key, Vec score) {
          long at = key * kPanel + lane;
          Vec part = share(score, top) * one;
          mean += part * load(dscores + at);
          store(scores + at, score);
          store(parts + at, part);
        });
        for (long key = 0; key < own.keys(); ++key) {
          long at = key * kPanel + lane;
          Vec part = load(parts + at), slope = Vec{} + heads.scale;
          if (heads.softcap > 0) {
            Vec capped = load(scores + at) * (1.f / heads.softcap);
            slope *= 1.f - capped * capped;
          }
          store(dscores + at, part > 0.f ? part * (load(dscores + at) - mean) * slope : Vec{});
        }
      }
      add_to_keys(own, parts, dy_rows, A, dv + own.begin * A);
      add_to_keys(own, dscores, q_rows, A, dk + own.begin * A);
      panel_product(A, {keys, 1, A, 0}, dscores, dq, own.keys(), own.count, false);
      panels_to_rows(dq, own.count, A, q_rows, false);
      for (long r = 0; r < own.count; ++r)
        heads.turn(q_rows + r * A, row, first + r, true, out.q + heads.query(row, first + r, head));
    }
  for (long position = 0; position < S; ++position) {
    long at = heads.shared(row, position, group);
    heads.turn(dk + position * A, row, position, true, out.k + at);
    std::copy_n(dv + position * A, A, out.v + at);
  }
}

}  // namespace moe_lab
