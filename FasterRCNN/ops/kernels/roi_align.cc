// ROIAlign over all maps of a feature pyramid at once, and its gradient, on processors.
//
// As ops/pooling_matrix.py, which takes its place where this is not built. Every sum is made by one thread in a fixed
// order, so that results are the same each time and with any number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>

#include "kernel.h"

namespace {

using namespace tensorflow;  // NOLINT: as TensorFlow's own operations

constexpr int kLanes = 16;
constexpr int kPair = 2 * kLanes;
constexpr float kMostSamples = 1 << 12;  // in a bin, along one axis
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));

// kPair channels, in any order that Load and Store agree on.
struct Pair {
  Floats first, second;

  INLINE void Add(float weight, const Pair& other) {
    first += weight * other.first;
    second += weight * other.second;
  }
};

template <typename To, typename From>
INLINE To SameBits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename T>
INLINE Pair Load(const T* from) {
  Pair to;
  for (int i = 0; i < kLanes; ++i) {
    to.first[i] = static_cast<float>(from[i]);
    to.second[i] = static_cast<float>(from[kLanes + i]);
  }
  return to;
}

template <>
INLINE Pair Load(const float* from) {
  Pair to;  // its halves one by one: GCC copies the whole through memory
  std::memcpy(&to.first, from, sizeof(to.first));
  std::memcpy(&to.second, from + kLanes, sizeof(to.second));
  return to;
}

// Of two neighbours in a word, the bits of one are those of its float32 once the other is cleared or shifted out.
template <>
INLINE Pair Load(const bfloat16* from) {
  Words words;
  std::memcpy(&words, from, sizeof(words));
  return {SameBits<Floats>(words << 16), SameBits<Floats>(words & 0xffff0000)};
}

template <typename T>
INLINE void Store(const Pair& from, T* to) {
  for (int i = 0; i < kLanes; ++i) {
    to[i] = static_cast<T>(from.first[i]);
    to[kLanes + i] = static_cast<T>(from.second[i]);
  }
}

template <>
INLINE void Store(const Pair& from, float* to) {
  std::memcpy(to, &from.first, sizeof(from.first));
  std::memcpy(to + kLanes, &from.second, sizeof(from.second));
}

// To the nearest bfloat16, of two the even one: the upper half of each word.
INLINE Words Rounded(const Floats& from) {
  const Words words = SameBits<Words>(from);
  // No comparison, which GCC makes number by number where vectors are shorter. That wraps around where it is no number.
  const Words is_nan = -((0x7f800000 - (words & 0x7fffffff)) >> 31);
  return (is_nan & 0x7fc00000) | (~is_nan & (words + 0x7fff + ((words >> 16) & 1)));
}

template <>
INLINE void Store(const Pair& from, bfloat16* to) {
  const Words words = (Rounded(from.first) >> 16) | (Rounded(from.second) & 0xffff0000);
  std::memcpy(static_cast<void*>(to), &words, sizeof(words));
}

// The cells that the bins of a box read along one axis, with their weights. Bin i has those from start[i] to
// start[i + 1].
struct Axis {
  std::vector<int64_t> start, cell;
  std::vector<float> weight;

  // low, high: the box, in cells of a map of num_cells.
  INLINE void Set(float low, float high, int bins, int samples, int64_t num_cells) {
    start.assign(1, 0);
    cell.clear();
    weight.clear();
    if (samples == 0) {
      const float cells_of_bin = std::ceil((high - low) / bins);
      samples = cells_of_bin >= 1 ? static_cast<int>(std::min(cells_of_bin, kMostSamples)) : 1;
    }
    const float last = num_cells - 1, step = (high - low) / (bins * samples), share = 1.0f / samples;
    for (int i = 0; i < bins; ++i) {
      for (int j = i * samples; j < (i + 1) * samples; ++j) {
        const float at = low + step * (j + 0.5f) - 0.5f;
        if (!(at >= -1 && at <= last + 1)) continue;  // nor is what is no number read
        const float inside = std::min(std::max(at, 0.0f), last), floor = std::floor(inside);
        Add(floor, (floor + 1 - inside) * share);
        Add(std::min(floor + 1, last), (inside - floor) * share);
      }
      start.push_back(cell.size());
    }
  }

