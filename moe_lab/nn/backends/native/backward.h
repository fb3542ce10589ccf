// The backward pass, chunk after chunk: the tiles of a chunk leave what weight gradients need, then come the weight
// gradients of its blocks. Both are shared out to threads, and no number is written by two of them at once.
#pragma once

#include "layer.h"

namespace moe_lab {

// Consecutive tiles of one module and one segment of its blocks.
struct Run {
  long module, row, rows, begin, end;
  long panel;    // its first panel in the chunk's arrays of tokens
  long element;  // its first number in the chunk's arrays of hidden units

  long padded_rows() const { return ceil_div(rows, kPanel) * kPanel; }
};

// A part of the gradient of block `block` of a run's module: of its down projection, or of gate and up, which share an
// operand. With `add` it is added to what earlier chunks left.
struct BlockTask {
  long run, block;
  bool down, add;
};

struct Chunk {
  std::vector<Tile> tiles;
  std::vector<long> run_of;  // of each tile
  std::vector<Run> runs;
  std::vector<BlockTask> tasks;
  long panels = 0, elements = 0;
};

// Two segments of one module add to the same rows, so they never share a chunk.
inline std::vector<Chunk> gather_chunks(const Layer& l, const std::vector<Tile>& tiles, long max_panels,
                                        long max_elements) {
  std::vector<Chunk> chunks;
  for (const Tile& tile : tiles) {
    long panels = ceil_div(tile.rows, kPanel);
    bool continues = false, fits = false;
    if (!chunks.empty()) {
      const Chunk& chunk = chunks.back();
      const Run& last = chunk.runs.back();
      continues = last.module == tile.module && last.begin == tile.begin;
      long blocks = continues ? last.end - last.begin : tile.end - tile.begin;
      fits = (continues || last.module != tile.module) && chunk.panels + panels <= max_panels &&
             chunk.elements + panels * kPanel * blocks * l.B <= max_elements;
    }
    if (!fits) chunks.emplace_back();
    Chunk& chunk = chunks.back();
    if (!fits || !continues)
      chunk.runs.push_back({tile.module, tile.row, 0, tile.begin, tile.end, chunk.panels, chunk.elements});
    Run& run = chunk.runs.back();
    run.rows += tile.rows;
    chunk.tiles.push_back(tile);
    chunk.run_of.push_back(chunk.runs.size() - 1);
    chunk.panels += panels;
    chunk.elements += panels * kPanel * (run.end - run.begin) * l.B;
  }
  return chunks;
}

// The chunk's block tasks, longest first. `written` says of all blocks whether an earlier chunk has left something.
inline void list_tasks(const Layer& l, Chunk& chunk, std::vector<char>& written) {
  for (bool down : {false, true})
    for (size_t r = 0; r < chunk.runs.size(); ++r) {
      const Run& run = chunk.runs[r];
      for (long j = run.begin; j < run.end; ++j) {
        char& had = written[l.start[run.module] + j];
        chunk.tasks.push_back({long(r), j, down, bool(had)});
        if (down) had = true;
      }
    }
}

struct Gradients {
  float *gate, *up, *down, *weight;  // of the blocks and of the routing weights
  float* rows;                       // [M, D] of each row's token
};

// What the tiles of a chunk leave for its blocks.
struct ChunkArrays {
  ChunkArrays(const Layer& l, float* data, long max_panels, long max_elements) : rows(max_panels * kPanel) {
    x = data;
    dy = x + rows * l.D;
    dgate = dy + rows * ceil_div(l.D, kPanel) * kPanel;
    dup = dgate + max_elements + kPanel;
    hidden = dup + max_elements + kPanel;
  }

  // Of block j of a run, from the run's row `row` on.
  static long at(const Layer& l, const Run& run, long j, long row) {
    return run.element + ((j - run.begin) * run.padded_rows() + row) * l.B;
  }
  const float* dy_of(long column, long panel) const { return dy + (column / kPanel * rows + panel * kPanel) * kPanel; }

