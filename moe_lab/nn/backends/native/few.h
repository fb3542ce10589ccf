// The forward pass of a few rows: what a step of texts that are written has. Panels of tokens would be all but empty, so
// weights lie in the lanes instead and every one is read once, by all threads. The sums are those of tiles, in their
// order, to the last bit.
#pragma once

#include "dense.h"
#include "layer.h"

namespace moe_lab {

constexpr long kFewRows = 2 * kPanel;

// Writes the unweighted output of all active rows, [M, D].
inline void forward_few(const Layer& l, float* rows_out, Workers& workers) {
  struct Block {
    long module, first, users, index, hidden;  // `hidden`: where its hidden units begin, [users, B]
  };
  std::vector<Block> blocks;
  long all = 0;
  for (long e = 0; e < l.E; ++e)
    for (long j = 0; j < l.count[e] && l.rows[l.start[e] + j] > 0; ++j) {
      long users = l.rows[l.start[e] + j];
      blocks.push_back({e, l.first_row(e), users, j, all});
      all += users * l.B;
    }
  std::vector<float> x(l.active * l.D), hidden(all), up(all);
  for (long r = 0; r < l.active; ++r) std::copy_n(l.h + l.token(r) * l.D, l.D, x.data() + r * l.D);
  long units = strip_columns(l.B, 1), unit_parts = ceil_div(l.B, units);
  long own = strip_columns(l.D, workers.count()), parts = ceil_div(l.D, own);
  Stage enter{long(blocks.size()) * unit_parts, 0, [&](long i, int) {
                const Block& block = blocks[i / unit_parts];
                long begin = i % unit_parts * units, end = std::min(l.B, begin + units);
                long at = (l.start[block.module] + block.index) * l.D * l.B;
                const float* from = x.data() + block.first * l.D;
                columns_product<float>({from, l.gate + at, hidden.data() + block.hidden, block.users, l.D, l.D, l.B, l.B}, begin, end);
                columns_product<float>({from, l.up + at, up.data() + block.hidden, block.users, l.D, l.D, l.B, l.B}, begin, end);
                for (long t = 0; t < block.users; ++t)
                  for (long unit = begin; unit < end; unit += kLanes) {
                    float *gate = hidden.data() + block.hidden + t * l.B + unit, *own_up = up.data() + block.hidden + t * l.B + unit;
                    Vec g{}, u{};
                    long lanes = std::min<long>(kLanes, end - unit);
                    for (long lane = 0; lane < lanes; ++lane) g[lane] = gate[lane], u[lane] = own_up[lane];
                    Vec value = activate(l.activation, g).value * u;
                    for (long lane = 0; lane < lanes; ++lane) gate[lane] = value[lane];
                  }
              }};
  Stage leave{parts, 1, [&](long part, int) {
                long begin = part * own, end = std::min(l.D, begin + own);
                for (const Block& block : blocks) {
                  const float* down = l.down + (l.start[block.module] + block.index) * l.D * l.B;
                  columns_product<float>({hidden.data() + block.hidden, down, rows_out + block.first * l.D, block.users, l.B, l.B, l.D, l.D},
                                  begin, end, block.index > 0);
                }
              }};
  workers.run({enter, leave});
}

}  // namespace moe_lab
