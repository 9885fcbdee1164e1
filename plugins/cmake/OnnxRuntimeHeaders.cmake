# SPDX-License-Identifier: Apache-2.0
#
# Finds ONNX Runtime's C++ headers: TC_ONNXRUNTIME_INCLUDE, or TC_ONNXRUNTIME_MISSING with why not.
#
# 1. The folder that ONNXRUNTIME_INCLUDE names.
# 2. The system's include folder.
# 3. Debian's package libonnxruntime-dev, from its next suite if the installed one has none: apt
#    fetches and verifies it from the mirror that it already knows, with lists and cache of its
#    own in the build folder, and it is unpacked there. The system's apt state is not touched and
#    nothing is installed.

set(ONNXRUNTIME_INCLUDE "" CACHE PATH "Folder of onnxruntime_cxx_api.h")
option(TC_FETCH_ONNXRUNTIME "Fetch ONNX Runtime's headers with apt where they are missing" ON)

set(tc_header onnxruntime_cxx_api.h)
set(tc_suite trixie)
set(tc_fetched ${CMAKE_BINARY_DIR}/onnxruntime-headers)

function(tc_fetch_onnxruntime_headers)
  find_program(tc_apt_get apt-get)
  find_program(tc_dpkg_deb dpkg-deb)
  if(NOT tc_apt_get OR NOT tc_dpkg_deb)
    set(TC_ONNXRUNTIME_MISSING "no headers here, and no apt to fetch them with" PARENT_SCOPE)
    return()
  endif()
  execute_process(
    COMMAND ${tc_apt_get} indextargets --format "$(REPO_URI)" "Created-By: Packages"
            "Component: main"
    OUTPUT_VARIABLE mirrors ERROR_QUIET)
  string(REGEX MATCH "[^\n]*/debian/" mirror "${mirrors}")
  set(keyring /usr/share/keyrings/debian-archive-keyring.gpg)
  if(NOT mirror OR NOT EXISTS ${keyring})
    set(TC_ONNXRUNTIME_MISSING "no headers here, and apt knows no mirror of Debian" PARENT_SCOPE)
    return()
  endif()

  file(MAKE_DIRECTORY ${tc_fetched}/lists/partial ${tc_fetched}/cache/archives/partial)
  file(WRITE ${tc_fetched}/sources.list "deb [signed-by=${keyring}] ${mirror} ${tc_suite} main\n")
  set(apt
      ${tc_apt_get} -q -o Dir::State::lists=${tc_fetched}/lists -o Dir::Cache=${tc_fetched}/cache
      -o Dir::Etc::sourcelist=${tc_fetched}/sources.list -o Dir::Etc::sourceparts=/dev/null
      -o Acquire::Languages=none)
  execute_process(
    COMMAND ${apt} update
    COMMAND_ECHO NONE OUTPUT_QUIET ERROR_VARIABLE complaint RESULT_VARIABLE failed TIMEOUT 120)
  if(NOT failed)
    execute_process(
      COMMAND ${apt} download libonnxruntime-dev
      WORKING_DIRECTORY ${tc_fetched}
      OUTPUT_QUIET ERROR_VARIABLE complaint RESULT_VARIABLE failed TIMEOUT 120)
  endif()
  file(GLOB package ${tc_fetched}/libonnxruntime-dev_*.deb)
  if(failed OR NOT package)
    string(REGEX REPLACE "\n.*" "" complaint "${complaint}")
    set(TC_ONNXRUNTIME_MISSING "apt could not fetch the headers: ${complaint}" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${tc_dpkg_deb} -x ${package} ${tc_fetched})
  file(REMOVE_RECURSE ${tc_fetched}/lists ${tc_fetched}/cache)
endfunction()

set(TC_ONNXRUNTIME_MISSING "")
if(ONNXRUNTIME_INCLUDE)
  if(NOT EXISTS ${ONNXRUNTIME_INCLUDE}/${tc_header})
    message(FATAL_ERROR "ONNXRUNTIME_INCLUDE is ${ONNXRUNTIME_INCLUDE}, which has no ${tc_header}")
  endif()
  set(TC_ONNXRUNTIME_INCLUDE ${ONNXRUNTIME_INCLUDE})
  return()
endif()

set(tc_fetched_include ${tc_fetched}/usr/include/onnxruntime)
find_path(TC_ONNXRUNTIME_SYSTEM_INCLUDE ${tc_header} PATH_SUFFIXES onnxruntime)
if(NOT TC_ONNXRUNTIME_SYSTEM_INCLUDE AND NOT EXISTS ${tc_fetched_include}/${tc_header})
  if(TC_FETCH_ONNXRUNTIME)
    tc_fetch_onnxruntime_headers()
  else()
    set(TC_ONNXRUNTIME_MISSING "no headers here, and TC_FETCH_ONNXRUNTIME is off")
  endif()
endif()
if(TC_ONNXRUNTIME_SYSTEM_INCLUDE)
  set(TC_ONNXRUNTIME_INCLUDE ${TC_ONNXRUNTIME_SYSTEM_INCLUDE})
elseif(EXISTS ${tc_fetched_include}/${tc_header})
  set(TC_ONNXRUNTIME_INCLUDE ${tc_fetched_include})
endif()