  // Leaves out the cells before first and from end on, and counts from first.
  INLINE void KeepWithin(int64_t first, int64_t end) {
    int64_t kept = 0, i = 0;
    for (size_t bin = 1; bin < start.size(); ++bin) {
      for (; i < start[bin]; ++i) {
        if (cell[i] < first || cell[i] >= end) continue;
        weight[kept] = weight[i];
        cell[kept++] = cell[i] - first;
      }
      start[bin] = kept;
    }
    cell.resize(kept);
    weight.resize(kept);
  }

  INLINE void Add(float at, float share) {
    if (share == 0) return;
    const int64_t index = at;
    if (static_cast<int64_t>(cell.size()) > start.back() && cell.back() == index) {
      weight.back() += share;
    } else {
      cell.push_back(index);
      weight.push_back(share);
    }
  }
};

// One map of the batch and where its images end.
template <typename T>
struct Map {
  T* cells;  // B×height×width×channels
  int64_t images, height, width;
  const int32_t* sizes;  // rows and columns of each image, or once for all
  bool one_size;

  int64_t rows(int64_t image) const { return std::min<int64_t>(sizes[one_size ? 0 : 2 * image], height); }
  int64_t columns(int64_t image) const { return std::min<int64_t>(sizes[one_size ? 1 : 2 * image + 1], width); }
};

struct RoIs {
  int64_t count;
  const float* boxes;  // x1, y1, x2, y2 in cells of the map of each one's level
  const int64_t *level, *image;
  int size, samples;
};

template <typename T>
INLINE void SetAxes(const RoIs& rois, int64_t roi, const Map<T>& map, Axis* y, Axis* x) {
  const float* box = rois.boxes + 4 * roi;
  y->Set(box[1], box[3], rois.size, rois.samples, map.rows(rois.image[roi]));
  x->Set(box[0], box[2], rois.size, rois.samples, map.columns(rois.image[roi]));
}

// Whether a RoI surely reads none of the rows first to end: a quick answer for most.
INLINE bool IsFarFrom(const RoIs& rois, int64_t roi, int64_t rows, int64_t first, int64_t end) {
  const float top = rois.boxes[4 * roi + 1], bottom = rois.boxes[4 * roi + 3], last = rows - 1;
  const float low = std::min(std::min(top, bottom), last), high = std::max(std::max(top, bottom), 0.0f);
  return low - 2 > end || high + 2 < first;
}

// Calls at(cell, weight) for all that bin (i, j) reads of an image that is `width` cells wide.
template <typename F>
INLINE void ForEachCell(const Axis& y, const Axis& x, int i, int j, int64_t width, F at) {
  for (int64_t r = y.start[i]; r < y.start[i + 1]; ++r)
    for (int64_t c = x.start[j]; c < x.start[j + 1]; ++c) at(y.cell[r] * width + x.cell[c], y.weight[r] * x.weight[c]);
}

template <int kPairs, typename T>
INLINE void PoolChannels(const Axis& y, const Axis& x, int i, int j, const T* image, int64_t width, int64_t channels,
                         T* to) {
  Pair sums[kPairs] = {};
  ForEachCell(y, x, i, j, width, [&](int64_t cell, float weight) __attribute__((always_inline)) {
    for (int p = 0; p < kPairs; ++p) sums[p].Add(weight, Load(image + cell * channels + p * kPair));
  });
  for (int p = 0; p < kPairs; ++p) Store(sums[p], to + p * kPair);
}

template <typename T>
INLINE void PoolRoIs(const std::vector<Map<const T>>& maps, const RoIs& rois, int64_t channels, int64_t begin,
                     int64_t end, T* pooled) {
  constexpr int kMany = 4;
  Axis y, x;
  for (int64_t roi = begin; roi < end; ++roi) {
    const Map<const T>& map = maps[rois.level[roi]];
    SetAxes(rois, roi, map, &y, &x);
    const T* image = map.cells + rois.image[roi] * map.height * map.width * channels;
    T* to = pooled + roi * rois.size * rois.size * channels;
    for (int i = 0; i < rois.size; ++i) {
      for (int j = 0; j < rois.size; ++j, to += channels) {
        int64_t c = 0;
        for (; c + kMany * kPair <= channels; c += kMany * kPair)
          PoolChannels<kMany>(y, x, i, j, image + c, map.width, channels, to + c);
        for (; c + kPair <= channels; c += kPair)
          PoolChannels<1>(y, x, i, j, image + c, map.width, channels, to + c);
        for (; c < channels; ++c) {
          float sum = 0;
          ForEachCell(y, x, i, j, map.width, [&](int64_t cell, float weight) __attribute__((always_inline)) {
            sum += weight * static_cast<float>(image[cell * channels + c]);
          });
          to[c] = static_cast<T>(sum);
        }
      }
    }
  }
}

