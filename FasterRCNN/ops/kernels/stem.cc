// What a ResNet's stem does beside its convolution, on processors: pixels become numbers, and the pool.
//
// As ops/stem.py, which takes its place where this is not built, with the very results.
#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernel.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "vectors.h"

namespace {

using namespace tensorflow;  // NOLINT: as TensorFlow's own operations

constexpr int kColours = 3;
constexpr int kWindow = 3;
constexpr int kStride = 2;

// (pixel − mean) · scale of a colour. Of bytes, looked up.
template <typename From, typename To>
class Normalized {
 public:
  Normalized(const std::vector<float>& mean, const std::vector<float>& scale) : mean_(mean), scale_(scale) {
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
    OP_REQUIRES_OK(context, context->GetAttr("mean", &mean_));
    OP_REQUIRES_OK(context, context->GetAttr("scale", &scale_));
    OP_REQUIRES(context, mean_.size() == kColours && scale_.size() == kColours,
                Invalid("mean and scale must be three numbers each: got ", mean_.size(), " and ", scale_.size()));
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
    const Normalized<From, To> value(mean_, scale_);
    InParallel(context, image.dim_size(0) * height, width * kColours, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t in_image = row / height, at = row * width * kColours;
        const int64_t columns = row % height < size[2 * in_image] ? std::min<int64_t>(size[2 * in_image + 1], width) : 0;
        for (int64_t x = 0; x < columns; ++x)
          for (int c = 0; c < kColours; ++c) to[at + x * kColours + c] = value(pixels[at + x * kColours + c], c);
        std::fill(to + at + std::max<int64_t>(columns, 0) * kColours, to + at + width * kColours, To(0));
      }
    });
  }

 private:
  std::vector<float> mean_, scale_;
};

// Cells of a map of which windows are taken, from `before` ahead of its first row and column on.
struct Windows {
  int64_t height, width, channels, before;
};

// The greatest of a window, cells beyond the map being 0.
template <typename T>
INLINE void PoolWindow(const Windows& windows, const T* image, int64_t row, int64_t column, T* to) {
  const int64_t top = std::max<int64_t>(row, 0), bottom = std::min(row + kWindow, windows.height);
  const int64_t left = std::max<int64_t>(column, 0), right = std::min(column + kWindow, windows.width);
  const bool is_whole = bottom - top == kWindow && right - left == kWindow;
  const float least = is_whole ? -std::numeric_limits<float>::infinity() : 0.0f;
  const int64_t channels = windows.channels;
  int64_t c = 0;
  for (; c + kPair <= channels; c += kPair) {
    Pair greatest = {Floats{} + least, Floats{} + least};
    for (int64_t y = top; y < bottom; ++y)
      for (int64_t x = left; x < right; ++x) greatest.Max(Load(image + (y * windows.width + x) * channels + c));
    Store(greatest, to + c);
  }
  for (; c < channels; ++c) {
    float greatest = least;
    for (int64_t y = top; y < bottom; ++y)
      for (int64_t x = left; x < right; ++x)
        greatest = std::max(greatest, static_cast<float>(image[(y * windows.width + x) * channels + c]));
    to[c] = static_cast<T>(greatest);
  }
}

// A row of windows.
template <typename T>
FOR_EACH_PROCESSOR void PoolRow(const Windows& windows, const T* image, int64_t row, int64_t columns, T* to) {
  for (int64_t x = 0; x < columns; ++x)
    PoolWindow(windows, image, kStride * row - windows.before, kStride * x - windows.before, to + x * windows.channels);
}

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
    const int64_t rows = Count(windows.height), columns = Count(windows.width);
    Tensor* pooled;
    OP_REQUIRES_OK(context, context->allocate_output(0, {map.dim_size(0), rows, columns, windows.channels}, &pooled));
    const T* from = map.flat<T>().data();
    T* to = pooled->flat<T>().data();
    InParallel(context, map.dim_size(0) * rows, columns * windows.channels * 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        PoolRow(windows, from + i / rows * windows.height * windows.width * windows.channels, i % rows, columns,
                to + i * columns * windows.channels);
    });
  }

 private:
  int64_t Count(int64_t side) const {
    return std::max<int64_t>(0, side + before_ + after_ - kWindow + kStride) / kStride;
  }

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
    .SetShapeFn(tensorflow::shape_inference::UnchangedShape);

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
        if (!c->ValueKnown(of_map)) return c->UnknownDim();
        return c->MakeDim(std::max<int64_t>(0, c->Value(of_map) + before + after - kWindow + kStride) / kStride);
      };
      c->set_output(0, c->MakeShape({c->Dim(map, 0), side(1), side(2), c->Dim(map, 3)}));
      return absl::OkStatus();
    });
