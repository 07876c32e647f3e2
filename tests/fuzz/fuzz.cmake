# Registers the fuzz targets of this folder as tests, a minute each, and builds them with clang where it is.
option(LONGSPAN_FUZZ "build and run the fuzz targets, where clang is installed" ON)
find_program(LONGSPAN_CLANG NAMES clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14 clang++)
set(fuzz_missing "")
if(NOT LONGSPAN_FUZZ)
  set(fuzz_missing "LONGSPAN_FUZZ is off")
elseif(NOT LONGSPAN_CLANG)
  set(fuzz_missing "there is no clang++: launcher/install_dependencies.sh --with-tests installs it")
else()
  file(WRITE ${CMAKE_BINARY_DIR}/fuzz/probe.cpp
       "#include <cstddef>\n#include <cstdint>\nextern \"C\" int LLVMFuzzerTestOneInput(const std::uint8_t*, std::size_t) { return 0; }\n")
  execute_process(COMMAND ${LONGSPAN_CLANG} -fsanitize=fuzzer,address,undefined probe.cpp -o probe
                  WORKING_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz RESULT_VARIABLE fuzz_probe OUTPUT_QUIET ERROR_QUIET)
  if(NOT fuzz_probe EQUAL 0)
    set(fuzz_missing "${LONGSPAN_CLANG} has no fuzzer runtime: install libclang-rt-14-dev, or that of its version")
  endif()
endif()

if(NOT fuzz_missing)
  include(ExternalProject)
  ExternalProject_Add(longspan_fuzz SOURCE_DIR ${CMAKE_CURRENT_SOURCE_DIR}/fuzz BINARY_DIR ${CMAKE_BINARY_DIR}/fuzz
    PREFIX ${CMAKE_BINARY_DIR}/fuzz/external CMAKE_GENERATOR ${CMAKE_GENERATOR}
    CMAKE_ARGS -DCMAKE_CXX_COMPILER=${LONGSPAN_CLANG} -DCMAKE_BUILD_TYPE=None
    INSTALL_COMMAND "" BUILD_ALWAYS ON USES_TERMINAL_BUILD ON)
endif()
file(GLOB fuzz_targets CONFIGURE_DEPENDS fuzz/fuzz_*.cpp)
foreach(source ${fuzz_targets})
  get_filename_component(name ${source} NAME_WE)
  if(name STREQUAL fuzz_safetensors AND NOT EXISTS ${PROJECT_SOURCE_DIR}/io/safetensors.cpp)
    continue()
  endif()
  string(REPLACE "fuzz_" "" corpus ${name})
  add_test(NAME ${name} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/run_fuzz.sh "${fuzz_missing}" ${CMAKE_BINARY_DIR}/fuzz/${name}
                                ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/corpus/${corpus})
  set_tests_properties(${name} PROPERTIES LABELS "slow;fuzz" TIMEOUT 240 PROCESSORS 1 SKIP_RETURN_CODE 77)
endforeach()
