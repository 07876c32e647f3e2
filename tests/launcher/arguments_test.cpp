/// Flags of subcommands: they all fail alike, and name the way out.
#include "launcher/arguments.hpp"

#include <gtest/gtest.h>

#include "launcher/text.hpp"
#include "parallel/error.hpp"

namespace longspan::launcher {
namespace {

Arguments parse(const std::vector<std::string>& words, bool settings = false) {
  return Arguments(words, "weigh", "weighs things",
                   {{"output", "FILE", "where to write"},
                    {"count", "N", "how many", "3"},
                    {"json", "", "as JSON"}},
                   "longspan weigh --count 2 stone", settings);
}

std::string failure(const std::vector<std::string>& words, bool settings = false) {
  try {
    parse(words, settings);
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), ExitStatus::kUsage);
    return e.what();
  }
  return "";
}

TEST(Arguments, FlagsValuesAndThings) {
  const auto a = parse({"stone", "--output", "a.h5", "--count=7", "--json", "-", "--", "--leaf"});
  EXPECT_TRUE(a.has("output"));
  EXPECT_EQ(a.text("output"), "a.h5");
  EXPECT_EQ(a.integer("count"), 7);
  EXPECT_TRUE(a.has("json"));
  EXPECT_EQ(a.positional(), (std::vector<std::string>{"stone", "-", "--leaf"}));
  EXPECT_FALSE(a.help_wanted());
}

TEST(Arguments, DefaultsStandIn) {
  const auto a = parse({});
  EXPECT_FALSE(a.has("count"));
  EXPECT_EQ(a.integer("count"), 3);
  EXPECT_EQ(a.number("count"), 3.0);
  EXPECT_EQ(a.text("output"), "");
  EXPECT_FALSE(a.has("json"));
}

TEST(Arguments, ValuesMayBeNegativeOrEmpty) {
  EXPECT_EQ(parse({"--count", "-5"}).integer("count"), -5);
  EXPECT_EQ(parse({"--output="}).text("output"), "");
  EXPECT_TRUE(parse({"--output="}).has("output"));
  EXPECT_EQ(parse({"--output=a=b"}).text("output"), "a=b");
}

TEST(Arguments, MistakesNameTheWayOut) {
  EXPECT_EQ(failure({"--jsn"}), "weigh: there is no option --jsn: did you mean --json?");
  EXPECT_EQ(failure({"-j"}), "weigh: there is no option -j: longspan weigh --help lists them");
  EXPECT_EQ(failure({"--output"}), "weigh: --output needs a value: --output FILE");
  EXPECT_EQ(failure({"--output", "--json"}), "weigh: --output needs a value: --output FILE");
  EXPECT_EQ(failure({"--json=yes"}), "weigh: --json is a switch and takes no value");
  EXPECT_EQ(failure({"--model.layers", "3"}),
            "weigh: there is no option --model.layers: longspan weigh --help lists them");
}

TEST(Arguments, NumbersAreChecked) {
  EXPECT_THROW(parse({"--count", "many"}).integer("count"), Error);
  EXPECT_THROW(parse({"--count", "1.5"}).integer("count"), Error);
  EXPECT_THROW(parse({"--count="}).integer("count"), Error);
  EXPECT_EQ(parse({"--count", "1.5"}).number("count"), 1.5);
}

TEST(Arguments, SettingsArePassedOnUnchecked) {
  const auto a = parse(
      {"--model.layers", "3", "--output", "x", "--no.such=thing", "--optimizer.clip", "-1"}, true);
  EXPECT_EQ(a.settings(), (std::vector<std::string>{"--model.layers", "3", "--no.such", "thing",
                                                    "--optimizer.clip", "-1"}));
  EXPECT_EQ(a.text("output"), "x");
  EXPECT_EQ(failure({"--model.layers"}, true),
            "weigh: --model.layers needs a value: --model.layers VALUE");
  EXPECT_EQ(failure({"--layers", "3"}, true),
            "weigh: there is no option --layers: did you mean --model.layers?");
  EXPECT_NE(failure({"stone"}, true).find("'stone' stands alone"), std::string::npos);
}

TEST(Arguments, HelpAnswersWhateverElseIsWrong) {
  const auto a = parse({"--nonsense", "--help"});
  ASSERT_TRUE(a.help_wanted());
  const std::string help = a.help();
  for (const char* part :
       {"longspan weigh: weighs things", "--output FILE", "where to write", "--json", "(default 3)",
        "--help", "Example:\n  longspan weigh --count 2 stone"})
    EXPECT_NE(help.find(part), std::string::npos) << part << "\n" << help;
  EXPECT_TRUE(parse({"-h"}).help_wanted());
  EXPECT_FALSE(parse({"--", "-h"}).help_wanted());
}

TEST(Text, WrapsAtWords) {
  EXPECT_EQ(wrap("one two three", 7), (std::vector<std::string>{"one two", "three"}));
  EXPECT_EQ(wrap("extraordinary a b", 4), (std::vector<std::string>{"extraordinary", "a b"}));
  EXPECT_EQ(wrap("", 10), (std::vector<std::string>{""}));
  EXPECT_EQ(wrap("one of aa|bb|cc|dd: x", 6),
            (std::vector<std::string>{"one of", "aa|bb|", "cc|dd:", "x"}));
}

TEST(Text, QuotesForTheShell) {
  EXPECT_EQ(shell_quoted("configs/a-b.ini"), "configs/a-b.ini");
  EXPECT_EQ(shell_quoted("a b"), "'a b'");
  EXPECT_EQ(shell_quoted("it's"), "'it'\\''s'");
  EXPECT_EQ(shell_quoted(""), "''");
}

}  // namespace
}  // namespace longspan::launcher
