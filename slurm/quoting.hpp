/// Words of a shell and of sbatch, written so that they are read back as they are.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace longspan::slurm {

/// `word` as a POSIX shell reads it back: in single quotes where it needs them.
std::string shell_quoted(const std::string& word);

/// A value in an #SBATCH line: in double quotes where it needs them (where sbatch
/// 22.05 knows a backslash before " and before itself). A line has no place for a line break or
/// another control character: each becomes '?'.
std::string sbatch_quoted(std::string_view value);

/// Words between spaces; in single or double quotes a word may hold spaces, and in double quotes a
/// backslash stands before a double quote or itself. Nothing else means anything: no variables, no
/// globs. An open quote ends with the text; `closed` then is false.
std::vector<std::string> split_words(std::string_view text, bool* closed = nullptr);

}  // namespace longspan::slurm