// The gradient of the rows first to end of one image's map. sums: for all of their cells.
template <typename T>
INLINE void SpreadRoIs(const Map<T>& map, const RoIs& rois, int64_t level, int64_t image, int64_t channels,
                       int64_t first, int64_t end, const T* of_pooled, float* sums) {
  const int64_t row_size = map.width * channels, in_pairs = channels / kPair * kPair;
  std::fill_n(sums, (end - first) * row_size, 0.0f);
  Axis y, x;
  for (int64_t roi = 0; roi < rois.count; ++roi) {
    if (rois.level[roi] != level || rois.image[roi] != image) continue;
    if (IsFarFrom(rois, roi, map.rows(image), first, end)) continue;
    SetAxes(rois, roi, map, &y, &x);
    y.KeepWithin(first, end);
    const T* from = of_pooled + roi * rois.size * rois.size * channels;
    for (int i = 0; i < rois.size; ++i) {
      for (int j = 0; j < rois.size; ++j, from += channels) {
        for (int64_t c = 0; c < in_pairs; c += kPair) {
          const Pair of_bin = Load<T>(from + c);
          ForEachCell(y, x, i, j, map.width, [&](int64_t cell, float weight) __attribute__((always_inline)) {
            float* to = sums + cell * channels + c;
            Pair sum = Load<float>(to);
            sum.Add(weight, of_bin);
            Store<float>(sum, to);
          });
        }
        ForEachCell(y, x, i, j, map.width, [&](int64_t cell, float weight) __attribute__((always_inline)) {
          for (int64_t c = in_pairs; c < channels; ++c)
            sums[cell * channels + c] += weight * static_cast<float>(from[c]);
        });
      }
    }
  }
  T* to = map.cells + (image * map.height + first) * row_size;
  for (int64_t cell = 0; cell < (end - first) * map.width; ++cell, sums += channels, to += channels) {
    for (int64_t c = 0; c < in_pairs; c += kPair) Store<T>(Load<float>(sums + c), to + c);
    for (int64_t c = in_pairs; c < channels; ++c) to[c] = static_cast<T>(sums[c]);
  }
}

#define FOR_TYPE(T)                                                                                                 \
  FOR_EACH_PROCESSOR void Pool(const std::vector<Map<const T>>& maps, const RoIs& rois, int64_t channels,           \
                               int64_t begin, int64_t end, T* pooled) {                                             \
    PoolRoIs(maps, rois, channels, begin, end, pooled);                                                             \
  }                                                                                                                 \
  FOR_EACH_PROCESSOR void Spread(const Map<T>& map, const RoIs& rois, int64_t level, int64_t image,                 \
                                 int64_t channels, int64_t first, int64_t end, const T* of_pooled, float* sums) { \
    SpreadRoIs(map, rois, level, image, channels, first, end, of_pooled, sums);                                       \
  }
FOR_TYPE(float)
FOR_TYPE(bfloat16)
FOR_TYPE(Eigen::half)
#undef FOR_TYPE

