// What a ResNet's stem does beside its convolution, on processors: pixels become numbers, and the pool.
//
// As ops/stem.py, which takes its place where this is not built, with the same finite numbers.
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernel.h"

namespace {

using namespace tensorflow;  // NOLINT: as TensorFlow's own operations

constexpr int kColours = 3;
constexpr int kWindow = 3;
constexpr int kStride = 2;

// (pixel − mean) · scale of a colour. Of bytes, looked up.
template <typename From, typename To>
class Normalized {
 public:
  void Set(const std::vector<float>& mean, const std::vector<float>& scale) {
    mean_ = mean, scale_ = scale;
    if constexpr (std::is_same_v<From, uint8_t>)
      for (int c = 0; c < kColours; ++c)
        for (int value = 0; value < 256; ++value) table_[c][value] = Compute(value, c);
  }

  INLINE To operator()(From pixel, int colour) const {
    if constexpr (std::is_same_v<From, uint8_t>) return table_[colour][pixel];
    else return Compute(pixel, colour);
  }

 private:
  INLINE To Compute(float pixel, int colour) const {
    return static_cast<To>((pixel - mean_[colour]) * scale_[colour]);
  }

  std::vector<float> mean_, scale_;
  To table_[kColours][256];
};

template <typename From, typename To>
class NormalizePixels : public OpKernel {
 public:
  explicit NormalizePixels(OpKernelConstruction* context) : OpKernel(context) {
    std::vector<float> mean, scale;
    OP_REQUIRES_OK(context, context->GetAttr("mean", &mean));
    OP_REQUIRES_OK(context, context->GetAttr("scale", &scale));
    OP_REQUIRES(context, mean.size() == kColours && scale.size() == kColours,
                Invalid("mean and scale must be three numbers each: got ", mean.size(), " and ", scale.size()));
    value_.Set(mean, scale);
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &image = context->input(0), &sizes = context->input(1);
    OP_REQUIRES(context, image.dims() == 4 && image.dim_size(3) == kColours && sizes.dims() == 2 &&
                             sizes.dim_size(0) == image.dim_size(0) && sizes.dim_size(1) == 2,
                Invalid("image must be B×H×W×3, image_size B×2: got ", image.shape().DebugString(), " and ",
                        sizes.shape().DebugString()));
    Tensor* normalized;
    OP_REQUIRES_OK(context, context->allocate_output(0, image.shape(), &normalized));
    const int64_t height = image.dim_size(1), width = image.dim_size(2);
    const From* pixels = image.flat<From>().data();
    const int32_t* size = sizes.flat<int32_t>().data();
    To* to = normalized->flat<To>().data();
    InParallel(context, image.dim_size(0) * height, width * kColours, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int32_t* of_image = size + row / height * 2;
        const int64_t own = row % height < of_image[0] ? of_image[1] : 0;
        const int64_t columns = std::max<int64_t>(0, std::min(own, width)), at = row * width * kColours;
        for (int64_t x = 0; x < columns; ++x)
          for (int c = 0; c < kColours; ++c) to[at + x * kColours + c] = value_(pixels[at + x * kColours + c], c);
        std::fill(to + at + columns * kColours, to + at + width * kColours, To(0));
      }
    });
  }

 private:
  Normalized<From, To> value_;
};

// A map, and how many rows and columns of zeros the windows begin ahead of it.
struct Windows {
  int64_t height, width, channels, before;
};

int64_t NumWindows(int64_t side, int64_t padding) {
  return std::max<int64_t>(0, side + padding - kWindow + kStride) / kStride;
}

// A row of windows, of numbers not below zero: their bits, taken for an integer, have their order.
template <typename Bits>
INLINE void PoolCells(const Windows& windows, const Bits* image, int64_t row, int64_t columns, Bits* __restrict to) {
  const int64_t channels = windows.channels, y = kStride * row - windows.before;
  std::fill(to, to + columns * channels, Bits{0});
  for (int64_t i = std::max<int64_t>(y, 0); i < std::min(y + kWindow, windows.height); ++i) {
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t x = kStride * column - windows.before;
      for (int64_t j = std::max<int64_t>(x, 0); j < std::min(x + kWindow, windows.width); ++j) {
        const Bits* __restrict from = image + (i * windows.width + j) * channels;
        for (int64_t c = 0; c < channels; ++c)
          to[column * channels + c] = std::max(to[column * channels + c], from[c]);
      }
    }
  }
}