  long rows;
  float* x;             // panels of D numbers
  float* dy;            // kPanel columns at a time: [rows][kPanel]
  float *dgate, *dup;   // of the products: for each block [rows][B]
  float* hidden;        // times the routing weight: for each block panels of B numbers
};

// Scratch: panels of 2 D + 3 B + 2 numbers.
inline void backward_tile(const Layer& l, const float* dy_TD, const Tile& tile, const Run& run, const Kept& kept,
                          const ChunkArrays& chunk, float* scratch, const Gradients& out) {
  long panels = ceil_div(tile.rows, kPanel), before = tile.row - run.row, keep = kept.at(l, tile);
  long panel = run.panel + before / kPanel;
  float* x = chunk.x + panel * l.D * kPanel;
  float* dy = scratch;
  float* dx = dy + panels * l.D * kPanel;
  float* dgate = dx + panels * l.D * kPanel;
  float* dup = dgate + panels * l.B * kPanel;
  float* dhidden = dup + panels * l.B * kPanel;
  float* weight = dhidden + panels * l.B * kPanel;
  float* dweight = weight + panels * kPanel;
  tile_to_panels(l, l.h, tile, x);
  tile_to_panels(l, dy_TD, tile, dy);
  for (long r = 0; r < tile.rows; ++r) {
    const float* from = dy_TD + l.token(tile.row + r) * l.D;
    for (long d = 0; d < l.D; d += kPanel)
      std::copy_n(from + d, std::min<long>(kPanel, l.D - d), const_cast<float*>(chunk.dy_of(d, panel)) + r * kPanel);
  }
  for (long r = 0; r < panels * kPanel; ++r) {
    weight[r] = r < tile.rows ? l.weight[l.order[tile.row + r]] : 0.f;
    dweight[r] = 0.f;
  }
  for (long j = tile.begin; j < tile.end; ++j) {
    long n = l.start[tile.module] + j, users = l.users(tile.module, j, tile.row, tile.rows);
    long place = ChunkArrays::at(l, run, j, before);
    const float *gate = dgate, *up = dup;
    if (keep >= 0) {
      gate = kept.gate + keep, up = kept.up + keep;
      keep += ceil_div(users, kPanel) * l.B * kPanel;
    } else {
      panel_product(l.B, {l.gate + n * l.D * l.B, 1, l.B, 0}, x, dgate, l.D, users, false);
      panel_product(l.B, {l.up + n * l.D * l.B, 1, l.B, 0}, x, dup, l.D, users, false);
    }
    panel_product(l.B, {l.down + n * l.D * l.B, l.D, 1, 0}, dy, dhidden, l.D, users, false);
    for (long first = 0; first < users; first += kLanes) {
      IntVec own = lanes_below(users - first);
      long at = first / kPanel * l.B * kPanel + first % kPanel;
      float* hidden = chunk.hidden + place + at;
      Vec w = load(weight + first), dw = load(dweight + first);
      for (long unit = 0; unit < l.B; ++unit, at += kPanel, hidden += kPanel) {
        Activated act = activate(l.activation, load(gate + at));
        Vec linear = load(up + at), d = load(dhidden + at), value = act.value * linear;
        dw += own ? value * d : Vec{};
        d *= w;
        store(hidden, value * w);
        store(dgate + at, own ? act.slope * d * linear : Vec{});
        store(dup + at, own ? act.value * d : Vec{});
      }
      store(dweight + first, dw);
    }
    panels_to_rows(dgate, users, l.B, chunk.dgate + place, false);
    panels_to_rows(dup, users, l.B, chunk.dup + place, false);
    panel_product(l.D, {l.gate + n * l.D * l.B, l.B, 1, 0}, dgate, dx, l.B, users, j > tile.begin);
    panel_product(l.D, {l.up + n * l.D * l.B, l.B, 1, 0}, dup, dx, l.B, users, true);
  }
  bool again = tile.begin > 0;
  panels_to_rows(dx, tile.rows, l.D, out.rows + tile.row * l.D, again);
  for (long r = 0; r < tile.rows; ++r) {
    float& to = out.weight[l.order[tile.row + r]];
    to = dweight[r] + (again ? to : 0.f);
  }
}

// Columns [begin, end) of a matrix, in slices of whole vectors that are as wide as a panel at most and differ by one.
struct Slices {
  explicit Slices(long columns) : columns(columns), count(ceil_div(columns, kPanel)) {}
  long begin(long i) const { return std::min(columns, ceil_div(columns, kLanes) * i / count * kLanes); }
  long columns, count;
};

inline void backward_block(const Layer& l, const Run& run, const BlockTask& task, const ChunkArrays& chunk,
                           const Gradients& out) {
  long j = task.block, size = l.D * l.B, n = l.start[run.module] + j;
  long users = l.users(run.module, j, run.row, run.rows), place = ChunkArrays::at(l, run, j, 0);
  long depth = kPanelStays ? equal_depth(users, kPanel) : users;
  for (long first = 0; first < users; first += depth) {  // tokens, which are what is summed over
    long tokens = std::min(depth, users - first);
    bool add = task.add || first > 0;
    if (task.down) {
      for_each_tile(l.B, ceil_div(l.D, kPanel), [&](long unit, auto rows, long panel) {
        long column = panel * kPanel;
        Left hidden{chunk.hidden + place + first * l.B + unit * kPanel, kPanel, 1, l.B * kPanel};
        Right dy{chunk.dy_of(column, run.panel) + first * kPanel, kPanel, kPanel * kPanel};
        float* to = out.down + n * size + unit * l.D + column;
        slice_product<rows>(hidden, dy, to, l.D, std::min<long>(kPanel, l.D - column), tokens, add);
      });
      continue;
    }
    Slices slices(l.B);
    for_each_tile(l.D, 2 * slices.count, [&](long d, auto rows, long slice) {  // of gate, then of up
      bool up = slice >= slices.count;
      long column = slices.begin(slice % slices.count), end = slices.begin(slice % slices.count + 1);
      Left x{chunk.x + (run.panel * l.D + d) * kPanel + first * l.D, kPanel, 1, l.D * kPanel};
      Right d_hidden{(up ? chunk.dup : chunk.dgate) + place + first * l.B + column, l.B, kPanel * l.B};
      float* to = (up ? out.up : out.gate) + n * size + d * l.B + column;
      slice_product<rows>(x, d_hidden, to, l.B, end - column, tokens, add);
    });
  }
}

}  // namespace moe_lab
