/// Runs the tests of a kernel once for every instruction set of this CPU:
///   class Norm : public testing_support::EveryInstructionSet {};
///   TEST_P(Norm, ...) ...    EVERY_INSTRUCTION_SET(Norm);
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "model/kernels/cpu/instruction_set.hpp"

namespace longspan::testing_support {

class EveryInstructionSet : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { model::cpu::use_instruction_set(GetParam()); }
};

}  // namespace longspan::testing_support

#define EVERY_INSTRUCTION_SET(fixture)                                                  \
  INSTANTIATE_TEST_SUITE_P(On, fixture,                                                 \
                           testing::ValuesIn(longspan::model::cpu::instruction_sets()), \
                           [](const auto& info) { return info.param; })
