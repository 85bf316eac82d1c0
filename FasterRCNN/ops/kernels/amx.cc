// Convolutions and products of matrices in bfloat16 on the matrix unit of Intel's processors (AMX), with bias and ReLU.
//
// ops/amx.py says where they are used.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "kernel.h"

#if defined(__x86_64__) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define COMPILES_AMX
#ifndef __clang__  // GCC takes the undefined operands within its own intrinsics for a mistake
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using namespace tensorflow;  // NOLINT: as TensorFlow's own operations

#ifdef COMPILES_AMX

#define FOR_AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")))

// A tile holds kSide rows of 64 bytes: of inputs kSide cells × kDepth channels, of sums kSide cells × kSide channels,
// of a kernel kDepth input × kSide output channels, two input channels of a pair side by side.
constexpr int64_t kSide = 16;
constexpr int64_t kDepth = 32;
// A block of sums is two tiles high and two wide; two tiles of the kernel meet two of the input.
constexpr int64_t kCells = 2 * kSide;
constexpr int64_t kOutputs = 2 * kSide;
constexpr int64_t kKernelStep = kDepth * kOutputs;

// Linux grants the unit's registers to a process that asks.
bool AskForAmx() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  constexpr int kAskPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kAmxBf16) || !(d & kAmxTile)) return false;
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512bf16"))
    return false;
  return syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
}

// The compiler does not see all that the unit's instructions read and write: what is at `memory` was written before.
INLINE void KeepOrder(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {kSide, kSide, kSide, kSide, kSide, kSide, kSide, kSide};
};

// The shapes of the tiles while it lives; then those that the thread had are back.
class UsesTiles {
 public:
  FOR_AMX UsesTiles() {
    const TileShapes shapes;
    KeepOrder(&before_);
    _tile_storeconfig(&before_);
    KeepOrder(&shapes);
    _tile_loadconfig(&shapes);
  }
  FOR_AMX ~UsesTiles() {
    KeepOrder(&before_);
    if (before_.palette) _tile_loadconfig(&before_);
    else _tile_release();
  }

