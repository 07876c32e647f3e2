/// The files that every page carries, embedded: the program needs none of them when it runs.
#include "launcher/page_parts.hpp"

// The assembler takes the files in as they are. CMake knows them as dependencies of this file.
#define LONGSPAN_EMBED(name, path)                                \
  asm(".pushsection .rodata\n"                                    \
      ".global longspan_page_" #name "\nlongspan_page_" #name     \
      ":\n"                                                       \
      ".incbin \"" path                                           \
      "\"\n"                                                      \
      ".global longspan_page_" #name "_end\nlongspan_page_" #name \
      "_end:\n"                                                   \
      ".byte 0\n.popsection\n");                                  \
  extern "C" const char longspan_page_##name[], longspan_page_##name##_end[]

LONGSPAN_EMBED(script, LONGSPAN_PAGE_SCRIPT);
LONGSPAN_EMBED(style, LONGSPAN_PAGE_STYLE);
#ifdef LONGSPAN_D3
LONGSPAN_EMBED(d3, LONGSPAN_D3);
#endif

namespace longspan::launcher {

std::string_view page_d3() {
#ifdef LONGSPAN_D3
  return {longspan_page_d3, static_cast<std::size_t>(longspan_page_d3_end - longspan_page_d3)};
#else
  return {};
#endif
}

std::string_view page_script() {
  return {longspan_page_script,
          static_cast<std::size_t>(longspan_page_script_end - longspan_page_script)};
}

std::string_view page_style() {
  return {longspan_page_style,
          static_cast<std::size_t>(longspan_page_style_end - longspan_page_style)};
}

}  // namespace longspan::launcher
