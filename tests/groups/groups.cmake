# Groups on device memory, compiled for the host against streams that are threads (asynchronous_cuda.cpp).
add_library(longspan_test_groups STATIC
            groups/asynchronous_cuda.cpp ${PROJECT_SOURCE_DIR}/parallel/cuda/check.cpp
            ${PROJECT_SOURCE_DIR}/parallel/cuda/stream.cpp ${PROJECT_SOURCE_DIR}/parallel/cuda/staged_group.cpp)
target_include_directories(longspan_test_groups BEFORE PUBLIC ${CMAKE_CURRENT_LIST_DIR}/../support/cuda_emulator)
target_compile_definitions(longspan_test_groups PUBLIC LONGSPAN_CUDA_EMULATED)
target_link_libraries(longspan_test_groups PUBLIC longspan_parallel)
foreach(name device_group_test)
  target_link_libraries(${name} PRIVATE longspan_test_groups)
endforeach()