// Reads the inputs that both operations have; `shapes` are those of the maps.
class OfRoIs : public OpKernel {
 public:
  explicit OfRoIs(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("size", &size_));
    OP_REQUIRES_OK(context, context->GetAttr("samples", &samples_));
  }

 protected:
  absl::Status Read(OpKernelContext* context, const std::vector<TensorShape>& shapes, RoIs* rois, OpInputList* sizes) {
    const Tensor *boxes, *level, *image;
    TF_RETURN_IF_ERROR(context->input("boxes", &boxes));
    TF_RETURN_IF_ERROR(context->input("level", &level));
    TF_RETURN_IF_ERROR(context->input("image", &image));
    TF_RETURN_IF_ERROR(context->input_list("map_sizes", sizes));
    const int64_t count = boxes->dim_size(0);
    if (boxes->dims() != 2 || boxes->dim_size(1) != 4 || level->NumElements() != count ||
        image->NumElements() != count)
      return Invalid("boxes must be R×4, level and image R: got ", boxes->shape().DebugString(), ", ",
                                     level->shape().DebugString(), ", ", image->shape().DebugString());
    for (size_t i = 0; i < shapes.size(); ++i) {
      if (shapes[i].dims() != 4 || shapes[i].dim_size(3) != shapes[0].dim_size(3) ||
          shapes[i].dim_size(0) != shapes[0].dim_size(0))
        return Invalid("every map must be B×h×w×C, with the same B and C: got ",
                                       shapes[i].DebugString(), " beside ", shapes[0].DebugString());
      const Tensor& of_map = (*sizes)[i];
      if (of_map.dims() != 2 || of_map.dim_size(1) != 2 ||
          (of_map.dim_size(0) != 1 && of_map.dim_size(0) != shapes[i].dim_size(0)))
        return Invalid("map_sizes must be B×2 or 1×2: got ", of_map.shape().DebugString());
      for (int64_t j = 0; j < of_map.NumElements(); ++j)
        if (of_map.flat<int32_t>()(j) < 1 || shapes[i].dim_size(1) < 1 || shapes[i].dim_size(2) < 1)
          return Invalid("a map has no cells");
    }
    *rois = {count, boxes->flat<float>().data(), level->flat<int64_t>().data(), image->flat<int64_t>().data(), size_,
             samples_};
    for (int64_t i = 0; i < count; ++i) {
      if (rois->level[i] < 0 || rois->level[i] >= static_cast<int64_t>(shapes.size()) || rois->image[i] < 0 ||
          rois->image[i] >= shapes[0].dim_size(0))
        return Invalid("RoI ", i, " is of level ", rois->level[i], " of ", shapes.size(),
                                       " and image ", rois->image[i], " of ", shapes[0].dim_size(0));
    }
    return absl::OkStatus();
  }

  template <typename T>
  static Map<T> MapOf(T* cells, const TensorShape& shape, const Tensor& sizes) {
    return {cells, shape.dim_size(0), shape.dim_size(1), shape.dim_size(2), sizes.flat<int32_t>().data(),
            sizes.dim_size(0) == 1};
  }

  int size_, samples_;
};

template <typename T>
class PyramidRoiAlign : public OfRoIs {
 public:
  using OfRoIs::OfRoIs;

  void Compute(OpKernelContext* context) override {
    OpInputList features, sizes;
    RoIs rois;
    OP_REQUIRES_OK(context, context->input_list("features", &features));
    std::vector<TensorShape> shapes;
    for (const Tensor& feature : features) shapes.push_back(feature.shape());
    OP_REQUIRES_OK(context, Read(context, shapes, &rois, &sizes));
    std::vector<Map<const T>> maps;
    for (int i = 0; i < features.size(); ++i)
      maps.push_back(MapOf<const T>(features[i].flat<T>().data(), shapes[i], sizes[i]));
    const int64_t channels = shapes[0].dim_size(3);
    Tensor* pooled;
    OP_REQUIRES_OK(context, context->allocate_output(0, {rois.count, size_, size_, channels}, &pooled));
    T* to = pooled->flat<T>().data();
    InParallel(context, rois.count, size_ * size_ * channels * 8,
               [&](int64_t begin, int64_t end) { Pool(maps, rois, channels, begin, end, to); });
  }
};

template <typename T>
class PyramidRoiAlignGrad : public OfRoIs {
 public:
  using OfRoIs::OfRoIs;

