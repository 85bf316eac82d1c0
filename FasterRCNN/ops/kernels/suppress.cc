// Non-maximum suppression of many rows of boxes, on processors: the greedy loop of TensorFlow's NonMaxSuppressionV4,
// over many kept boxes at a time, with the very results for boxes whose areas are finite numbers.
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "kernel.h"

namespace {

using namespace tensorflow;  // NOLINT: as TensorFlow's own operations

constexpr int64_t kTogether = 64;  // kept boxes that a candidate is compared with before it is asked whether it is out

struct Box {
  float x1, y1, x2, y2, area;

  explicit Box(const float* at)
      : x1(std::min(at[0], at[2])), y1(std::min(at[1], at[3])), x2(std::max(at[0], at[2])), y2(std::max(at[1], at[3])),
        area((x2 - x1) * (y2 - y1)) {}
};

// Boxes coordinate by coordinate. Empty ones, which suppress nothing, fill up the last kTogether.
class Kept {
 public:
  explicit Kept(int64_t most) {
    for (auto* values : {&x1_, &y1_, &x2_, &y2_, &area_}) values->assign((most / kTogether + 1) * kTogether, 0);
  }

  void Add(const Box& box) {
    x1_[count_] = box.x1, y1_[count_] = box.y1, x2_[count_] = box.x2, y2_[count_] = box.y2, area_[count_] = box.area;
    ++count_;
  }

  INLINE bool Suppress(const Box& box, float threshold) const {
    if (box.area <= 0) return false;
    for (int64_t first = 0; first < count_; first += kTogether) {
      int out = 0;
      for (int64_t i = first; i < first + kTogether; ++i) {
        const float width = std::max(std::min(box.x2, x2_[i]) - std::max(box.x1, x1_[i]), 0.0f);
        const float height = std::max(std::min(box.y2, y2_[i]) - std::max(box.y1, y1_[i]), 0.0f);
        const float common = width * height;
        const float iou = common / (box.area + area_[i] - common);
        out += (area_[i] > 0) & (iou > threshold);
      }
      if (out) return true;
    }
    return false;
  }

 private:
  std::vector<float> x1_, y1_, x2_, y2_, area_;
  int64_t count_ = 0;
};

// One row: count boxes with scores -> the indices of at most `most`, by descending score, then -1.
FOR_EACH_PROCESSOR void SuppressRow(const float* boxes, const float* scores, int64_t count, float threshold,
                                    int64_t most, int64_t* indices) {
  std::vector<int64_t> candidates;
  for (int64_t i = 0; i < count; ++i)
    if (scores[i] > std::numeric_limits<float>::lowest()) candidates.push_back(i);
  const auto before = [scores](int64_t a, int64_t b) { return scores[a] > scores[b]; };
  if (!std::is_sorted(candidates.begin(), candidates.end(), before))
    std::stable_sort(candidates.begin(), candidates.end(), before);
  Kept kept(std::min<int64_t>(most, candidates.size()));
  int64_t number = 0;
  for (size_t i = 0; i < candidates.size() && number < most; ++i) {
    const Box box(boxes + 4 * candidates[i]);
    if (kept.Suppress(box, threshold)) continue;
    kept.Add(box);
    indices[number++] = candidates[i];
  }
  std::fill(indices + number, indices + most, -1);
}

class SuppressRows : public OpKernel {
 public:
  explicit SuppressRows(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("iou_threshold", &threshold_));
    OP_REQUIRES_OK(context, context->GetAttr("max_output", &most_));
    OP_REQUIRES(context, threshold_ >= 0 && threshold_ <= 1,
                Invalid("iou_threshold must be in [0, 1]: got ", threshold_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &boxes = context->input(0), &scores = context->input(1);
    OP_REQUIRES(context, scores.dims() == 2, Invalid("scores must be N×k: got ", scores.shape().DebugString()));
    const int64_t rows = scores.dim_size(0), count = scores.dim_size(1);
    OP_REQUIRES(context, boxes.shape() == TensorShape({rows, count, 4}),
                Invalid("boxes must be N×k×4, scores N×k: got ", boxes.shape().DebugString(), " and ",
                        scores.shape().DebugString()));
    Tensor* indices;
    OP_REQUIRES_OK(context, context->allocate_output(0, {rows, most_}, &indices));
    const float *of_boxes = boxes.flat<float>().data(), *of_scores = scores.flat<float>().data();
    int64_t* to = indices->flat<int64_t>().data();
    InParallel(context, rows, count * std::min(count, most_), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        SuppressRow(of_boxes + row * count * 4, of_scores + row * count, count, threshold_, most_, to + row * most_);
    });
  }

 private:
  float threshold_;
  int64_t most_;
};

REGISTER_KERNEL_BUILDER(Name("SuppressRows").Device(DEVICE_CPU), SuppressRows);

}  // namespace

REGISTER_OP("SuppressRows")
    .Input("boxes: float")
    .Input("scores: float")
    .Output("indices: int64")
    .Attr("iou_threshold: float")
    .Attr("max_output: int >= 0")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      tensorflow::shape_inference::ShapeHandle scores;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &scores));
      int64_t most;
      TF_RETURN_IF_ERROR(c->GetAttr("max_output", &most));
      c->set_output(0, c->MakeShape({c->Dim(scores, 0), c->MakeDim(most)}));
      return absl::OkStatus();
    });
