// What is routed where, and how it is cut into tiles that threads can take.
//
// Rows are assignments (token, choice), sorted by module and falling width: the users of a block of a module are the
// leading rows of the module.
//
// Letters: T tokens, K choices, M = T * K rows, E modules, N blocks, D model width, B hidden units of a block.
#pragma once

#include <unordered_map>
#include <vector>

#include "activations.h"
#include "products.h"
#include "workers.h"

namespace moe_lab {

struct Layer {
  const float *h, *gate, *up, *down, *weight;  // [T, D], [N, D, B], [N, D, B], [N, B, D], [T, K]
  const int32_t* order;                        // [M] assignment of each row
  const int32_t* row;                          // [T, K] row of each assignment
  const int32_t *first, *rows;                 // [N] first row of each block's users, and their number
  const int32_t *start, *count;                // [E] blocks of each module
  long T, K, D, N, B, E;
  Activation activation;
  long active;  // rows that run anything; the others come last

  long token(long r) const { return order[r] / K; }
  long first_row(long e) const { return first[start[e]]; }
  // How many of `limit` rows of module e, from `r` on, run its block j.
  long users(long e, long j, long r, long limit) const {
    return std::clamp<long>(rows[start[e] + j] - (r - first_row(e)), 0, limit);
  }
};

// Some rows of one module, and those of its blocks from `begin` on that any of them runs.
struct Tile {
  long module, row, rows, begin, end, cost;
};

// All work, each module's blocks taken in segments of at most `segment` blocks.
inline std::vector<Tile> cut(const Layer& l, long tile_rows, long segment) {
  std::vector<Tile> tiles;
  for (long e = 0; e < l.E; ++e)
    for (long begin = 0; begin < l.count[e]; begin += segment) {
      long users = l.rows[l.start[e] + begin], end = std::min<long>(begin + segment, l.count[e]);
      for (long r = 0; r < users; r += tile_rows) {
        Tile tile{e, l.first_row(e) + r, std::min(tile_rows, users - r), begin, begin, 0};
        for (; tile.end < end; ++tile.end) {
          long own = l.users(e, tile.end, tile.row, tile.rows);
          if (own == 0) break;
          tile.cost += own;
        }
        tiles.push_back(tile);
      }
    }
  return tiles;
}

// The order in which to hand out tiles so that all threads end at about the same time.
inline std::vector<long> dearest_first(const std::vector<Tile>& tiles) {
  std::vector<long> order(tiles.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](long a, long b) { return tiles[a].cost > tiles[b].cost; });
  return order;
}

// The tile's rows of an array [T, D].
inline void tile_to_panels(const Layer& l, const float* tokens, const Tile& tile, float* panels) {
  const std::vector<float> zeros(l.D);
  auto from = [&](long r) { return tokens + l.token(tile.row + r) * l.D; };
  rows_to_panels(tile.rows, l.D, zeros.data(), from, panels);
}

// Gate and up products that the forward pass leaves for the backward pass: those of as many tiles as there is room
// for. The backward pass computes the others again.
class Kept {
 public:
  Kept(const Layer& l, const std::vector<Tile>& tiles, float* data, long room) : gate(data), up(data + room) {
    long used = 0;
    for (const Tile& tile : tiles) {
      if (tile.begin > 0) continue;
      long own = size(l, tile, tile.rows, l.count[tile.module]);
      if (used + own > room) continue;
      places_[tile.row] = {used, tile.rows};
      used += own;
    }
  }

  // Where the products of the tile's first block begin, or -1. The segments of a tile share its first row; later ones
  // may have fewer rows.
  long at(const Layer& l, const Tile& tile) const {
    auto found = places_.find(tile.row);
    if (found == places_.end()) return -1;
    return found->second.begin + size(l, tile, found->second.rows, tile.begin);
  }

  float *gate, *up;

 private:
  struct Place {
    long begin, rows;
  };

  static long size(const Layer& l, const Tile& tile, long rows, long blocks) {
    long panels = 0;
    for (long j = 0; j < blocks; ++j) panels += ceil_div(l.users(tile.module, j, tile.row, rows), kPanel);
    return panels * l.B * kPanel;
  }

  std::unordered_map<long, Place> places_;  // by first row
};

// out[t] = sum over k of (weight[t, k] *) rows[row of (t, k)], in the order of the choices.
inline void combine(const Layer& l, const float* rows, const float* weight, float* out, Workers& workers) {
  constexpr long kTokens = 64;
  workers.run(ceil_div(l.T, kTokens), [&](long part, int) {
    for (long t = part * kTokens; t < std::min(l.T, (part + 1) * kTokens); ++t) {
      float* to = out + t * l.D;
      std::fill_n(to, l.D, 0.f);
      for (long k = 0; k < l.K; ++k) {
        long r = l.row[t * l.K + k];
        if (r >= l.active) continue;
        const float* from = rows + r * l.D;
        float w = weight ? weight[t * l.K + k] : 1.f;
        for (long d = 0; d < l.D; ++d) to[d] += w * from[d];
      }
    }
  });
}

}  // namespace moe_lab
