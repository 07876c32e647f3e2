/// What a call that must fail says.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "parallel/error.hpp"

namespace longspan::testing_support {

/// The message of the Error that `work` throws; fails the test if it throws none, or one with
/// another status.
template <class Work>
std::string error_of(Work&& work, ExitStatus status) {
  try {
    std::forward<Work>(work)();
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), status) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error was thrown";
  return "";
}

}  // namespace longspan::testing_support