  void Compute(OpKernelContext* context) override {
    OpInputList of_shapes, sizes;
    RoIs rois;
    OP_REQUIRES_OK(context, context->input_list("shapes", &of_shapes));
    const Tensor& of_pooled = context->input(0);
    std::vector<TensorShape> shapes;
    for (const Tensor& of_shape : of_shapes) {
      TensorShape shape;
      OP_REQUIRES_OK(context, TensorShapeUtils::MakeShape(of_shape.flat<int32_t>(), &shape));
      shapes.push_back(shape);
    }
    OP_REQUIRES_OK(context, Read(context, shapes, &rois, &sizes));
    const int64_t images = shapes[0].dim_size(0), channels = shapes[0].dim_size(3);
    const TensorShape expected({rois.count, size_, size_, channels});
    OP_REQUIRES(context, of_pooled.shape() == expected,
                Invalid("the gradient of ", expected.DebugString(), " is ",
                                        of_pooled.shape().DebugString()));
    std::vector<Map<T>> maps;
    std::vector<Band> bands;
    for (size_t i = 0; i < shapes.size(); ++i) {
      Tensor* of_map;
      OP_REQUIRES_OK(context, context->allocate_output(i, shapes[i], &of_map));
      maps.push_back(MapOf<T>(of_map->flat<T>().data(), shapes[i], sizes[i]));
      const int64_t height = maps[i].height, row_size = std::max<int64_t>(1, maps[i].width * channels);
      const int64_t rows = std::max<int64_t>(1, kBandSize / row_size);
      for (int64_t image = 0; image < images; ++image)
        for (int64_t first = 0; first < height; first += rows)
          bands.push_back({static_cast<int64_t>(i), image, first, std::min(first + rows, height)});
    }
    const T* from = of_pooled.flat<T>().data();
    std::mutex of_status;
    InParallel(context, bands.size(), int64_t{1} << 20, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Band& band = bands[i];
        const Map<T>& map = maps[band.level];
        float* sums;
        Tensor scratch;
        if constexpr (std::is_same_v<T, float>) {
          sums = map.cells + (band.image * map.height + band.first) * map.width * channels;
        } else {
          const TensorShape shape({band.end - band.first, map.width, channels});
          const absl::Status status = context->allocate_temp(DT_FLOAT, shape, &scratch);
          if (!status.ok()) {
            const std::lock_guard lock(of_status);
            context->SetStatus(status);
            return;
          }
          sums = scratch.flat<float>().data();
        }
        Spread(map, rois, band.level, band.image, channels, band.first, band.end, from, sums);
      }
    });
  }

 private:
  static constexpr int64_t kBandSize = 1 << 18;  // numbers, which are to stay in a core's cache

  // Rows of a map that one thread has to itself.
  struct Band {
    int64_t level, image, first, end;
  };
};

#define REGISTER(T)                                                                            \
  REGISTER_KERNEL_BUILDER(Name("PyramidRoiAlign").Device(DEVICE_CPU).TypeConstraint<T>("T"), PyramidRoiAlign<T>) \
  REGISTER_KERNEL_BUILDER(Name("PyramidRoiAlignGrad").Device(DEVICE_CPU).TypeConstraint<T>("T"), PyramidRoiAlignGrad<T>)
REGISTER(float);
REGISTER(bfloat16);
REGISTER(Eigen::half);
#undef REGISTER

}  // namespace

REGISTER_OP("PyramidRoiAlign")
    .Input("features: N * T")
    .Input("boxes: float")
    .Input("level: int64")
    .Input("image: int64")
    .Input("map_sizes: N * int32")
    .Output("pooled: T")
    .Attr("N: int >= 1")
    .Attr("T: {float, bfloat16, half}")
    .Attr("size: int >= 1")
    .Attr("samples: int >= 0")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      std::vector<tensorflow::shape_inference::ShapeHandle> features, boxes;
      TF_RETURN_IF_ERROR(c->input("features", &features));
      TF_RETURN_IF_ERROR(c->input("boxes", &boxes));
      tensorflow::shape_inference::ShapeHandle map, rows;
      TF_RETURN_IF_ERROR(c->WithRank(features[0], 4, &map));
      TF_RETURN_IF_ERROR(c->WithRank(boxes[0], 2, &rows));
      int64_t size;
      TF_RETURN_IF_ERROR(c->GetAttr("size", &size));
      c->set_output(0, c->MakeShape({c->Dim(rows, 0), c->MakeDim(size), c->MakeDim(size), c->Dim(map, 3)}));
      return absl::OkStatus();
    });

REGISTER_OP("PyramidRoiAlignGrad")
    .Input("of_pooled: T")
    .Input("boxes: float")
    .Input("level: int64")
    .Input("image: int64")
    .Input("map_sizes: N * int32")
    .Input("shapes: N * int32")
    .Output("of_features: N * T")
    .Attr("N: int >= 1")
    .Attr("T: {float, bfloat16, half}")
    .Attr("size: int >= 1")
    .Attr("samples: int >= 0")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      for (int i = 0; i < c->num_outputs(); ++i) {
        tensorflow::shape_inference::ShapeHandle map;
        TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(c->num_inputs() - c->num_outputs() + i, &map));
        c->set_output(i, map);
      }
      return absl::OkStatus();
    });
