# TensorRT's headers: TensorRT_INCLUDE_DIR and TensorRT_VERSION of an installation in TENSORRT_ROOT (a
# variable or an environment variable) or in the system's places. Its libraries are not looked for.
find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h
  HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT
  PATH_SUFFIXES include
)
mark_as_advanced(TensorRT_INCLUDE_DIR)

if(TensorRT_INCLUDE_DIR AND EXISTS ${TensorRT_INCLUDE_DIR}/NvInferVersion.h)
  file(READ ${TensorRT_INCLUDE_DIR}/NvInferVersion.h header)
  foreach(part MAJOR MINOR PATCH)
    # 10.13 and later say it in two steps: NV_TENSORRT_MAJOR is TRT_MAJOR_ENTERPRISE, which is the number.
    if(header MATCHES "define +(NV_TENSORRT|TRT)_${part}(_ENTERPRISE)? +([0-9]+)")
      set(TensorRT_VERSION_${part} ${CMAKE_MATCH_3})
    endif()
  endforeach()
  set(TensorRT_VERSION
    ${TensorRT_VERSION_MAJOR}.${TensorRT_VERSION_MINOR}.${TensorRT_VERSION_PATCH})
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT
  REQUIRED_VARS TensorRT_INCLUDE_DIR TensorRT_VERSION_MAJOR
  VERSION_VAR TensorRT_VERSION
)
