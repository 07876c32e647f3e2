#include "parallel/hang.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

namespace longspan::parallel {
namespace {

using nlohmann::json;

double seconds(flight::Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

bool is_patient(flight::Phase phase) {
  using flight::Phase;
  return phase == Phase::kStart || phase == Phase::kReport || phase == Phase::kValidate ||
         phase == Phase::kSave || phase == Phase::kEnd;
}

/// The same group in another rank's account.
const WatchedGroup* group_in(const RankState& state, const WatchedGroup& group) {
  const auto at = std::find_if(state.groups.begin(), state.groups.end(),
                               [&](const WatchedGroup& g) { return g.is(group); });
  return at == state.groups.end() ? nullptr : &*at;
}

std::string ranks_text(const std::vector<int>& ranks) {
  return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", to_ranges(ranks));
}

std::string describe(const WatchedGroup& group) {
  return fmt::format("{} {} of group {} ({}), {} bytes of {}, step {}", group.open->name,
                     group.open->sequence, group.name, ranks_text(group.members), group.open->bytes,
                     group.open->element, group.open->step);
}

/// Members of `group` that have not joined the operation that is open in it.
std::vector<int> missing_in(const WatchedGroup& group, const std::vector<RankState>& states,
                            std::int64_t question) {
  std::vector<int> missing;
  for (const int rank : group.members) {
    const RankState& state = states[static_cast<std::size_t>(rank)];
    const WatchedGroup* theirs = group_in(state, group);
    const bool silent = state.answered < question && !state.ended;
    if (silent || theirs == nullptr || theirs->begun < group.open->sequence)
      missing.push_back(rank);
  }
  return missing;
}

/// Ranks that have joined the same call number with another operation or length. Lengths may differ
/// in gathers and all_to_all.
std::vector<int> mismatched_in(const WatchedGroup& group, const std::vector<RankState>& states) {
  std::vector<int> others;
  for (const int rank : group.members) {
    const WatchedGroup* theirs = group_in(states[static_cast<std::size_t>(rank)], group);
    if (theirs == nullptr || !theirs->open || theirs->open->sequence != group.open->sequence)
      continue;
    if (theirs->open->name != group.open->name ||
        (group.open->name == "all_reduce" && theirs->open->bytes != group.open->bytes))
      others.push_back(rank);
  }
  return others;
}

}  // namespace

RankState state_of(const flight::Snapshot& snapshot, flight::Clock::time_point now) {
  RankState state;
  state.step = snapshot.step;
  state.phase = flight::to_string(snapshot.phase);
  state.patient = is_patient(snapshot.phase);
  state.saving = snapshot.phase == flight::Phase::kSave;
  state.phase_seconds = seconds(now - snapshot.phase_begin);
  for (const flight::GroupState& g : snapshot.groups) {
    WatchedGroup group{g.name,  g.copy,      g.members, g.thread == flight::Thread::kSaving,
                       g.begun, std::nullopt};
    if (g.open)
      group.open = OpenOperation{std::string(flight::to_string(g.open->operation)),
                                 std::string(flight::to_string(g.open->element)),
                                 g.open->sequence,
                                 g.open->bytes,
                                 g.open->step,
                                 seconds(now - g.open->begin)};
    if (snapshot.wait && snapshot.wait->group == g.id) {
      state.waits_in = static_cast<int>(state.groups.size());
      state.waits_for = snapshot.wait->sequence;
    }
    state.groups.push_back(std::move(group));
  }
  return state;
}

std::string to_ranges(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t end = i + 1;
    const int stride = end < numbers.size() ? numbers[end] - numbers[i] : 1;
    while (end < numbers.size() && numbers[end] - numbers[end - 1] == stride) ++end;
    if (end - i == 2 && stride != 1) end = i + 1;
    if (!text.empty()) text += ',';
    text += std::to_string(numbers[i]);
    if (end - i > 1) text += fmt::format("-{}", numbers[end - 1]);
    if (end - i > 1 && stride != 1) text += fmt::format(":{}", stride);
    i = end;
  }
  return text;
}

std::optional<std::vector<int>> parse_ranges(const std::string& text) {
  constexpr std::size_t kMost = std::size_t{1} << 24;
  std::vector<int> numbers;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&](int& value) {
    const auto result = std::from_chars(at, end, value);
    at = result.ptr;
    return result.ec == std::errc();
  };
  while (at != end) {
    int first = 0, last = 0, stride = 1;
    if (!number(first)) return std::nullopt;
    last = first;
    if (at != end && *at == '-' && (++at, !number(last))) return std::nullopt;
    if (at != end && *at == ':' && (++at, !number(stride))) return std::nullopt;
    if (stride < 1) return std::nullopt;
    for (std::int64_t n = first; n <= last && numbers.size() < kMost; n += stride)
      numbers.push_back(static_cast<int>(n));
    if (at != end && *at++ != ',') return std::nullopt;
  }
  return numbers;
}

