// What is compiled for a CPU: the routed layer, exactly the routed blocks; the attention of whole rows, and of a chunk
// behind a cache; and products of a chunk's tokens. Each token's bits are independent of every other token, or of every
// other row.
//
// Tokens lie in the lanes of vectors and the blocks of the pool are read one number at a time, where they are: nothing
// of them is copied, padded or packed. These are the calls that XLA makes; layer.py, attention.py and dense.py describe
// their arguments.

#include "attention.h"
#include "backward.h"
#include "cached.h"
#include "dense.h"
#include "few.h"
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
  if (l.active <= kFewRows && kept_data->dimensions()[1] == 0) {
    FewRows(l).run(fresh(rows_out), workers);
    combine(l, rows_out->typed_data(), l.weight, fresh(y), workers);
    return ffi::Error::Success();
  }
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

Heads make_heads(Floats<4> q, const float* turned_k, Floats<4> v, Integers<2> segments, Floats<3> sin, Floats<3> cos,
                 float scale, float softcap, int32_t window) {
  Heads heads;
  heads.q = q.typed_data(), heads.k = turned_k, heads.v = v.typed_data(), heads.segments = segments.typed_data();
  heads.sin = sin.typed_data(), heads.cos = cos.typed_data();
  heads.B = q.dimensions()[0], heads.S = q.dimensions()[1], heads.H = q.dimensions()[2], heads.A = q.dimensions()[3];
  heads.G = v.dimensions()[2], heads.R = sin.dimensions()[2];
  heads.scale = scale, heads.softcap = softcap, heads.window = window;
  return heads;
}

ffi::Error attention(ffi::ThreadPool threads, Floats<4> q, Floats<4> k, Floats<4> v, Integers<2> segments,
                     Floats<3> sin, Floats<3> cos, Result<4> y, Result<4> turned_k, Result<3> tops, Result<3> shares,
                     Result<2> scratch, float scale, float softcap, int32_t window) {
  float* keys = fresh(turned_k);
  Heads heads = make_heads(q, keys, v, segments, sin, cos, scale, softcap, window);
  Workers workers(threads, scratch->dimensions()[0]);
  float* out = fresh(y);
  long panels = ceil_div(heads.S, kPanel);
  Stage turn{heads.B * heads.G, 0, [&](long i, int) {
               long row = i / heads.G, group = i % heads.G;
               for (long s = 0; s < heads.S; ++s)
                 heads.turn(k.typed_data() + heads.shared(row, s, group), row, s, false,
                            keys + (i * heads.S + s) * heads.A);
             }};
  Stage look{panels * heads.B * heads.H, 1, [&](long i, int worker) {
               long first = (panels - 1 - i / (heads.B * heads.H)) * kPanel;  // the dearest panels of all heads first
               long row = i / heads.H % heads.B, head = i % heads.H, at = (row * heads.H + head) * heads.S + first;
               attend(heads, Queries(heads, row, head, first), scratch->typed_data() + worker * scratch->dimensions()[1],
                      out, tops->typed_data() + at, shares->typed_data() + at);
             }};
  workers.run({turn, look});
  return ffi::Error::Success();
}

ffi::Error attention_backward(ffi::ThreadPool threads, Floats<4> q, Floats<4> turned_k, Floats<4> v,
                              Integers<2> segments, Floats<3> sin, Floats<3> cos, Floats<3> tops, Floats<3> shares,
                              Floats<4> dy, Result<4> dq, Result<4> dk, Result<4> dv, Result<2> scratch, float scale,
                              float softcap, int32_t window) {
  Heads heads = make_heads(q, turned_k.typed_data(), v, segments, sin, cos, scale, softcap, window);
  Workers workers(threads, scratch->dimensions()[0]);
  HeadGradients out{fresh(dq), fresh(dk), fresh(dv)};
  workers.run(heads.B * heads.G, [&](long i, int worker) {
    attend_backward(heads, i / heads.G, i % heads.G, dy.typed_data(), tops.typed_data(), shares.typed_data(),
                    scratch->typed_data() + worker * scratch->dimensions()[1], out);
  });
  return ffi::Error::Success();
}

