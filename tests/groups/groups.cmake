# Groups on device memory, compiled for the host against streams that are threads (asynchronous_cuda.cpp).
set(group_sources check stream arena device host_offload staged_group nccl_api nccl_communicator nccl_calls nccl_group peer_notes)
list(TRANSFORM group_sources PREPEND ${PROJECT_SOURCE_DIR}/parallel/cuda/)
list(TRANSFORM group_sources APPEND .cpp)
add_library(longspan_test_groups STATIC groups/asynchronous_cuda.cpp groups/fake_nccl.cpp ${group_sources})
target_include_directories(longspan_test_groups PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
target_include_directories(longspan_test_groups BEFORE PUBLIC ${CMAKE_CURRENT_LIST_DIR}/../support/cuda_emulator)
target_compile_definitions(longspan_test_groups PUBLIC LONGSPAN_CUDA_EMULATED)
target_link_libraries(longspan_test_groups PUBLIC longspan_parallel ${CMAKE_DL_LIBS})
foreach(name device_group_test nccl_failure_test host_offload_test)
  target_link_libraries(${name} PRIVATE longspan_test_groups)
endforeach()

# The fake as a library, for runs on the emulated GPU, whose streams are not asynchronous.
add_library(longspan_fake_nccl MODULE groups/fake_nccl.cpp)
set_target_properties(longspan_fake_nccl PROPERTIES OUTPUT_NAME nccl_fake LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/plugins)
target_include_directories(longspan_fake_nccl PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${PROJECT_SOURCE_DIR})
target_include_directories(longspan_fake_nccl BEFORE PRIVATE ${CMAKE_CURRENT_LIST_DIR}/../support/cuda_emulator)
target_compile_definitions(longspan_fake_nccl PRIVATE LONGSPAN_CUDA_EMULATED LONGSPAN_FAKE_NCCL_SYNCHRONOUS
                           OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)
target_link_libraries(longspan_fake_nccl PRIVATE MPI::MPI_C fmt::fmt)
add_dependencies(longspan_plugins longspan_fake_nccl)
