// The forward pass of one tile.
#pragma once

#include "layer.h"

namespace moe_lab {

// Writes the unweighted output of the tile's rows. Scratch: panels of 2 D + 3 B numbers.
inline void forward_tile(const Layer& l, const Tile& tile, const Kept& kept, float* scratch, float* rows_out) {
  long panels = ceil_div(tile.rows, kPanel), keep = kept.at(l, tile);
  float* x = scratch;
  float* y = x + panels * l.D * kPanel;
  float* hidden = y + panels * l.D * kPanel;
  float* gate = hidden + panels * l.B * kPanel;
  float* up = gate + panels * l.B * kPanel;
  tile_to_panels(l, l.h, tile, x);
  for (long j = tile.begin; j < tile.end; ++j) {
    long n = l.start[tile.module] + j, users = l.users(tile.module, j, tile.row, tile.rows);
    if (keep >= 0) {
      gate = kept.gate + keep, up = kept.up + keep;
      keep += ceil_div(users, kPanel) * l.B * kPanel;
    }
    panel_product(l.B, {l.gate + n * l.D * l.B, 1, l.B, 0}, x, gate, l.D, users, false);
    panel_product(l.B, {l.up + n * l.D * l.B, 1, l.B, 0}, x, up, l.D, users, false);
    for (long first = 0; first < users; first += kLanes) {
      IntVec own = lanes_below(users - first);
      long at = first / kPanel * l.B * kPanel + first % kPanel;
      for (long unit = 0; unit < l.B; ++unit, at += kPanel) {
        Vec value = activate(l.activation, load(gate + at)).value * load(up + at);
        store(hidden + at, own ? value : Vec{});
      }
    }
    panel_product(l.D, {l.down + n * l.D * l.B, 1, l.D, 0}, hidden, y, l.B, users, j > tile.begin);
  }
  panels_to_rows(y, tile.rows, l.D, rows_out + tile.row * l.D, false);
}

}  // namespace moe_lab