 private:
  TileShapes before_;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// For tiles: rows that begin within a line of the cache take twice as long.
template <typename T>
std::unique_ptr<T[], Free> Aligned(int64_t count) {
  return std::unique_ptr<T[], Free>(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
}

FOR_AMX INLINE void ZeroSums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

constexpr int64_t kSumsStride = kOutputs * sizeof(float);

FOR_AMX INLINE void LoadSums(const float* sums) {
  _tile_loadd(0, sums, kSumsStride);
  _tile_loadd(1, sums + kSide, kSumsStride);
  _tile_loadd(2, sums + kSide * kOutputs, kSumsStride);
  _tile_loadd(3, sums + kSide * kOutputs + kSide, kSumsStride);
}

FOR_AMX INLINE void StoreSums(float* sums) {
  _tile_stored(0, sums, kSumsStride);
  _tile_stored(1, sums + kSide, kSumsStride);
  _tile_stored(2, sums + kSide * kOutputs, kSumsStride);
  _tile_stored(3, sums + kSide * kOutputs + kSide, kSumsStride);
  KeepOrder(sums);
}

// Adds to the sums: two tiles of cells, each `stride` numbers after the other, times `depth` rows of the kernel.
FOR_AMX INLINE void AddProducts(const bfloat16* first, const bfloat16* second, int64_t stride, int64_t depth,
                                const bfloat16* kernel) {
  const int64_t bytes = stride * sizeof(bfloat16);
  for (int64_t k = 0; k < depth; k += kDepth, kernel += kKernelStep) {
    for (int64_t ahead = kKernelStep; ahead < 2 * kKernelStep; ahead += kDepth)
      _mm_prefetch(kernel + ahead, _MM_HINT_T0);
    _tile_loadd(4, first + k, bytes);
    _tile_loadd(6, kernel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, kernel + kKernelStep / 2, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, second + k, bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// kOutputs sums of a cell become output.
FOR_AMX INLINE void Finish(const float* sums, const float* bias, bool relu, bfloat16* to) {
  __m512 low = _mm512_add_ps(_mm512_load_ps(sums), _mm512_loadu_ps(bias));
  __m512 high = _mm512_add_ps(_mm512_load_ps(sums + kSide), _mm512_loadu_ps(bias + kSide));
  if (relu) {  // in this order what is no number stays so
    low = _mm512_max_ps(_mm512_setzero_ps(), low);
    high = _mm512_max_ps(_mm512_setzero_ps(), high);
  }
  const __m512bh rounded = _mm512_cvtne2ps_pbh(high, low);
  std::copy_n(reinterpret_cast<const char*>(&rounded), sizeof(rounded), reinterpret_cast<char*>(to));
}

// A convolution at stride 1 with zeros around. A block of sums is kRows×kSide cells of the map.
struct Convolution {
  static constexpr int64_t kRows = 2;

  int64_t height, width, channels, outputs, size;
  bool relu;
  const bfloat16* map;
  const bfloat16* kernel;
  const float* bias;
  bfloat16* to;

  int64_t PanelWidth() const { return kSide + size - 1; }
  int64_t PanelRows() const { return kRows + size - 1; }
  int64_t BlocksOfRow() const { return (width + kSide - 1) / kSide; }
  int64_t BlocksOfImage() const { return (height + kRows - 1) / kRows * BlocksOfRow(); }

  // What a block reads, zero beyond the map: PanelRows×PanelWidth×channels.
  void CopyPanel(const bfloat16* image, int64_t y, int64_t x, bfloat16* panel) const {
    const int64_t before = size / 2, columns = PanelWidth();
    const int64_t left = std::max<int64_t>(0, before - x), right = std::min(columns, width + before - x);
    for (int64_t row = y - before; row < y - before + PanelRows(); ++row, panel += columns * channels) {
      if (row < 0 || row >= height) {
        std::fill_n(panel, columns * channels, bfloat16(0));
        continue;
      }
      const bfloat16* from = image + (row * width + x - before) * channels;
      std::fill_n(panel, left * channels, bfloat16(0));
      std::copy(from + left * channels, from + right * channels, panel + left * channels);
      std::fill_n(panel + right * channels, (columns - right) * channels, bfloat16(0));
    }
  }

  FOR_AMX void SumBlock(const bfloat16* panel, int64_t output, float* sums) const {
    const int64_t of_row = PanelWidth() * channels;
    const bfloat16* of_kernel = kernel + output * size * size * channels;
    ZeroSums();
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j, of_kernel += channels * kOutputs) {
        const bfloat16* first = panel + i * of_row + j * channels;
        AddProducts(first, first + of_row, channels, channels, of_kernel);
      }
    }
    StoreSums(sums);
  }

  FOR_AMX void Run(int64_t begin, int64_t end) const {
    const UsesTiles tiles;
    const auto panel = Aligned<bfloat16>(PanelRows() * PanelWidth() * channels);
    const auto sums = Aligned<float>(kCells * kOutputs);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t image = block / BlocksOfImage() * height * width, of_image = block % BlocksOfImage();
      const int64_t y = of_image / BlocksOfRow() * kRows, x = of_image % BlocksOfRow() * kSide;
      CopyPanel(map + image * channels, y, x, panel.get());
      KeepOrder(panel.get());
      for (int64_t output = 0; output < outputs; output += kOutputs) {
        SumBlock(panel.get(), output, sums.get());
        for (int64_t i = 0; i < std::min(kRows, height - y); ++i)
          for (int64_t j = 0; j < std::min(kSide, width - x); ++j)
            Finish(sums.get() + (i * kSide + j) * kOutputs, bias + output, relu,
                   to + (image + (y + i) * width + x + j) * outputs + output);
      }
    }
  }
};

// A product of matrices. Its sums are made in squares, whose parts of both matrices stay in a core's cache.
struct Product {
  static constexpr int64_t kLeastSquare = 64, kGreatestSquare = 256;  // multiples of kCells and kOutputs
  static constexpr int64_t kPart = 512;  // of the depth that is summed before the next, a multiple of kDepth

  int64_t cells, depth, outputs;
  bool relu;
  const bfloat16* matrix;
  const bfloat16* kernel;
  const float* bias;
  bfloat16* to;
  int64_t square = kGreatestSquare;

  int64_t SquaresOfRow() const { return (outputs + square - 1) / square; }
  int64_t Squares() const { return (cells + square - 1) / square * SquaresOfRow(); }

  // So many squares that every thread has one.
  void ShareAmong(int threads) {
    while (Squares() < threads && square > kLeastSquare) square /= 2;
  }

  // kCells×kPart numbers of the matrix, zero beyond its last row.
  void CopyPanel(int64_t cell, int64_t k, int64_t part, bfloat16* panel) const {
    for (int64_t i = cell; i < cell + kCells; ++i, panel += kPart) {
      if (i < cells) std::copy_n(matrix + i * depth + k, part, panel);
      else std::fill_n(panel, part, bfloat16(0));
    }
  }

  FOR_AMX void SumSquare(int64_t cell, int64_t output, bfloat16* panel, float* sums) const {
    for (int64_t k = 0; k < depth; k += kPart) {
      const int64_t part = std::min(kPart, depth - k);
      float* of_block = sums;
      for (int64_t i = cell; i < std::min(cell + square, cells); i += kCells) {
        CopyPanel(i, k, part, panel);
        KeepOrder(panel);
        for (int64_t j = output; j < std::min(output + square, outputs); j += kOutputs) {
          if (k) LoadSums(of_block);
          else ZeroSums();
          AddProducts(panel, panel + kSide * kPart, kPart, part, kernel + j * depth + k * kOutputs);
          StoreSums(of_block);
          of_block += kCells * kOutputs;
        }
      }
    }
  }

  FOR_AMX void Run(int64_t begin, int64_t end) const {
    const UsesTiles tiles;
    const auto panel = Aligned<bfloat16>(kCells * kPart);
    const auto sums = Aligned<float>(square * square);
    for (int64_t number = begin; number < end; ++number) {
      const int64_t cell = number / SquaresOfRow() * square, output = number % SquaresOfRow() * square;
      SumSquare(cell, output, panel.get(), sums.get());
      const float* of_block = sums.get();
      for (int64_t i = cell; i < std::min(cell + square, cells); i += kCells)
        for (int64_t j = output; j < std::min(output + square, outputs); j += kOutputs, of_block += kCells * kOutputs)
          for (int64_t row = 0; row < std::min(kCells, cells - i); ++row)
            Finish(of_block + row * kOutputs, bias + j, relu, to + (i + row) * outputs + j);
    }
  }
};

// Both operations: inputs …×C, the kernel (C'/32)×k×k×(C/32)×1024 (a product's k is 1), the bias C'.
class AmxOperation : public OpKernel {
 public:
  explicit AmxOperation(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("relu", &relu_));
    OP_REQUIRES(context, AskForAmx(), absl::UnimplementedError("this processor has no AMX for bfloat16"));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &inputs = context->input(0), &kernel = context->input(1), &bias = context->input(2);
    const int64_t size = kernel.dims() == 5 ? kernel.dim_size(1) : 0;
    const bool fits = inputs.dims() == Rank() && size % 2 == 1 && (Rank() == 4 || size == 1) &&
                      kernel.dim_size(2) == size && kernel.dim_size(3) > 0 &&
                      kernel.dim_size(3) * kDepth == inputs.dim_size(Rank() - 1) &&
                      kernel.dim_size(4) == kKernelStep && bias.dims() == 1 &&
                      bias.dim_size(0) == kernel.dim_size(0) * kOutputs;
    OP_REQUIRES(context, fits,
                Invalid("the input must be ", Rank() == 4 ? "B×h×w×C" : "R×C", ", the kernel (C'/32)×k×k×(C/32)×1024 ",
                        Rank() == 4 ? "with odd k" : "with k 1", ", the bias C': got ", inputs.shape().DebugString(),
                        ", ", kernel.shape().DebugString(), " and ", bias.shape().DebugString()));
    TensorShape shape = inputs.shape();
    shape.set_dim(Rank() - 1, bias.dim_size(0));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    Run(context, inputs, kernel, bias, output);
  }

 protected:
  virtual int Rank() const = 0;
  virtual void Run(OpKernelContext* context, const Tensor& inputs, const Tensor& kernel, const Tensor& bias,
                   Tensor* output) const = 0;
  bool relu_;
};

// Cycles of `products` multiplications.
constexpr int64_t Cycles(int64_t products) { return std::max<int64_t>(1, products / 256); }

class AmxConvolution : public AmxOperation {
 public:
  using AmxOperation::AmxOperation;

