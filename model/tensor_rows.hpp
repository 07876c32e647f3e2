/// Between the rows a tensor rank holds of the residual stream and the rows of all tensor ranks,
/// which layers with shared weights work on (parallel/tensor_parallel.hpp). With one tensor rank
/// both are the same memory.
#pragma once

#include "model/activation.hpp"
#include "model/layer.hpp"

namespace longspan::model {

/// All rows, read from a rank's own rows [B * T/ranks, D]. Collective over the tensor group.
class GatheredRows {
 public:
  /// Rows in bfloat16 travel as the fp32 numbers they are: the product rounds them to the same
  /// bits.
  GatheredRows(const Activation& own, const PassContext& pass, Backend backend)
      : operand_(own.operand()) {
    if (pass.tensor.alone()) return;
    const Operand rows = own.operand();
    Buffer<float> wide;
    if (!rows.bf16.empty()) {
      wide = Buffer<float>(backend.device, rows.rows(), rows.cols());
      own.load(0, wide, backend);
    }
    gather(wide.empty() ? rows.fp32 : View<const float>(wide), pass, backend);
  }
  GatheredRows(View<const float> own, const PassContext& pass, Backend backend) : operand_(own) {
    if (!pass.tensor.alone()) gather(own, pass, backend);
  }
  const Operand& operand() const { return operand_; }
  /// Of rows in fp32.
  View<const float> view() const { return operand_.fp32; }

 private:
  void gather(View<const float> own, const PassContext& pass, Backend backend) {
    room_ = Buffer<float>(backend.device, own.rows() * pass.tensor.ranks, own.cols());
    pass.tensor.gather_sequence(own, pass.batch.sequences, room_);
    operand_ = Operand(room_);
  }

  Buffer<float> room_;
  Operand operand_;
};

/// Room for this rank's summand of all rows; sum() adds the ranks' and leaves the own rows in
/// `own`.
class PartialRows {
 public:
  PartialRows(View<float> own, const PassContext& pass, Backend backend)
      : own_(own), pass_(pass), backend_(backend), view_(own) {
    if (pass.tensor.alone()) return;
    room_ = Buffer<float>(backend.device, own.rows() * pass.tensor.ranks, own.cols());
    view_ = room_.view();
  }
  View<float> view() const { return view_; }
  /// Once, when the summand is written. Collective over the tensor group.
  void sum() {
    if (pass_.tensor.alone()) return;
    pass_.tensor.scatter_sum(room_, pass_.batch.sequences, own_);
    room_.clear();
  }

 private:
  View<float> own_;
  const PassContext& pass_;
  Backend backend_;
  Buffer<float> room_;
  View<float> view_;
};

}  // namespace longspan::model
