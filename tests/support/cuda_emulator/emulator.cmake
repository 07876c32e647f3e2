# The GPU plug-in's sources compiled for the host against the emulator: longspan_cuda_emulated, objects for the
# tests in tests/cuda/, and liblongspan_cuda_emulated.so, which a program opens as it would the real plug-in.
# What stands for the driver's NVML; in a folder of its own, for LD_LIBRARY_PATH.
add_library(longspan_fake_nvml MODULE support/plugins/fake_nvml.cpp)
set_target_properties(longspan_fake_nvml PROPERTIES PREFIX "" SUFFIX "" OUTPUT_NAME libnvidia-ml.so.1
                      LINK_FLAGS -Wl,-soname,libnvidia-ml.so.1
                      LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/plugins/nvml)
# Not under the sanitizers, which do not follow fibers from stack to stack: tests/cuda is left out there, and the tests of
# the kernels run on the CPU alone.
if(LONGSPAN_SANITIZE)
  add_custom_target(longspan_plugins DEPENDS longspan_fake_nvml)
  return()
endif()
find_package(Boost 1.70 REQUIRED COMPONENTS context)
file(GLOB emulated_sources CONFIGURE_DEPENDS
     ${PROJECT_SOURCE_DIR}/model/kernels/cuda/*.cu ${PROJECT_SOURCE_DIR}/model/kernels/cuda/*.cpp
     ${PROJECT_SOURCE_DIR}/parallel/cuda/*.cu ${PROJECT_SOURCE_DIR}/parallel/cuda/*.cpp
     ${CMAKE_CURRENT_LIST_DIR}/*.cpp)
set(emulated_kernels ${emulated_sources})
list(FILTER emulated_kernels INCLUDE REGEX "\\.cu$")
set_source_files_properties(${emulated_kernels} PROPERTIES LANGUAGE CXX)
set_source_files_properties(${PROJECT_SOURCE_DIR}/model/kernels/cuda/plugin.cpp PROPERTIES
                            COMPILE_DEFINITIONS ${LONGSPAN_GPU_INTERFACE})
add_library(longspan_cuda_emulated OBJECT ${emulated_sources})
set_target_properties(longspan_cuda_emulated PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(longspan_cuda_emulated BEFORE PUBLIC ${CMAKE_CURRENT_LIST_DIR})
target_compile_definitions(longspan_cuda_emulated PUBLIC LONGSPAN_CUDA_EMULATED)
target_compile_options(longspan_cuda_emulated PUBLIC -Wno-unknown-pragmas -Wno-restrict)
target_link_libraries(longspan_cuda_emulated PUBLIC longspan_model Boost::context)

# Of the toolkit nothing but NVTX's headers, behind all others: they need no GPU.
find_path(NVTX_INCLUDE_DIR nvtx3/nvToolsExt.h HINTS /usr/local/cuda/include)
if(NVTX_INCLUDE_DIR)
  target_compile_options(longspan_cuda_emulated PUBLIC "SHELL:-idirafter ${NVTX_INCLUDE_DIR}")
endif()

add_library(longspan_cuda_emulated_plugin MODULE $<TARGET_OBJECTS:longspan_cuda_emulated>)
set_target_properties(longspan_cuda_emulated_plugin PROPERTIES OUTPUT_NAME longspan_cuda_emulated
                      LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
target_link_options(longspan_cuda_emulated_plugin PRIVATE -Wl,-Bsymbolic)
target_link_libraries(longspan_cuda_emulated_plugin PRIVATE Boost::context fmt::fmt)

# Plug-ins that a program must refuse.
foreach(name other_build no_entry missing_symbol)
  add_library(longspan_plugin_${name} MODULE support/plugins/${name}.cpp)
  set_target_properties(longspan_plugin_${name} PROPERTIES PREFIX "" OUTPUT_NAME ${name}
                        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/plugins)
endforeach()
add_custom_target(longspan_plugins DEPENDS longspan_cuda_emulated_plugin longspan_plugin_other_build
                  longspan_plugin_no_entry longspan_plugin_missing_symbol longspan_fake_nvml)