std::string to_json(const RankState& s) {
  json groups = json::array();
  for (const WatchedGroup& g : s.groups) {
    json group = {{"group", g.name},
                  {"copy", g.copy},
                  {"ranks", to_ranges(g.members)},
                  {"saving", g.saving},
                  {"begun", g.begun}};
    if (g.open)
      group["open"] = {{"operation", g.open->name},    {"element", g.open->element},
                       {"sequence", g.open->sequence}, {"bytes", g.open->bytes},
                       {"step", g.open->step},         {"seconds", g.open->seconds}};
    groups.push_back(std::move(group));
  }
  return json{
      {"rank", s.rank},         {"node", s.node},         {"process", s.process},
      {"answered", s.answered}, {"ended", s.ended},       {"step", s.step},
      {"phase", s.phase},       {"patient", s.patient},   {"phase_seconds", s.phase_seconds},
      {"written", s.written},   {"waits_in", s.waits_in}, {"waits_for", s.waits_for},
      {"groups", groups}}
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

std::optional<RankState> parse_rank_state(const std::string& text) {
  try {
    const json j = json::parse(text);
    RankState s;
    s.rank = j.at("rank"), s.node = j.at("node"), s.process = j.at("process");
    s.answered = j.at("answered"), s.ended = j.at("ended"), s.step = j.at("step");
    s.phase = j.at("phase"), s.patient = j.at("patient");
    s.phase_seconds = j.at("phase_seconds"), s.written = j.at("written");
    s.waits_in = j.at("waits_in"), s.waits_for = j.at("waits_for");
    for (const json& g : j.at("groups")) {
      const auto members = parse_ranges(g.at("ranks"));
      if (!members) return std::nullopt;
      WatchedGroup group{g.at("group"),  g.at("copy"),  *members,
                         g.at("saving"), g.at("begun"), std::nullopt};
      if (g.contains("open")) {
        const json& o = g["open"];
        group.open = OpenOperation{o.at("operation"), o.at("element"), o.at("sequence"),
                                   o.at("bytes"),     o.at("step"),    o.at("seconds")};
      }
      s.groups.push_back(std::move(group));
    }
    if (s.waits_in >= static_cast<int>(s.groups.size())) return std::nullopt;
    return s;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

HangVerdict find_fault(const std::vector<RankState>& states, std::int64_t question, int asker,
                       int group) {
  const auto state = [&](int rank) -> const RankState& {
    return states[static_cast<std::size_t>(rank)];
  };
  const auto silent = [&](int rank) {
    return state(rank).answered < question && !state(rank).ended;
  };
  HangVerdict verdict;
  const WatchedGroup* blamed = &state(asker).groups[static_cast<std::size_t>(group)];
  const auto settle = [&](Fault fault, std::vector<int> culprits) {
    verdict.fault = fault;
    verdict.culprits = std::move(culprits);
    verdict.collective = describe(*blamed);
    verdict.missing = missing_in(*blamed, states, question);
    verdict.patient =
        fault == Fault::kBehind && std::any_of(verdict.culprits.begin(), verdict.culprits.end(),
                                               [&](int r) { return state(r).patient; });
    return verdict;
  };

  std::vector<int> dead;
  for (const RankState& s : states)
    if (silent(s.rank)) dead.push_back(s.rank);
  if (!dead.empty()) {
    // The longest wait that one of them is to answer for.
    double longest = -1;
    for (const RankState& s : states) {
      if (silent(s.rank)) continue;
      for (const WatchedGroup& g : s.groups) {
        const bool theirs = std::any_of(g.members.begin(), g.members.end(), silent);
        if (g.open && theirs && g.open->seconds > longest) {
          longest = g.open->seconds;
          blamed = &g;
        }
      }
    }
    return settle(Fault::kSilent, dead);
  }

  // Everybody is alive. From wait to wait, until somebody waits for nobody or the circle closes.
  std::set<int> seen = {asker};
  for (;;) {
    const std::vector<int> missing = missing_in(*blamed, states, question);
    if (missing.empty()) {
      const std::vector<int> others = mismatched_in(*blamed, states);
      return settle(others.empty() ? Fault::kNetwork : Fault::kMismatch, others);
    }
    std::vector<int> idle;
    for (const int rank : missing)
      if (state(rank).waits_in < 0) idle.push_back(rank);
    if (!idle.empty()) return settle(Fault::kBehind, idle);
    const auto next = std::find_if(missing.begin(), missing.end(), [&](int rank) {
      const WatchedGroup& g = state(rank).groups[static_cast<std::size_t>(state(rank).waits_in)];
      return seen.count(rank) == 0 && g.open.has_value();
    });
    if (next == missing.end()) return settle(Fault::kDeadlock, missing);
    seen.insert(*next);
    blamed = &state(*next).groups[static_cast<std::size_t>(state(*next).waits_in)];
  }
}

std::string describe(const RankState& s, double now) {
  if (s.ended) return fmt::format("rank {} ({}): its training had ended", s.rank, s.node);
  std::string text =
      fmt::format("rank {} ({}, process {}): step {}, ", s.rank, s.node, s.process, s.step);
  const WatchedGroup* waits =
      s.waits_in < 0 ? nullptr : &s.groups[static_cast<std::size_t>(s.waits_in)];
  if (waits != nullptr && waits->open)
    text += fmt::format("waited {:.1f} s in {}", waits->open->seconds, describe(*waits));
  else if (waits != nullptr)
    text += fmt::format("was about to join call {} of group {}", s.waits_for, waits->name);
  else
    text += fmt::format("in {} for {:.1f} s", s.phase, s.phase_seconds);
  std::string calls;
  for (const WatchedGroup& g : s.groups)
    if (g.begun > 0)
      calls += fmt::format("{}{}{} {}", calls.empty() ? "" : ", ", g.name,
                           g.copy == 0 ? "" : fmt::format("[{}]", g.copy), g.begun);
  if (!calls.empty()) text += "; last calls: " + calls;
  if (s.written > 0) text += fmt::format("; written {:.1f} s ago", std::max(0.0, now - s.written));
  return text;
}

std::string describe(const HangVerdict& verdict, const std::vector<RankState>& states,
                     const std::vector<std::string>& conditions, double waited_seconds,
                     double now) {
  constexpr std::size_t kNamed = 4;
  std::vector<std::string> who;
  for (const int rank : verdict.culprits) {
    if (who.size() == kNamed) {
      who.push_back(fmt::format("{} more", verdict.culprits.size() - kNamed));
      break;
    }
    const RankState& s = states[static_cast<std::size_t>(rank)];
    const std::string& condition = conditions[static_cast<std::size_t>(rank)];
    std::string text = fmt::format("rank {} ({}, process {})", rank, s.node, s.process);
    const bool waits = s.waits_in >= 0;
    switch (verdict.fault) {
      case Fault::kSilent:
        text += condition.empty() ? " does not answer" : " " + condition;
        text += fmt::format(" (last heard of {:.0f} s ago in step {}, {})",
                            std::max(0.0, now - s.written), s.step, s.phase);
        break;
      case Fault::kBehind:
        text += fmt::format(" is slow or stuck: in {} of step {} for {:.0f} s", s.phase, s.step,
                            s.phase_seconds);
        break;
      case Fault::kDeadlock:
        if (waits && s.groups[static_cast<std::size_t>(s.waits_in)].open)
          text += " waits in " + describe(s.groups[static_cast<std::size_t>(s.waits_in)]);
        break;
      case Fault::kMismatch:
        text += " makes another call than the rest";
        break;
      case Fault::kNetwork:
        break;
    }
    who.push_back(text);
  }
  std::string text = fmt::format("no progress for {:.0f} s: ", waited_seconds);
  if (verdict.fault == Fault::kNetwork)
    text += "all ranks have arrived and no message goes through: look at the network; ";
  else
    text += fmt::format("{}{}; ",
                        verdict.fault == Fault::kDeadlock ? "the ranks wait in a circle: " : "",
                        fmt::join(who, ", "));
  text += "the others wait in " + verdict.collective;
  if (!verdict.missing.empty())
    text += fmt::format(", where {} {} not arrived", ranks_text(verdict.missing),
                        verdict.missing.size() == 1 ? "has" : "have");
  return text;
}

}  // namespace longspan::parallel
