# launcher -> { model, io, slurm } -> parallel, and foreign headers behind their one door (style.md section 2).
# Fails with file, line and the rule that is broken.
cmake_minimum_required(VERSION 3.22)
set(may_include_parallel parallel)
set(may_include_model model parallel)
set(may_include_io io parallel)
set(may_include_slurm slurm)
set(may_include_launcher launcher model io slurm parallel)
# Pairs: how a foreign header begins, and which files may include it.
set(doors
    "hdf5\\.h" "^io/hdf5"
    "boost/" "^launcher/options\\.cpp"
    "dnnl" "^model/kernels/cpu/"
    "hwy/" "^model/kernels/cpu/"
    "mpi\\.h" "^parallel/"
    "xxhash\\.h" "^io/"
    "zlib\\.h" "^io/"
    "omp\\.h" "^(model/kernels/cpu|parallel|launcher)/"
    "cuda|cublas|cudnn" "^(parallel|model/kernels)/cuda/"
    "nccl" "^parallel/cuda/")
list(LENGTH doors door_count)
math(EXPR last_door "${door_count} - 2")
set(broken 0)
foreach(folder parallel model io slurm launcher)
  file(GLOB_RECURSE files RELATIVE ${SOURCE} ${SOURCE}/${folder}/*.hpp ${SOURCE}/${folder}/*.cpp)
  foreach(file ${files})
    file(STRINGS ${SOURCE}/${file} includes REGEX "^ *#include")
    foreach(line ${includes})
      if(line MATCHES "\"(parallel|model|io|slurm|launcher|tests|support)/")
        if(NOT CMAKE_MATCH_1 IN_LIST may_include_${folder})
          message(SEND_ERROR "${file}: ${folder}/ may not include ${CMAKE_MATCH_1}/: ${line}")
          math(EXPR broken "${broken} + 1")
        endif()
      elseif(line MATCHES "[<\"]([^>\"]+)[>\"]")
        set(header ${CMAKE_MATCH_1})
        foreach(door RANGE 0 ${last_door} 2)
          math(EXPR behind "${door} + 1")
          list(GET doors ${door} foreign)
          list(GET doors ${behind} allowed)
          if(header MATCHES "^(${foreign})" AND NOT file MATCHES "${allowed}")
            message(SEND_ERROR "${file}: <${header}> belongs behind ${allowed}")
            math(EXPR broken "${broken} + 1")
          endif()
        endforeach()
      endif()
    endforeach()
  endforeach()
endforeach()
if(broken GREATER 0)
  message(FATAL_ERROR "${broken} includes break the layers")
endif()
message(STATUS "layers hold")