#define FOR_TYPE(Bits)                                                                                      \
  FOR_EACH_PROCESSOR void PoolRow(const Windows& windows, const Bits* image, int64_t row, int64_t columns, \
                                  Bits* to) {                                                               \
    PoolCells(windows, image, row, columns, to);                                                            \
  }
FOR_TYPE(int16_t)
FOR_TYPE(int32_t)
#undef FOR_TYPE

template <typename T>
class StemPool : public OpKernel {
 public:
  explicit StemPool(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("before", &before_));
    OP_REQUIRES_OK(context, context->GetAttr("after", &after_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& map = context->input(0);
    OP_REQUIRES(context, map.dims() == 4, Invalid("map must be B×h×w×C: got ", map.shape().DebugString()));
    const Windows windows{map.dim_size(1), map.dim_size(2), map.dim_size(3), before_};
    const int64_t rows = NumWindows(windows.height, before_ + after_);
    const int64_t columns = NumWindows(windows.width, before_ + after_);
    Tensor* pooled;
    OP_REQUIRES_OK(context, context->allocate_output(0, {map.dim_size(0), rows, columns, windows.channels}, &pooled));
    using Bits = std::conditional_t<sizeof(T) == sizeof(int16_t), int16_t, int32_t>;
    const Bits* from = reinterpret_cast<const Bits*>(map.flat<T>().data());
    Bits* to = reinterpret_cast<Bits*>(pooled->flat<T>().data());
    InParallel(context, map.dim_size(0) * rows, columns * windows.channels, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        PoolRow(windows, from + i / rows * windows.height * windows.width * windows.channels, i % rows, columns,
                to + i * columns * windows.channels);
    });
  }

 private:
  int before_, after_;
};

#define REGISTER(T)                                                                                                  \
  REGISTER_KERNEL_BUILDER(                                                                                           \
      Name("NormalizePixels").Device(DEVICE_CPU).TypeConstraint<uint8_t>("From").TypeConstraint<T>("To"),            \
      NormalizePixels<uint8_t, T>)                                                                                   \
  REGISTER_KERNEL_BUILDER(                                                                                           \
      Name("NormalizePixels").Device(DEVICE_CPU).TypeConstraint<float>("From").TypeConstraint<T>("To"),              \
      NormalizePixels<float, T>)                                                                                     \
  REGISTER_KERNEL_BUILDER(Name("StemPool").Device(DEVICE_CPU).TypeConstraint<T>("T"), StemPool<T>)
REGISTER(float);
REGISTER(bfloat16);
REGISTER(Eigen::half);
#undef REGISTER

}  // namespace

REGISTER_OP("NormalizePixels")
    .Input("image: From")
    .Input("image_size: int32")
    .Output("normalized: To")
    .Attr("From: {uint8, float}")
    .Attr("To: {float, bfloat16, half}")
    .Attr("mean: list(float)")
    .Attr("scale: list(float)")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      tensorflow::shape_inference::ShapeHandle image;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &image));
      TF_RETURN_IF_ERROR(c->ReplaceDim(image, 3, c->MakeDim(kColours), &image));
      c->set_output(0, image);
      return absl::OkStatus();
    });

REGISTER_OP("StemPool")
    .Input("map: T")
    .Output("pooled: T")
    .Attr("T: {float, bfloat16, half}")
    .Attr("before: int >= 0")
    .Attr("after: int >= 0")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      tensorflow::shape_inference::ShapeHandle map;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &map));
      int64_t before, after;
      TF_RETURN_IF_ERROR(c->GetAttr("before", &before));
      TF_RETURN_IF_ERROR(c->GetAttr("after", &after));
      const auto side = [&](int i) {
        const auto of_map = c->Dim(map, i);
        return c->ValueKnown(of_map) ? c->MakeDim(NumWindows(c->Value(of_map), before + after)) : c->UnknownDim();
      };
      c->set_output(0, c->MakeShape({c->Dim(map, 0), side(1), side(2), c->Dim(map, 3)}));
      return absl::OkStatus();
    });
