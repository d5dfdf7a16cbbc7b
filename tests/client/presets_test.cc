#include "client/presets.h"

#include <gtest/gtest.h>

#include <vector>

#include "client/outputs.h"
#include "client/reference.h"

namespace nsa::metadata::client {
namespace {

using Array = std::vector<int32_t>;

Array Of(const Values& values) { return {values.begin(), values.end()}; }

v1::ExpandResponse Expanded(const PresetLengths& lengths) {
  Request request = lengths.ToRequest();
  request.nsa_index_topk = 5;
  request.outputs = {v1::OUTPUT_SEQLENS_EXPANDED, v1::OUTPUT_NSA_CACHE_SEQLENS, v1::OUTPUT_TOKEN_TO_BATCH_IDX,
                     v1::OUTPUT_POSITIONS};
  return Reference(request);
}

const Array kSeqLens = {10, 4};

TEST(PresetsTest, ADecodedTokenSeesItsSequence) {
  const v1::ExpandResponse response = Expanded(SglangDecode(kSeqLens));
  EXPECT_EQ(Of(response.seqlens_expanded()), (Array{10, 4}));
  EXPECT_EQ(Of(response.nsa_cache_seqlens()), (Array{5, 4}));
}

TEST(PresetsTest, VerifiedDraftsComeAfterTheSequence) {
  EXPECT_EQ(Of(Expanded(SglangTargetVerify(kSeqLens, 3)).seqlens_expanded()), (Array{11, 12, 13, 5, 6, 7}));
}

TEST(PresetsTest, ExtendedTokensAreTheLastOfTheSequence) {
  EXPECT_EQ(Of(Expanded(SglangExtend(Array{3, 2}, kSeqLens)).seqlens_expanded()), (Array{8, 9, 10, 3, 4}));
  EXPECT_EQ(Of(Expanded(VllmRaggedDecode(Array{1, 4}, Array{10, 2})).seqlens_expanded()), (Array{10, 0, 0, 1, 2}))
      << "padded rows see nothing";
}

TEST(PresetsTest, FlashInfersPlacesAreTheRunningSumsOnes) {
  const v1::ExpandResponse response = Expanded(FlashInferBatchIndicesPositions(Array{0, 3, 5}, kSeqLens));
  EXPECT_EQ(Of(response.token_to_batch_idx()), (Array{0, 0, 0, 1, 1}));
  EXPECT_EQ(Of(response.positions()), (Array{7, 8, 9, 2, 3}));
}

TEST(PresetsTest, TensorRtLlmsRowsSeeTheWholeSequence) {
  EXPECT_EQ(Of(Expanded(TensorRtLlmKvLensExpanded(kSeqLens, 2)).seqlens_expanded()), (Array{10, 10, 10, 4, 4, 4}));
}

}  // namespace
}  // namespace nsa::metadata::client