 protected:
  int Rank() const override { return 4; }
  void Run(OpKernelContext* context, const Tensor& map, const Tensor& kernel, const Tensor& bias,
           Tensor* output) const override {
    const Convolution run{map.dim_size(1), map.dim_size(2), map.dim_size(3), bias.dim_size(0), kernel.dim_size(1),
                          relu_, map.flat<bfloat16>().data(), kernel.flat<bfloat16>().data(),
                          bias.flat<float>().data(), output->flat<bfloat16>().data()};
    InParallel(context, map.dim_size(0) * run.BlocksOfImage(), Cycles(kCells * kernel.NumElements()),
               [&run](int64_t begin, int64_t end) { run.Run(begin, end); });
  }
};

class AmxProduct : public AmxOperation {
 public:
  using AmxOperation::AmxOperation;

 protected:
  int Rank() const override { return 2; }
  void Run(OpKernelContext* context, const Tensor& matrix, const Tensor& kernel, const Tensor& bias,
           Tensor* output) const override {
    Product run{matrix.dim_size(0), matrix.dim_size(1), bias.dim_size(0), relu_, matrix.flat<bfloat16>().data(),
                kernel.flat<bfloat16>().data(), bias.flat<float>().data(), output->flat<bfloat16>().data()};
    run.ShareAmong(context->device()->tensorflow_cpu_worker_threads()->num_threads);
    InParallel(context, run.Squares(), Cycles(run.square * run.square * run.depth),
               [&run](int64_t begin, int64_t end) { run.Run(begin, end); });
  }
};

REGISTER_KERNEL_BUILDER(Name("AmxConvolution").Device(DEVICE_CPU), AmxConvolution);
REGISTER_KERNEL_BUILDER(Name("AmxProduct").Device(DEVICE_CPU), AmxProduct);

#else

bool AskForAmx() { return false; }

#endif

absl::Status ShapeOfOutput(tensorflow::shape_inference::InferenceContext* c) {
  tensorflow::shape_inference::ShapeHandle inputs, bias;
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 1, &inputs));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &bias));
  TF_RETURN_IF_ERROR(c->ReplaceDim(inputs, -1, c->Dim(bias, 0), &inputs));
  c->set_output(0, inputs);
  return absl::OkStatus();
}

}  // namespace

extern "C" bool HasAmx() {
  static const bool has = AskForAmx();
  return has;
}

REGISTER_OP("AmxConvolution")
    .Input("map: bfloat16")
    .Input("kernel: bfloat16")
    .Input("bias: float")
    .Output("convolved: bfloat16")
    .Attr("relu: bool")
    .SetShapeFn(ShapeOfOutput);

REGISTER_OP("AmxProduct")
    .Input("matrix: bfloat16")
    .Input("kernel: bfloat16")
    .Input("bias: float")
    .Output("product: bfloat16")
    .Attr("relu: bool")
    .SetShapeFn(ShapeOfOutput);