ffi::Error cached_attention(ffi::ThreadPool threads, Floats<4> q, Floats<4> k, Floats<4> v, Floats<4>, Floats<4>,
                            Integers<2> segments, Integers<2> index, Integers<2> old_segments, Integers<1> length,
                            Integers<1> place, Result<4> y, Result<4> keys, Result<4> values, Result<2> scratch,
                            float scale, float softcap, int32_t window) {
  CachedHeads heads;
  heads.q = q.typed_data(), heads.k = k.typed_data(), heads.v = v.typed_data();
  heads.keys = keys->typed_data(), heads.values = values->typed_data();  // which hold what went in as the cache
  heads.segments = segments.typed_data(), heads.index = index.typed_data();
  heads.old_segments = old_segments.typed_data(), heads.length = length.typed_data();
  heads.place = place.typed_data();
  heads.B = q.dimensions()[0], heads.S = q.dimensions()[1], heads.H = q.dimensions()[2], heads.A = q.dimensions()[3];
  heads.G = k.dimensions()[2], heads.C = keys->dimensions()[2], heads.M = old_segments.dimensions()[1];
  heads.scale = scale, heads.softcap = softcap, heads.window = window;
  Workers workers(threads, scratch->dimensions()[0]);
  long panels = heads.panels();
  Stage look{heads.B * heads.G * panels, 0, [&](long i, int worker) {
               float* own = scratch->typed_data() + worker * scratch->dimensions()[1];
               long row = i / panels / heads.G, group = i / panels % heads.G;
               attend_cached(heads, row, group, i % panels * kPanel, own, y->typed_data());
             }};
  Stage keep{heads.B * heads.G, 1, [&](long i, int) { remember(heads, i / heads.G, i % heads.G); }};
  workers.run({look, keep});
  return ffi::Error::Success();
}

// Both ways to multiply: w [D, F], or with `turned` w [F, D]; float32 or bfloat16.
template <typename Weight>
ffi::Error multiply(ffi::ThreadPool threads, Floats<2> x, ffi::AnyBuffer w, Result<2> y, bool turned) {
  long T = x.dimensions()[0], D = x.dimensions()[1], F = y->dimensions()[1];
  auto* weight = static_cast<const Weight*>(w.untyped_data());
  Dense<Weight> d{x.typed_data(), weight, y->typed_data(), T, D, D, turned ? D : F, F};
  Workers workers(threads, F);
  long own = strip_columns(F, workers.count());
  workers.run(ceil_div(F, own), [&](long part, int) {
    long begin = part * own, end = std::min(F, begin + own);
    turned ? rows_product(d, begin, end) : columns_product(d, begin, end);
  });
  return ffi::Error::Success();
}

ffi::Error norm(ffi::ThreadPool threads, Floats<2> x, Floats<1> scale, Result<2> y, float eps) {
  constexpr long kTokens = 64;
  long T = x.dimensions()[0];
  Workers(threads, T).run(ceil_div(T, kTokens), [&](long part, int) {
    norm_rows(x.typed_data(), scale.typed_data(), eps, x.dimensions()[1], y->typed_data(), part * kTokens,
              std::min(T, (part + 1) * kTokens));
  });
  return ffi::Error::Success();
}

auto bind_heads() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats<4>>()
      .Arg<Floats<4>>()
      .Arg<Floats<4>>()
      .Arg<Integers<2>>()
      .Arg<Floats<3>>()
      .Arg<Floats<3>>();
}

auto bind_multiply() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats<2>>()
      .Arg<ffi::AnyBuffer>()
      .Ret<Floats<2>>()
      .Attr<bool>("turned");
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(moe_lab_attention, attention,
                              bind_heads()
                                  .Ret<Floats<4>>()
                                  .Ret<Floats<4>>()
                                  .Ret<Floats<3>>()
                                  .Ret<Floats<3>>()
                                  .Ret<Floats<2>>()
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int32_t>("window"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(moe_lab_attention_backward, attention_backward,
                              bind_heads()
                                  .Arg<Floats<3>>()
                                  .Arg<Floats<3>>()
                                  .Arg<Floats<4>>()
                                  .Ret<Floats<4>>()
                                  .Ret<Floats<4>>()
                                  .Ret<Floats<4>>()
                                  .Ret<Floats<2>>()
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int32_t>("window"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(moe_lab_cached_attention, cached_attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats<4>>()
                                  .Arg<Floats<4>>()
                                  .Arg<Floats<4>>()
                                  .Arg<Floats<4>>()
                                  .Arg<Floats<4>>()
                                  .Arg<Integers<2>>()
                                  .Arg<Integers<2>>()
                                  .Arg<Integers<2>>()
                                  .Arg<Integers<1>>()
                                  .Arg<Integers<1>>()
                                  .Ret<Floats<4>>()
                                  .Ret<Floats<4>>()
                                  .Ret<Floats<4>>()
                                  .Ret<Floats<2>>()
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int32_t>("window"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(moe_lab_multiply, multiply<float>, bind_multiply());
XLA_FFI_DEFINE_HANDLER_SYMBOL(moe_lab_multiply_narrow, multiply<Narrow>, bind_multiply());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    moe_lab_norm, norm,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats<2>>().Arg<Floats<1>>().Ret<Floats<2>>().Attr<float>("eps"));

// Tokens side by side in a panel, for whoever sizes the arrays.
extern "C" int moe_lab_panel() { return kPanel; }
