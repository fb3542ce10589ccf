// The forward pass of a few rows: what a step of texts that are written has. Panels of tokens would be all but empty,
// so weights lie in the lanes instead, and every one is read once, by all threads. The sums are those of tiles, in
// their order, to the last bit.
#pragma once

#include "dense.h"
#include "layer.h"

namespace moe_lab {

constexpr long kFewRows = 2 * kPanel;

class FewRows {
 public:
  explicit FewRows(const Layer& l) : l_(l), x_(l.active * l.D) {
    long units = 0;
    for (long e = 0; e < l.E; ++e)
      for (long j = 0; j < l.count[e] && l.rows[l.start[e] + j] > 0; ++j) {
        long users = l.rows[l.start[e] + j];
        blocks_.push_back({l.start[e] + j, j, l.first_row(e), users, units});
        units += users * l.B;
      }
    hidden_.resize(units), up_.resize(units);
    for (long r = 0; r < l.active; ++r) std::copy_n(l.h + l.token(r) * l.D, l.D, x_.data() + r * l.D);
  }

  // Writes the unweighted output of all active rows, [M, D].
  void run(float* rows_out, Workers& workers) {
    long units = strip_columns(l_.B, 1), strips = ceil_div(l_.B, units);
    long columns = strip_columns(l_.D, workers.count()), parts = ceil_div(l_.D, columns);
    Stage enter{long(blocks_.size()) * strips, 0, [&](long i, int) {
                  long begin = i % strips * units;
                  make_hidden(blocks_[i / strips], begin, std::min(l_.B, begin + units));
                }};
    Stage leave{parts, 1, [&](long part, int) {
                  long begin = part * columns;
                  for (const Block& block : blocks_)
                    add_output(block, rows_out, begin, std::min(l_.D, begin + columns));
                }};
    workers.run({enter, leave});
  }

 private:
  // Number in the pool and in its module, and its users: rows from `first` on. Their hidden units begin at `units`.
  struct Block {
    long number, index, first, users, units;
  };

  void make_hidden(const Block& block, long begin, long end) {
    const float* x = x_.data() + block.first * l_.D;
    float *gate = hidden_.data() + block.units, *up = up_.data() + block.units;
    long at = block.number * l_.D * l_.B;
    columns_product<float>({x, l_.gate + at, gate, block.users, l_.D, l_.D, l_.B, l_.B}, begin, end);
    columns_product<float>({x, l_.up + at, up, block.users, l_.D, l_.D, l_.B, l_.B}, begin, end);
    for (long t = 0; t < block.users; ++t)
      for (long unit = t * l_.B + begin; unit < t * l_.B + end; unit += kLanes) {
        long lanes = std::min<long>(kLanes, t * l_.B + end - unit);
        float both[2][kLanes] = {};
        std::copy_n(gate + unit, lanes, both[0]);
        std::copy_n(up + unit, lanes, both[1]);
        store(both[0], activate(l_.activation, load(both[0])).value * load(both[1]));
        std::copy_n(both[0], lanes, gate + unit);
      }
  }

  void add_output(const Block& block, float* rows_out, long begin, long end) const {
    const float *hidden = hidden_.data() + block.units, *down = l_.down + block.number * l_.D * l_.B;
    float* rows = rows_out + block.first * l_.D;
    columns_product<float>({hidden, down, rows, block.users, l_.B, l_.B, l_.D, l_.D}, begin, end, block.index > 0);
  }

  const Layer& l_;
  std::vector<Block> blocks_;
  std::vector<float> x_, hidden_, up_;
};

}  // namespace moe_lab
