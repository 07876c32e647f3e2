/// The results of a study as one table, a row a point: for people, as CSV, HDF5 and JSON. All but
/// the first come from one list of columns.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "launcher/study_result.hpp"

namespace longspan::launcher {

/// Text, a whole number, or a number (NaN: not known).
using Cell = std::variant<std::string, std::int64_t, double>;

struct StudyColumn {
  std::string name, unit, help;
  Cell (*fixed)(const Study&, const PointResult&);  ///< null: a median
  const NumberField* median;
  Cell cell(const Study& study, const PointResult& row) const {
    return fixed != nullptr ? fixed(study, row) : Cell(row.median.*median->member);
  }
};
const std::vector<StudyColumn>& study_columns();

/// RFC 4180: names in the first line; what is not known is empty; numbers read back to the same
/// bits.
std::string study_csv(const Study& study, const std::vector<PointResult>& rows);
/// A new file with one dataset a column, in the order of the rows: strings (UTF-8, fixed length),
/// i64, or f64 with NaN; attributes `unit` and `help`. Throws Error.
void write_study_hdf5(const std::string& path, const Study& study,
                      const std::vector<PointResult>& rows);
/// One object: scaling, points (an object each, what is not known is null), left_out.
std::string study_json(const StudySpec& spec, const Study& study,
                       const std::vector<PointResult>& rows);
/// For the terminal, a table for each series.
std::string study_text(const StudySpec& spec, const Study& study,
                       const std::vector<PointResult>& rows);
std::string left_out_text(const Study& study);

}  // namespace longspan::launcher
