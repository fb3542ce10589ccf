// Attention of a chunk of tokens behind what a cache holds. All queries that share a key-value head lie in the lanes of
// vectors, keys are met in the order in which they were read, and one that a query may not see adds nothing: so a
// token's bits depend neither on how its row was cut into chunks, nor on the other rows, nor on the room of the cache.
#pragma once

#include <array>

#include "attention.h"

namespace moe_lab {

// Letters: B rows, R rows of the cache, S tokens of the chunk, H query heads, G key-value heads, A width of a head,
// C slots of the layer, M slots of the segments.
struct CachedHeads {
  const float *q, *k, *v;       // [B, S, H, A], [B, S, G, A] twice; queries and keys are turned
  float *keys, *values;         // [R, G, C, A], token i in slot i % C
  const int32_t *segments;      // [B, S], 0 is padding
  const int32_t *index;         // [B, S], of each token in its row
  const int32_t *old_segments;  // [B, M], token i in slot i % M
  const int32_t *length;        // [B], tokens that were read before
  const int32_t *place;         // [B], of each row in the cache; no two are equal
  long B, S, H, G, A, C, M;
  float scale, softcap;  // 0: none
  long window;           // 0: none

  float* slot(float* cache, long row, long group, long token) const {
    return cache + ((place[row] * G + group) * C + token % C) * A;
  }
  long panels() const { return ceil_div(S * (H / G), kPanel); }
};

// Some keys that lie side by side: tokens [first, first + count) of a row, or of its chunk.
struct Keys {
  const float *key, *value;
  long step, count;
};

// At most kPanel queries of a key-value head in a row: query i of all is head i % N of its group at token i / N.
inline void attend_cached(const CachedHeads& heads, long row, long group, long first, float* scratch, float* out) {
  long A = heads.A, N = heads.H / heads.G, count = std::min<long>(kPanel, heads.S * N - first);
  const int32_t *segments = heads.segments + row * heads.S, *index = heads.index + row * heads.S;
  long begin = first / N, end = (first + count - 1) / N + 1;  // tokens of the chunk that have queries here
  while (end > begin && segments[end - 1] == 0) --end;        // behind them is padding
  auto query = [&](long i) {
    return ((row * heads.S + (first + i) / N) * heads.H + group * N + (first + i) % N) * A;
  };
  long length = heads.length[row], oldest = std::max(0L, length - heads.C);
  if (heads.window > 0) oldest = std::max<long>(oldest, std::min<long>(length, index[begin] - heads.window + 1));
  auto old_segment = [&](long token) { return heads.old_segments[row * heads.M + token % heads.M]; };
  auto none_of = [&](int32_t old) { return std::find(segments + begin, segments + end, old) == segments + end; };
  while (oldest < length && none_of(old_segment(oldest))) ++oldest;

  // A ring may end on the way, so what it holds is two runs.
  long old = length - oldest, whole = std::min(old, heads.C - oldest % heads.C);
  long shared = (row * heads.S * heads.G + group) * A;
  std::array<Keys, 3> runs{
      Keys{heads.slot(heads.keys, row, group, oldest), heads.slot(heads.values, row, group, oldest), A, whole},
      Keys{heads.slot(heads.keys, row, group, 0), heads.slot(heads.values, row, group, 0), A, old - whole},
      Keys{heads.k + shared, heads.v + shared, heads.G * A, end}};
  float *rows = scratch, *q = rows + kPanel * A, *y = q + kPanel * A, *scores = y + kPanel * A;
  const std::vector<float> zeros(A);
  rows_to_panels(count, A, zeros.data(), [&](long i) { return heads.q + query(i); }, q);
  float* next = scores;
  for (const Keys& run : runs) {
    panel_product(run.count, {run.key, run.step, 1, 0}, q, next, A, count, false);
    next += run.count * kPanel;
  }
  Vec shares[kVectors];
  for (long lane = 0; lane < count; lane += kLanes) {
    IntVec at, segment, exists = lanes_below(count - lane);
    for (int i = 0; i < kLanes; ++i) {
      long token = std::min((first + lane + i) / N, heads.S - 1);
      at[i] = index[token], segment[i] = segments[token];
    }
    IntVec last = heads.window > 0 ? at - int32_t(heads.window) : IntVec{} - 1;
    Vec top = Vec{} + kUnseen, sum{};
    for (long key = 0; key < old + end; ++key) {
      long token = key < old ? oldest + key : index[key - old];
      int32_t own = key < old ? old_segment(token) : segments[key - old];
      IntVec seen = exists & (segment == own) & (at >= int32_t(token)) & (last < int32_t(token));
      float* place = scores + key * kPanel + lane;
      Vec score = load(place) * heads.scale;
      if (heads.softcap > 0) score = heads.softcap * (1.f - 2.f / (1.f + exponential(score * (2.f / heads.softcap))));
      score = seen ? score : Vec{} + kUnseen;
      top = score > top ? score : top;
      store(place, score);
    }
    for (long key = 0; key < old + end; ++key) {
      float* place = scores + key * kPanel + lane;
      Vec part = share(load(place), top);
      sum += part;
      store(place, part);
    }
    shares[lane / kLanes] = sum > 0.f ? 1.f / sum : Vec{};
  }
  next = scores;
  std::fill_n(y, A * kPanel, 0.f);
  for (const Keys& run : runs) {
    panel_product(A, {run.value, 1, run.step, 0}, next, y, run.count, count, true);
    next += run.count * kPanel;
  }
  for (long a = 0; a < A; ++a)
    for (long lane = 0; lane < count; lane += kLanes) {
      float* place = y + a * kPanel + lane;
      store(place, load(place) * shares[lane / kLanes]);
    }
  panels_to_rows(y, count, A, rows, false);
  for (long i = 0; i < count; ++i) std::copy_n(rows + i * A, A, out + query(i));
}

// Writes the chunk's keys and values over the oldest; what later tokens of the chunk would overwrite stays away.
inline void remember(const CachedHeads& heads, long row, long group) {
  const int32_t* segments = heads.segments + row * heads.S;
  long length = heads.length[row];
  for (long s = 0; s < heads.S; ++s) length += segments[s] != 0;
  for (long s = 0; s < heads.S; ++s) {
    long token = heads.index[row * heads.S + s], from = ((row * heads.S + s) * heads.G + group) * heads.A;
    if (segments[s] == 0 || token < length - heads.C) continue;
    std::copy_n(heads.k + from, heads.A, heads.slot(heads.keys, row, group, token));
    std::copy_n(heads.v + from, heads.A, heads.slot(heads.values, row, group, token));
  }
}

}  // namespace moe_lab
