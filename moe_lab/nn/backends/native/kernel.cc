// The routed layer on a CPU: exactly the routed blocks, and each token's bits independent of every other token.
//
// Tokens lie in the lanes of vectors and the blocks of the pool are read one number at a time, where they are: nothing
// of them is copied, padded or packed. These are the two calls that XLA makes; layer.py describes their arguments.

#include "backward.h"
#include "forward.h"
#include "memory.h"

namespace ffi = xla::ffi;
using namespace moe_lab;

template <int rank>
using Floats = ffi::Buffer<ffi::F32, rank>;
template <int rank>
using Integers = ffi::Buffer<ffi::S32, rank>;
template <int rank>
using Result = ffi::Result<Floats<rank>>;

namespace {

template <typename Buffer>
float* fresh(ffi::Result<Buffer>& result) {
  return in_huge_pages(result->typed_data(), result->element_count());
}

Layer make_layer(Floats<2> h, Floats<3> gate, Floats<3> up, Floats<3> down, Floats<2> weight, Integers<1> order,
                 Integers<2> row, Integers<1> first, Integers<1> rows, Integers<1> start, Integers<1> count,
                 int32_t activation) {
  Layer l;
  l.h = h.typed_data(), l.gate = gate.typed_data(), l.up = up.typed_data(), l.down = down.typed_data();
  l.weight = weight.typed_data(), l.order = order.typed_data(), l.row = row.typed_data();
  l.first = first.typed_data(), l.rows = rows.typed_data();
  l.start = start.typed_data(), l.count = count.typed_data();
  l.T = h.dimensions()[0], l.D = h.dimensions()[1], l.K = weight.dimensions()[1];
  l.N = gate.dimensions()[0], l.B = gate.dimensions()[2], l.E = start.dimensions()[0];
  l.activation = static_cast<Activation>(activation);
  l.active = 0;
  for (long n = 0; n < l.N; ++n)
    if (l.rows[n] > 0) l.active = std::max<long>(l.active, l.first[n] + l.rows[n]);
  return l;
}

ffi::Error forward(ffi::ThreadPool threads, Floats<2> h, Floats<3> gate, Floats<3> up, Floats<3> down, Floats<2> weight,
                   Integers<1> order, Integers<2> row, Integers<1> first, Integers<1> rows, Integers<1> start,
                   Integers<1> count, Result<2> y, Result<2> kept_data, Result<2> rows_out, Result<2> scratch,
                   int32_t activation, int32_t tile_rows) {
  Layer l = make_layer(h, gate, up, down, weight, order, row, first, rows, start, count, activation);
  Workers workers(threads, scratch->dimensions()[0]);
  std::vector<Tile> tiles = cut(l, tile_rows, l.N);
  std::vector<long> order_of_work = dearest_first(tiles);
  Kept kept(l, tiles, fresh(kept_data), kept_data->dimensions()[1]);
  float* all_rows = fresh(rows_out);
  workers.run(tiles.size(), [&](long i, int worker) {
    float* own = scratch->typed_data() + worker * scratch->dimensions()[1];
    forward_tile(l, tiles[order_of_work[i]], kept, own, all_rows);
  });
  combine(l, all_rows, l.weight, fresh(y), workers);
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool threads, Floats<2> h, Floats<3> gate, Floats<3> up, Floats<3> down,
                    Floats<2> weight, Integers<1> order, Integers<2> row, Integers<1> first, Integers<1> rows,
                    Integers<1> start, Integers<1> count, Floats<2> dy, Floats<2> kept_data, Result<2> dh,
                    Result<3> dgate, Result<3> dup, Result<3> ddown, Result<2> dweight, Result<2> rows_out,
                    Result<2> scratch, Result<2> chunk_data, int32_t activation, int32_t tile_rows, int32_t segment,
                    int32_t max_panels, int32_t max_elements) {
  Layer l = make_layer(h, gate, up, down, weight, order, row, first, rows, start, count, activation);
  Workers workers(threads, scratch->dimensions()[0]);
  std::vector<Tile> tiles = cut(l, tile_rows, segment);
  Kept kept(l, tiles, const_cast<float*>(kept_data.typed_data()), kept_data.dimensions()[1]);
  Gradients out{fresh(dgate), fresh(dup), fresh(ddown), fresh(dweight), fresh(rows_out)};
  float* both_arrays = fresh(chunk_data);
  std::vector<Chunk> chunks = gather_chunks(l, tiles, max_panels, max_elements);
  std::vector<char> written(l.N, false);  // blocks whose gradient has a first part
  for (Chunk& chunk : chunks) list_tasks(l, chunk, written);
  std::fill_n(out.weight, l.T * l.K, 0.f);
  // While threads end the tiles of a chunk, others begin with the blocks of the one before: there are two sets of
  // arrays. Tiles wait for all earlier stages, blocks for all but the tiles that come just before them.
  std::vector<Stage> stages;
  auto arrays_of = [&](long c) {
    return ChunkArrays(l, both_arrays + c % 2 * chunk_data->dimensions()[1], max_panels, max_elements);
  };
  for (long c = 0; c <= long(chunks.size()); ++c) {
    if (c < long(chunks.size()))
      stages.push_back({long(chunks[c].tiles.size()), long(stages.size()), [&, c](long i, int worker) {
                          float* own = scratch->typed_data() + worker * scratch->dimensions()[1];
                          const Chunk& chunk = chunks[c];
                          backward_tile(l, dy.typed_data(), chunk.tiles[i], chunk.runs[chunk.run_of[i]], kept,
                                        arrays_of(c), own, out);
                        }});
    if (c == 0) continue;
    long tiles_before = c < long(chunks.size()) ? 1 : 0;
    stages.push_back({long(chunks[c - 1].tasks.size()), long(stages.size()) - tiles_before, [&, c](long i, int) {
                        const Chunk& chunk = chunks[c - 1];
                        backward_block(l, chunk.runs[chunk.tasks[i].run], chunk.tasks[i], arrays_of(c - 1), out);
                      }});
  }
  workers.run(std::move(stages));
  workers.run(l.N, [&](long n, int) {
    if (written[n]) return;
    for (float* w : {out.gate, out.up, out.down}) std::fill_n(w + n * l.D * l.B, l.D * l.B, 0.f);
  });
  combine(l, out.rows, nullptr, fresh(dh), workers);
  return ffi::Error::Success();
}

auto bind_layer() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats<2>>()
      .Arg<Floats<3>>()
      .Arg<Floats<3>>()
      .Arg<Floats<3>>()
      .Arg<Floats<2>>()
      .Arg<Integers<1>>()
      .Arg<Integers<2>>()
      .Arg<Integers<1>>()
      .Arg<Integers<1>>()
      .Arg<Integers<1>>()
      .Arg<Integers<1>>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(moe_lab_forward, forward,
                              bind_layer()
                                  .Ret<Floats<2>>()
                                  .Ret<Floats<2>>()
                                  .Ret<Floats<2>>()
                                  .Ret<Floats<2>>()
                                  .Attr<int32_t>("activation")
                                  .Attr<int32_t>("tile_rows"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(moe_lab_backward, backward,
                              bind_layer()
                                  .Arg<Floats<2>>()
                                  .Arg<Floats<2>>()
                                  .Ret<Floats<2>>()
                                  .Ret<Floats<3>>()
                                  .Ret<Floats<3>>()
                                  .Ret<Floats<3>>()
                                  .Ret<Floats<2>>()
                                  .Ret<Floats<2>>()
                                  .Ret<Floats<2>>()
                                  .Ret<Floats<2>>()
                                  .Attr<int32_t>("activation")
                                  .Attr<int32_t>("tile_rows")
                                  .Attr<int32_t>("segment")
                                  .Attr<int32_t>("max_panels")
                                  .Attr<int32_t>("max_elements"));

// Tokens side by side in a panel, for whoever sizes the arrays.
extern "C" int moe_lab_panel() { return kPanel; }
